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


def blend(before: Tensor, after: Tensor, weights: Tensor) -> Tensor:
    """From one clip's frames to another's frames of the same moments.

    Args:
        before: `[B, X, …]`.
        after: the same.
        weights: of `after`, `[B, X]`: `fade_in`.
    """
    if before.shape != after.shape or weights.shape != before.shape[:2]:
        raise ValueError(
            f"got {tuple(before.shape)}, {tuple(after.shape)} and {tuple(weights.shape)}, expected the same frames of "
            "both clips and their weights"
        )
    return torch.lerp(before, after, weights.to(before.dtype).view(*weights.shape, *[1] * (before.ndim - 2)))
