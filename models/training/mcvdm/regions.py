"""Regions of a face in a frame, and what they weigh in the losses of MC-VDM."""

from __future__ import annotations

from enum import IntEnum

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
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


def region_map(points: NDArray[np.floating]) -> NDArray[np.uint8]:
    """`Region` of each pixel `[256, 256]` of a frame with the 68 points `[68, 2]` (pixels)."""
    regions = np.zeros((CROP_SIDE, CROP_SIDE), np.uint8)
    for part, growth, label in _OUTLINES:
        outline = points[part]
        centre = outline.mean(0)
        hull = cv2.convexHull((centre + growth * (outline - centre)).round().astype(np.int32))
        cv2.fillConvexPoly(regions, hull, int(label))
    return regions


def weight_of(regions: Tensor) -> Tensor:
    """The weight of each pixel, float32, the shape of `regions`."""
    return torch.tensor(WEIGHTS, device=regions.device)[regions.long()]
