"""Cross-fading of overlapping clips."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def raised_cosine(fade: int) -> list[float]:
    """Weights of the following clip over the `fade` frames it shares with the one before: rising, between 0 and 1."""
    return [(1 - math.cos(math.pi * (n + 1) / (fade + 1))) / 2 for n in range(fade)]


def blend(before: Tensor, after: Tensor) -> Tensor:
    """From one clip's frames to another's frames of the same moments; both `[X, …]`, time first."""
    if before.shape != after.shape:
        raise ValueError(f"got {tuple(before.shape)} and {tuple(after.shape)}, expected the same frames of both clips")
    weight = torch.tensor(raised_cosine(len(before)), dtype=before.dtype, device=before.device)
    return torch.lerp(before, after, weight.view(-1, *[1] * (before.ndim - 1)))
