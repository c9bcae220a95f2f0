"""The paper's video encoder: a TimeSformer with divided attention over space and time, and a transformer per plane.

Sources: Bertasius et al. 2021 (divided space-time attention); PVDM, Yu et al. 2023, section 3.1 (the projections onto
three planes). Same interface as the convolutional encoder; for a GPU.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from avatard.models.mcvdm.autoencoder import MOTION, AutoencoderConfig, Planes
from avatard.models.mcvdm.decoder import CELLS, FRAME
from avatard.models.mcvdm.unet import timestep_embedding

PATCH = FRAME // CELLS


class Attention(nn.Module):
    """Pre-norm multi-head self-attention with a residual; the second dimension attends."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads, self.norm = heads, nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """`[B, N, D]` → the same shape."""
        b, n, d = x.shape
        q, k, v = self.qkv(self.norm(x)).view(b, n, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4)
        attended: Tensor = self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, d))
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
        b, s = frames.shape[:2]
        cells = F.pixel_unshuffle(frames.flatten(0, 1), PATCH).view(b, s, -1, CELLS**2)
        cells = torch.cat([cells, MOTION * motion.flatten(3)], 2).transpose(2, 3)  # [B, S, N, P]
        when = timestep_embedding(torch.arange(s, device=frames.device), self.place.shape[1])
        x = self.patches(cells) + self.place + when[:, None]
        n, d = x.shape[2:]
        for time, space, mlp in zip(self.time, self.space, self.mlp, strict=True):
            x = time(x.transpose(1, 2).reshape(b * n, s, d)).view(b, n, s, d).transpose(1, 2)
            x = mlp(space(x.reshape(b * s, n, d)).view(b, s, n, d))
        x = x.view(b, s, CELLS, CELLS, d)  # [B, t, y, x, D]
        lines = (
            x.permute(0, 2, 3, 1, 4),
            x.permute(0, 1, 3, 2, 4),
            x.permute(0, 1, 2, 3, 4),
        )  # what is left: yx, tx, ty
        planes = []
        for query, gather, leave, line in zip(self.queries, self.gather, self.leave, lines, strict=True):
            tokens = line.reshape(-1, line.shape[3], d)
            tokens = torch.cat([query.expand(len(tokens), 1, d), tokens], 1)
            plane = leave(gather(tokens)[:, 0]).view(b, *line.shape[1:3], -1)
            planes.append(torch.tanh(plane.permute(0, 3, 1, 2).float()))
        return Planes(*planes)
