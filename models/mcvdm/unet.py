"""The latent diffusion network of MC-VDM (paper section 3.3): one 2D UNet shared by the three planes of a clip.

The planes talk to each other through their axis means at 32² and through joint attention at 16² and 8² (PVDM attends
at every level, at more than twice the cost).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from avatard.models.diffusion import timestep_embedding
from avatard.models.mcvdm.latent import Planes
from avatard.models.mcvdm.layers import channels_last

#: What the rows and columns of each plane are.
AXES = (("y", "x"), ("t", "x"), ("t", "y"))


@dataclass(frozen=True)
class UNetConfig:
    """Sizes; travels in the checkpoint's metadata."""

    latent: int = 4  # channels of a plane
    landmark: int = 16  # channels of a landmark plane
    width: int = 48
    multiples: tuple[int, ...] = (1, 2, 3)
    head: int = 32  # channels of an attention head


def zero(layer: nn.Conv2d | nn.Linear) -> nn.Conv2d | nn.Linear:
    """The layer with weights and bias at zero, the end of every residual branch."""
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias) if layer.bias is not None else None
    return layer


class Block(nn.Module):
    """GroupNorm → SiLU → conv, twice, with the timestep as FiLM between."""

    def __init__(self, inputs: int, outputs: int, embedding: int):
        super().__init__()
        self.norm_in, self.norm_out = nn.GroupNorm(8, inputs), nn.GroupNorm(8, outputs)
        self.conv_in = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.film = nn.Linear(embedding, 2 * outputs)
        self.conv_out = zero(nn.Conv2d(outputs, outputs, 3, padding=1))
        self.skip = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else nn.Identity()

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """`[B, C, H, W]` and `[B, E]` → `[B, C', H, W]`."""
        h = self.conv_in(F.silu(self.norm_in(x)))
        scale, shift = self.film(embedding)[..., None, None].chunk(2, 1)
        h = self.conv_out(F.silu(self.norm_out(h) * (1 + scale) + shift))
        out: Tensor = self.skip(x) + h
        return out


class AxisMixing(nn.Module):
    """Each plane receives what the two others know of its rows and columns (their means over the other axis)."""

    def __init__(self, width: int):
        super().__init__()
        self.mix = zero(nn.Conv2d(2 * width, width, 1))

    def forward(self, planes: Sequence[Tensor]) -> list[Tensor]:
        """Planes `[B, C, rows, columns]` in the order of `AXES` → the same shapes."""
        means = {
            (n, axis): plane.mean(away)
            for n, (plane, (rows, columns)) in enumerate(zip(planes, AXES, strict=True))
            for axis, away in ((rows, 3), (columns, 2))
        }
        out = []
        for n, (plane, (rows, columns)) in enumerate(zip(planes, AXES, strict=True)):
            # Each axis belongs to two planes: to this one and to one other.
            along_rows, along_columns = (
                next(mean for (m, name), mean in means.items() if name == axis and m != n) for axis in (rows, columns)
            )
            others = [along_rows[..., None].expand_as(plane), along_columns[:, :, None].expand_as(plane)]
            out.append(plane + self.mix(torch.cat(others, 1)))
        return out


class JointAttention(nn.Module):
    """Self-attention over the cells of all three planes."""

    def __init__(self, width: int, head: int):
        super().__init__()
        self.heads = max(1, width // head)
        self.norm = nn.GroupNorm(8, width)
        self.qkv, self.out = nn.Linear(width, 3 * width), zero(nn.Linear(width, width))

    def forward(self, planes: Sequence[Tensor]) -> list[Tensor]:
        """Planes `[B, C, rows, columns]` → the same shapes."""
        cells = torch.cat([self.norm(p).flatten(2) for p in planes], 2)  # [B, C, N]
        qkv = self.qkv(cells.transpose(1, 2)).unflatten(2, (3, self.heads, -1))  # [B, N, 3, heads, D]
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        h = self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))  # [B, N, C]
        pieces = h.transpose(1, 2).split([p[0, 0].numel() for p in planes], 2)
        return [p + piece.reshape(p.shape) for p, piece in zip(planes, pieces, strict=True)]


class Level(nn.Module):
    """One block on every plane, then the planes' exchange."""

    def __init__(self, inputs: int, outputs: int, embedding: int, exchange: nn.Module):
        super().__init__()
        self.block, self.exchange = Block(inputs, outputs, embedding), exchange

    def forward(self, planes: Sequence[Tensor], embedding: Tensor) -> list[Tensor]:
        """Planes and `[B, E]` → planes of the level's width."""
        out: list[Tensor] = self.exchange([self.block(p, embedding) for p in planes])
        return out


class UNet(nn.Module):
    """Predicts a clip's clean latent (or its noise) from the noisy one and the conditions.

    Conditions are planes as well: `landmarks` (zl), `identity` (zr^xy, the portrait's xy plane `[B, 4, 32, 32]`, whose
    row and column means stand for it in the other planes) and `previous` (the last clip's latent, zeros without one).
    All latents are standardised. The output of the x0 objective is added to the identity.
    """

    def __init__(self, config: UNetConfig):
        super().__init__()
        self.config = config
        widths = [config.width * m for m in config.multiples]
        embedding = 4 * config.width
        self.time = nn.Sequential(
            nn.Linear(config.width, embedding), nn.SiLU(), nn.Linear(embedding, embedding), nn.SiLU()
        )
        self.enter = nn.Conv2d(3 * config.latent + config.landmark, widths[0], 3, padding=1)
        self.plane = nn.Parameter(torch.zeros(3, widths[0]))

        def exchange(level: int) -> nn.Module:
            return AxisMixing(widths[0]) if level == 0 else JointAttention(widths[level], config.head)

        levels = range(len(widths))
        self.down = nn.ModuleList(Level(widths[max(n - 1, 0)], widths[n], embedding, exchange(n)) for n in levels)
        self.middle = Level(widths[-1], widths[-1], embedding, exchange(len(widths) - 1))
        self.up = nn.ModuleList(Level(2 * widths[n], widths[n], embedding, exchange(n)) for n in levels)
        self.widen = nn.ModuleList(nn.Conv2d(widths[n], widths[n - 1], 1) for n in levels if n > 0)
        self.leave = nn.Sequential(
            nn.GroupNorm(8, widths[0]), nn.SiLU(), zero(nn.Conv2d(widths[0], config.latent, 3, padding=1))
        )
        channels_last(self)

    def forward(self, noisy: Planes, t: Tensor, landmarks: Planes, identity: Tensor, previous: Planes) -> Planes:
        """One evaluation; `t` `[B]` in [0, 1000)."""
        portraits = identity_planes(identity, noisy.xt.shape[2])
        embedding = self.time(timestep_embedding(t, self.config.width))  # [B, 4 width]
        inputs = zip(noisy, landmarks, portraits, previous, self.plane, strict=True)
        planes = [
            self.enter(torch.cat(parts, 1)) + plane[:, None, None] for *parts, plane in inputs
        ]  # [B, W, rows, columns]
        skips = []
        for n, level in enumerate(self.down):
            if n:
                planes = [F.avg_pool2d(p, 2) for p in planes]
            planes = level(planes, embedding)
            skips.append(planes)
        planes = self.middle(planes, embedding)
        for n in reversed(range(len(self.up))):
            planes = [torch.cat(pair, 1) for pair in zip(planes, skips[n], strict=True)]
            planes = self.up[n](planes, embedding)
            if n:
                planes = [F.interpolate(self.widen[n - 1](p), scale_factor=2.0) for p in planes]
        return Planes(*(self.leave(p).float() + base for p, base in zip(planes, portraits, strict=True)))


def identity_planes(identity: Tensor, frames: int) -> Planes:
    """zr: the portrait's xy plane `[B, C, 32, 32]`, and its column and row means held over `frames`."""
    means = (identity.mean(2), identity.mean(3))  # of columns and of rows
    return Planes(identity, *(mean[:, :, None].expand(-1, -1, frames, -1) for mean in means))
