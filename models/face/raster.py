"""Landmark rasters: the 68 points as coloured, anti-aliased lines, the picture that MC-VDM takes as its condition.

Channel 0 has every line, channel 1 marks the upper face, channel 2 the mouth, so that the first one, two or three channels
make a raster by themselves. Open eyes and an open mouth are filled: at 64x64 a lid moves by a pixel, and an area tells
more than two lines that touch.
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


@dataclass(frozen=True)
class _Stroke:
    """Points that are drawn in one colour."""

    parts: tuple[slice, ...]
    colour: tuple[int, int, int]
    closed: bool = False
    fill: bool = False


#: In drawing order: areas below lines.
STROKES: Final = (
    _Stroke((RIGHT_EYE, LEFT_EYE), (96, 160, 0), fill=True),
    _Stroke((INNER_LIP,), (96, 0, 160), fill=True),
    _Stroke((JAW,), (255, 0, 0)),
    _Stroke((RIGHT_BROW, LEFT_BROW), (255, 255, 0)),
    _Stroke((NOSE_BRIDGE, NOSE_BASE), (255, 128, 0)),
    _Stroke((RIGHT_EYE, LEFT_EYE), (192, 255, 0), closed=True),
    _Stroke((OUTER_LIP,), (255, 0, 255), closed=True),
    _Stroke((INNER_LIP,), (192, 0, 255), closed=True),
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
    factor = 1.0 if side is None else size / side
    local = (points[..., :2].reshape(-1, 68, 2) + 0.5) * factor - 0.5
    # Far outside, fixed-point coordinates would overflow.
    fixed = np.rint(np.clip(local, -8 * size, 8 * size) * 2**FRACTION_BITS).astype(np.int32)
    frames = np.zeros((len(fixed), size, size, channels), np.uint8)
    for frame, face in zip(frames, fixed, strict=True):
        _draw(frame, face, thickness=max(1, round(size / 128)))
    return frames.reshape(*points.shape[:-2], size, size, channels)


def _draw(frame: NDArray[np.uint8], face: NDArray[np.int32], thickness: int) -> None:
    """Draw one face `[68, 2]`, in 1/16 px, into a frame `[size, size, channels]`."""
    for stroke in STROKES:
        lines = [face[part] for part in stroke.parts]
        if stroke.fill:
            cv2.fillPoly(frame, lines, stroke.colour, cv2.LINE_AA, FRACTION_BITS)
        else:
            cv2.polylines(frame, lines, stroke.closed, stroke.colour, thickness, cv2.LINE_AA, FRACTION_BITS)
