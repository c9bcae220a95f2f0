"""Regions of a face in a frame, and what they weigh in the losses of MC-VDM."""

from __future__ import annotations

from enum import IntEnum

import torch
from torch import Tensor

from avatard.models.face.topology import INNER_LIP, LEFT_EYE, OUTER_LIP, RIGHT_EYE
from avatard.timebase import CROP_SIDE


class Region(IntEnum):
    """Labels of pixels; a later one lies on the earlier ones."""

    ELSEWHERE = 0
    EYES = 1
    LIPS = 2
    INSIDE = 3  # between the lips


#: In the losses, in the order of `Region`.
WEIGHTS = (1.0, 2.5, 4.0, 16.0)
#: Points, how far their outline is grown, and what lies within, in drawing order.
_OUTLINES = (
    (RIGHT_EYE, 1.6, Region.EYES),
    (LEFT_EYE, 1.6, Region.EYES),
    (OUTER_LIP, 1.35, Region.LIPS),
    (INNER_LIP, 1.05, Region.INSIDE),
)


def region_map(points: Tensor) -> Tensor:
    """`Region` of each pixel, uint8 `[N, 256, 256]`, of frames with the 68 points `[N, 68, 2]` (pixels)."""
    regions = torch.zeros(len(points), CROP_SIDE, CROP_SIDE, dtype=torch.uint8, device=points.device)
    for part, growth, label in _OUTLINES:
        outline = points[:, part]
        centre = outline.mean(1, keepdim=True)
        grown = (centre + growth * (outline - centre)).round()
        regions.masked_fill_(_convex_hull(grown), int(label))
    return regions


def _convex_hull(points: Tensor) -> Tensor:
    """The pixels `[N, 256, 256]` in the convex hulls of points `[N, K, 2]`, their borders among them.

    A row of a hull reaches from the first to the last crossing with any line between two of its points.
    """
    first, second = torch.triu_indices(points.shape[1], points.shape[1], 1, device=points.device)
    a, b = points[:, first], points[:, second]  # [N, K (K - 1) / 2, 2]
    rows = torch.arange(CROP_SIDE, device=points.device, dtype=points.dtype)
    height = b[..., 1] - a[..., 1]
    share = (rows - a[..., 1, None]) / torch.where(height == 0, torch.ones_like(height), height)[..., None]
    crossed = (share >= 0) & (share <= 1) & (height != 0)[..., None]  # [N, pairs, rows]
    x = a[..., 0, None] + share * (b[..., 0] - a[..., 0])[..., None]
    left = torch.where(crossed, x, torch.inf).amin(1)
    right = torch.where(crossed, x, -torch.inf).amax(1)
    return (rows >= left[..., None] - 0.5) & (rows <= right[..., None] + 0.5)


def weight_of(regions: Tensor) -> Tensor:
    """The weight of each pixel, float32, the shape of `regions`."""
    return torch.tensor(WEIGHTS, device=regions.device)[regions.long()]
