"""The paper's video encoder: a TimeSformer with divided attention over space and time, and a transformer per plane.

Sources: Bertasius et al. 2021 (divided space-time attention); PVDM, Yu et al. 2023, section 3.1 (the projections onto
three planes). Same interface as the convolutional encoder; for a GPU.
"""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from avatard.models.diffusion import timestep_embedding
from avatard.models.mcvdm.decoder import CELLS, FRAME
from avatard.models.mcvdm.latent import MOTION_SCALE, AutoencoderConfig, Planes

PATCH = FRAME // CELLS
#: For each plane of the latent: the axes that it keeps, and the one along which it gathers.
PLANES = (("y x", "t"), ("t x", "y"), ("t y", "x"))


class Attention(nn.Module):
    """Pre-norm multi-head self-attention with a residual; the second dimension attends."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads, self.norm = heads, nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """`[B, N, D]` → the same shape."""
        qkv = self.qkv(self.norm(x))
        q, k, v = rearrange(qkv, "b n (three heads d) -> three b heads n d", three=3, heads=self.heads)
        attended: Tensor = self.out(rearrange(F.scaled_dot_product_attention(q, k, v), "b heads n d -> b n (heads d)"))
        return x + attended


class Mlp(nn.Module):
    """Pre-norm feed-forward with a residual."""

    def __init__(self, width: int):
        super().__init__()
        self.layers = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(self, x: Tensor) -> Tensor:
        """`[…, D]` → the same shape."""
        residual: Tensor = self.layers(x)
        return x + residual


class TimeSformerEncoder(nn.Module):
    """Patches of 8 × 8 pixels → blocks of attention over time, then space → one token per line of each plane."""

    def __init__(self, config: AutoencoderConfig):
        super().__init__()
        width = config.transformer_width
        self.patches = nn.Linear(3 * PATCH**2 + 2, width)
        self.place = nn.Parameter(0.02 * torch.randn(CELLS * CELLS, width))
        depth = range(config.transformer_depth)
        self.time, self.space = (nn.ModuleList(Attention(width, width // 64 or 1) for _ in depth) for _ in range(2))
        self.mlp = nn.ModuleList(Mlp(width) for _ in depth)
        # A learned query per plane gathers each line of tokens along the plane's missing axis.
        self.queries = nn.Parameter(0.02 * torch.randn(3, width))
        self.gather = nn.ModuleList(nn.Sequential(Attention(width, width // 64 or 1), Mlp(width)) for _ in range(3))
        self.leave = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(width), nn.Linear(width, config.channels)) for _ in range(3)
        )

    def forward(self, frames: Tensor, motion: Tensor) -> Planes:
        """Frames `[B, S, 3, 256, 256]` and motion `[B, S, 2, 32, 32]` → the latent."""
        size = {"b": len(frames), "t": frames.shape[1], "y": CELLS, "x": CELLS}
        patches = rearrange(frames, "b t c (y py) (x px) -> b t (y x) (c py px)", py=PATCH, px=PATCH)
        moved = rearrange(MOTION_SCALE * motion, "b t c y x -> b t (y x) c")
        when = timestep_embedding(torch.arange(size["t"], device=frames.device), self.place.shape[1])  # [S, D]
        h = self.patches(torch.cat([patches, moved], 3)) + self.place + when[:, None]  # [B, S, N, D]
        for time, space, mlp in zip(self.time, self.space, self.mlp, strict=True):
            h = time(rearrange(h, "b t n d -> (b n) t d"))
            h = space(rearrange(h, "(b n) t d -> (b t) n d", b=size["b"]))
            h = mlp(rearrange(h, "(b t) n d -> b t n d", b=size["b"]))
        planes = []
        for query, gather, leave, (kept, line) in zip(self.queries, self.gather, self.leave, PLANES, strict=True):
            tokens = rearrange(h, f"b t (y x) d -> (b {kept}) {line} d", y=CELLS)
            tokens = torch.cat([query.expand(len(tokens), 1, -1), tokens], 1)
            left = {axis: size[axis] for axis in ("b", *kept.split())}
            plane = rearrange(leave(gather(tokens)[:, 0]), f"(b {kept}) c -> b c {kept}", **left)
            planes.append(torch.tanh(plane.float()))
        return Planes(*planes)
