"""Cross-fading of overlapping clips."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from avatard.frame import raised_cosine


def fade_in(fade: int) -> list[float]:
    """Weights of the following clip over the `fade` frames it shares with the one before: rising, between 0 and 1."""
    weights: list[float] = raised_cosine(np.arange(1, fade + 1) / (fade + 1)).tolist()
    return weights


def blend(before: Tensor, after: Tensor) -> Tensor:
    """From one clip's frames to another's frames of the same moments; both `[X, …]`, time first."""
    if before.shape != after.shape:
        raise ValueError(f"got {tuple(before.shape)} and {tuple(after.shape)}, expected the same frames of both clips")
    weight = torch.tensor(fade_in(len(before)), dtype=before.dtype, device=before.device)
    return torch.lerp(before, after, weight.view(-1, *[1] * (before.ndim - 1)))
