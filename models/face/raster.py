"""Landmark rasters: the 68 points as a coloured, anti-aliased picture, the condition of MC-VDM.

Jaw, brows and nose are lines; eyes, lips and the inner mouth are areas, because at 64x64 a lid or a lip moves by a
fraction of a pixel and coverage shows that where two lines would touch. Channel 0 has every part, channel 1 marks the
upper face, channel 2 the mouth, so that the first one, two or three channels make a raster by themselves.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray

from avatard.models.face.topology import (
    INNER_LIP,
    JAW,
    LEFT_BROW,
    LEFT_EYE,
    NOSE_BASE,
    NOSE_BRIDGE,
    OUTER_LIP,
    RIGHT_BROW,
    RIGHT_EYE,
)

#: Bits of a pixel's fraction that OpenCV draws with: 1/16 px.
FRACTION_BITS: Final = 4
#: Smaller rasters are drawn at least this large and averaged: OpenCV fills to whole pixels.
DRAWN_SIDE: Final = 256


@dataclass(frozen=True)
class _Part:
    """Points that are drawn in one colour, as lines or as areas."""

    points: tuple[slice, ...]
    colour: tuple[int, int, int]
    area: bool = False


#: In drawing order: the inner mouth lies on the lips.
PARTS: Final = (
    _Part((JAW,), (255, 0, 0)),
    _Part((RIGHT_BROW, LEFT_BROW), (255, 255, 0)),
    _Part((NOSE_BRIDGE, NOSE_BASE), (255, 128, 0)),
    _Part((RIGHT_EYE, LEFT_EYE), (128, 255, 0), area=True),
    _Part((OUTER_LIP,), (255, 0, 160), area=True),
    _Part((INNER_LIP,), (80, 0, 255), area=True),
)


def raster(
    points: NDArray[np.floating], size: int = 64, *, side: float | None = None, channels: int = 3
) -> NDArray[np.uint8]:
    """Draw landmarks.

    Args:
        points: `[..., 68, 2 or more]` pixels (x, y; whole numbers are pixel centres) of a square picture.
        size: side of the raster in pixels.
        side: side in pixels of the picture that the points belong to; the raster's own if not given.
        channels: 1, 2 or 3.

    Returns:
        `[..., size, size, channels]`, black where nothing is drawn. What lies outside the square is cut off.

    Raises:
        ValueError: for another number of points or channels.
    """
    if points.shape[-2] != 68 or points.shape[-1] < 2:
        raise ValueError(f"got points of shape {points.shape}, expected [..., 68, 2]")
    if channels not in (1, 2, 3):
        raise ValueError(f"got {channels} channels, expected 1, 2 or 3")
    drawn = size * max(1, round(DRAWN_SIDE / size))
    local = (points[..., :2].reshape(-1, 68, 2) + 0.5) * (drawn / (side or size)) - 0.5
    # Far outside, fixed-point coordinates would overflow.
    fixed = np.rint(np.clip(local, -8 * drawn, 8 * drawn) * 2**FRACTION_BITS).astype(np.int32)
    frames = np.empty((len(fixed), size, size, channels), np.uint8)
    for frame, face in zip(frames, fixed, strict=True):
        picture = cv2.resize(_draw(face, drawn), (size, size), interpolation=cv2.INTER_AREA)
        frame[:] = picture[..., :channels]
    return frames.reshape(*points.shape[:-2], size, size, channels)


def _draw(face: NDArray[np.int32], side: int) -> NDArray[np.uint8]:
    """One face `[68, 2]`, in 1/16 px, as a picture `[side, side, 3]`."""
    picture = np.zeros((side, side, 3), np.uint8)
    width = max(1, round(side / 64))
    for part in PARTS:
        lines = [face[points] for points in part.points]
        if part.area:
            cv2.fillPoly(picture, lines, part.colour, cv2.LINE_AA, FRACTION_BITS)
        # An area gets a hair line as its rim: lines move by fractions of a pixel.
        cv2.polylines(picture, lines, part.area, part.colour, 1 if part.area else width, cv2.LINE_AA, FRACTION_BITS)
    return picture
