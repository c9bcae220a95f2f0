"""The photograph at a frame's resolution, with what may move into the frame around it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from avatard.engine.framing import Framing, resample

Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class Plate:
    """RGBA pixels, and where in the frame they begin."""

    pixels: Pixels  # [h, w, 4]
    left: int  # column of the frame, negative where it begins outside
    top: int

    @classmethod
    def of(cls, photograph: Pixels, framing: Framing, margin: int) -> Plate:
        """Of the whole frame and `margin` pixels around it, as far as the photograph `[H, W, 3]` goes."""
        low, size = _reach(photograph, framing, margin)
        rgb = resample(photograph, _shifted(framing, low), size)
        return cls(np.dstack([rgb, np.full(rgb.shape[:2], 255, np.uint8)]), *low)

    def like(self, picture: Pixels, framing: Framing) -> Pixels:
        """Another picture of the photograph's size `[H, W]`, such as its alpha, as the plate shows it."""
        size = (self.pixels.shape[1], self.pixels.shape[0])
        return resample(picture, _shifted(framing, (self.left, self.top)), size)

    def part(self, left: int, top: int, right: int, bottom: int) -> Plate:
        """What of it lies between these edges, in pixels of the frame."""
        columns = slice(max(0, left - self.left), max(0, right - self.left))
        rows = slice(max(0, top - self.top), max(0, bottom - self.top))
        return Plate(self.pixels[rows, columns], self.left + columns.start, self.top + rows.start)


def _reach(photograph: Pixels, framing: Framing, margin: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """First column and row, and width and height, of the pixels of a frame that lie inside the photograph."""
    edge = framing.matrix @ np.array([-0.5, -0.5, 1.0]) + 0.5
    size = framing.scale * np.array(photograph.shape[1::-1])
    frame = np.array([framing.width, framing.height])
    low = np.maximum(-margin, np.ceil(edge - 1e-6)).astype(int)
    high = np.minimum(frame + margin, np.floor(edge + size + 1e-6)).astype(int)
    width, height = high - low
    return (int(low[0]), int(low[1])), (int(width), int(height))


def _shifted(framing: Framing, low: tuple[int, int]) -> NDArray[np.float64]:
    matrix = framing.matrix.copy()
    matrix[:, 2] -= low
    return matrix
