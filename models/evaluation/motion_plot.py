"""A picture of motion: real and generated mouth opening over time, and faces side by side."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from avatard.models.evaluation.contact_sheet import labelled
from avatard.models.face.raster import PARTS
from avatard.models.face.topology import mouth_opening

Array = NDArray[np.floating]
Picture = NDArray[np.uint8]

REAL, MADE = (40, 40, 40), (40, 40, 220)  # BGR
FACE_PIXELS, CURVE_PIXELS = 150, 120


def face(points: Array, colour: tuple[int, int, int], side: int = FACE_PIXELS) -> Picture:
    """Landmarks `[68, 3]` in the canonical frame as lines on white `[side, side, 3]`."""
    picture = np.full((side, side, 3), 255, np.uint8)
    xy = (points[:, :2] * side / 3.4 + (side / 2, side * 0.35)) * 8
    for part in PARTS:
        lines = [xy[points].round().astype(np.int32)[:, None] for points in part.points]
        cv2.polylines(picture, lines, part.area, colour, 1, cv2.LINE_AA, shift=3)
    return picture


def curves(real: Array, made: Array, width: int, height: int = CURVE_PIXELS) -> Picture:
    """Two signals `[N]` on one scale `[height, width, 3]`, and zero as a grey line."""
    picture = np.full((height, width, 3), 255, np.uint8)
    low, high = min(0.0, float(real.min()), float(made.min())), max(float(real.max()), float(made.max())) + 1e-6

    def y(value: Array) -> Array:
        scaled: Array = (high - value) / (high - low) * (height - 9) + 4
        return scaled

    cv2.line(picture, (0, int(y(np.array(0.0)))), (width, int(y(np.array(0.0)))), (210, 210, 210))
    for signal, colour in ((real, REAL), (made, MADE)):
        x = np.linspace(4, width - 5, len(signal))
        line = (np.stack([x, y(signal)], axis=1) * 8).round().astype(np.int32)[:, None]
        cv2.polylines(picture, [line], False, colour, 1, cv2.LINE_AA, shift=3)
    return picture


def draw(path: Path, clips: list[tuple[str, Array, Array]], mean: Array, columns: int = 9) -> None:
    """Write a PNG: for each (title, real `[N, 68, 3]`, made) the openings (black, red) and faces at even times."""
    rows = []
    for title, real, made in clips:
        width = columns * FACE_PIXELS
        # The resting opening differs by a constant of the face; the curves show what moves.
        curve = curves(mouth_opening(real + mean), mouth_opening(made + mean), width)
        at = np.linspace(0, len(real) - 1, columns).round().astype(int)
        rows += [labelled(curve, title)]
        for points, colour in ((real, REAL), (made, MADE)):
            rows.append(np.concatenate([face(points[n] + mean, colour) for n in at], axis=1))
    cv2.imwrite(str(path), np.concatenate(rows))
