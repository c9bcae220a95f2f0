"""The upright window around a mouth that the mouth painter sees and fills, and the mask of what it fills."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray

from avatard.models.face.crop import CROP_SCALE
from avatard.models.face.topology import INNER_LIP

Floats = NDArray[np.floating]
Picture = NDArray[np.uint8]

#: Pixels per interocular distance: those of a 512-pixel crop.
WINDOW_SCALE: Final = 2 * CROP_SCALE
#: Height and width of the window in pixels: room for a jaw that drops and a smile.
WINDOW_HEIGHT: Final = 96
WINDOW_WIDTH: Final = 144
#: Least height and width: a smaller window is painted faster.
LEAST_HEIGHT: Final = 48
LEAST_WIDTH: Final = 80
#: Heights and widths are multiples of this, as the painter's levels need it.
STEP: Final = 16
#: Pixels that the painter must see on each side of what it fills.
MARGIN: Final = 10
#: Which of the eight inner-lip points are the corners of the mouth.
LIP_CORNERS: Final = (0, 4)
#: Pixels of a picture beyond a window's edge that its smallest details depend on.
REACH: Final = 8
#: Fractional bits of polygon coordinates in OpenCV's drawing.
SHIFT: Final = 4


@dataclass(frozen=True)
class MouthWindow:
    """A similarity from pixels of a picture to those of a window with the lips in its middle and no roll."""

    matrix: Floats  # [2, 3]
    height: int = WINDOW_HEIGHT
    width: int = WINDOW_WIDTH

    @classmethod
    def around(
        cls,
        lips: Floats,
        interocular_px: float,
        roll: float,
        height: int = WINDOW_HEIGHT,
        width: int = WINDOW_WIDTH,
    ) -> MouthWindow:
        """The window around inner lips.

        Args:
            lips: any points once around the inner lips, `[K, 2 or more]`, pixels of the picture.
            interocular_px: interocular distance in the picture, as `Pose.scale` has it.
            roll: of the head in radians, clockwise, as `Pose.yaw_pitch_roll` has it in degrees.
            height: of the window, pixels.
            width: likewise.
        """
        factor = WINDOW_SCALE / interocular_px
        turn = factor * np.array([[np.cos(roll), np.sin(roll)], [-np.sin(roll), np.cos(roll)]])
        middle = np.array([(width - 1) / 2, (height - 1) / 2])
        offset = middle - turn @ lips[:, :2].mean(axis=0)
        return cls(np.concatenate([turn, offset[:, None]], axis=1), height, width)

    def after(self, crop: Floats) -> MouthWindow:
        """The same window for a crop of the picture; `crop` `[2, 3]` maps pixels of the picture to those of it."""
        turn = self.matrix[:, :2] @ np.linalg.inv(crop[:, :2])
        return replace(self, matrix=np.concatenate([turn, (self.matrix[:, 2] - turn @ crop[:, 2])[:, None]], axis=1))

    def points(self, points: Floats) -> Floats:
        """Points `[..., 2 or more]` of the picture in pixels of the window, `[..., 2]`."""
        moved: Floats = points[..., :2] @ self.matrix[:, :2].T + self.matrix[:, 2]
        return moved

    def cut_map(self, values: Floats, matrix: Floats) -> Floats:
        """The window `[height, width]` of numbers `[h, w]` float32, interpolated, 0 beyond them.

        Args:
            values: of a grid of their own.
            matrix: `[2, 3]`, from its cells to pixels of the picture.
        """
        turn = self.matrix[:, :2] @ matrix[:, :2]
        offset = self.matrix[:, :2] @ matrix[:, 2] + self.matrix[:, 2]
        there, size = np.concatenate([turn, offset[:, None]], axis=1), (self.width, self.height)
        window: Floats = np.asarray(cv2.warpAffine(values, there, size, flags=cv2.INTER_LINEAR), np.float32)
        return window

    def paste(self, picture: Picture, window: Floats, mask: Floats) -> None:
        """Put a window back.

        Args:
            picture: `[H, W, 3]`, changed in place where the mask is.
            window: `[height, width, 3]`, grey levels.
            mask: `[height, width]`, 0..1; outside it the picture stays as it is to the bit.
        """
        rows, columns = np.nonzero(mask > 0)
        if not len(rows):
            return
        corners = np.array(
            [[x, y] for x in (columns.min() - 1, columns.max() + 1) for y in (rows.min() - 1, rows.max() + 1)]
        )
        there = (corners - self.matrix[:, 2]) @ np.linalg.inv(self.matrix[:, :2]).T
        left, top = np.maximum(np.floor(there.min(axis=0)).astype(int), 0)
        right, bottom = np.minimum(np.ceil(there.max(axis=0)).astype(int) + 1, (picture.shape[1], picture.shape[0]))
        if right <= left or bottom <= top:
            return
        # From pixels of the picture's part to pixels of the window: the warp looks up in that direction.
        look = self.matrix.copy()
        look[:, 2] += look[:, :2] @ (left, top)
        flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        size = (int(right - left), int(bottom - top))
        pixels = cv2.warpAffine(window.astype(np.float32), look, size, flags=flags, borderMode=cv2.BORDER_REPLICATE)
        share = cv2.warpAffine(mask.astype(np.float32), look, size, flags=flags)[..., None]
        part = picture[top:bottom, left:right]
        part[:] = np.clip(part + share * (pixels - part) + 0.5, 0, 255).astype(np.uint8)

    def cut(self, picture: Picture) -> Picture:
        """The window `[height, width, 3]` of a picture `[H, W, 3]`; what lies outside repeats its edge."""
        matrix = self.matrix
        factor = float(np.hypot(matrix[0, 0], matrix[0, 1]))
        if factor < 1:  # shrink by area first: sampling alone would alias
            picture, matrix = self._near(picture)
            rows, columns = picture.shape[:2]
            h, w = max(1, round(rows * factor)), max(1, round(columns * factor))
            picture = np.asarray(cv2.resize(picture, (w, h), interpolation=cv2.INTER_AREA), np.uint8)
            x, y = columns / w, rows / h
            matrix = matrix @ np.array([[x, 0, (x - 1) / 2], [0, y, (y - 1) / 2], [0, 0, 1]])
        window = cv2.warpAffine(
            picture, matrix, (self.width, self.height), flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE
        )
        return np.asarray(window, np.uint8)

    def _near(self, picture: Picture) -> tuple[Picture, Floats]:
        """The part of a picture that the window shows, and the window's matrix for it."""
        turn = np.linalg.inv(self.matrix[:, :2])
        corners = np.array([(x, y) for x in (0, self.width) for y in (0, self.height)]) - self.matrix[:, 2]
        there = corners @ turn.T
        most = np.array(picture.shape[1::-1]) - 1
        left, top = np.clip(np.floor(there.min(0)) - REACH, 0, most).astype(int)
        right, bottom = np.clip(np.ceil(there.max(0)) + REACH, 0, most).astype(int) + 1
        matrix = self.matrix.copy()
        matrix[:, 2] += matrix[:, :2] @ (left, top)
        return picture[top:bottom, left:right], matrix


def window_size(lips: Floats) -> tuple[int, int]:
    """Height and width of the smallest window that shows inner lips `[K, 2]` and `MARGIN` around them.

    Lips that are too large for all of them get the largest.
    """
    width, height = STEP * np.ceil((np.ptp(lips[:, :2], axis=0) + 2 * MARGIN) / STEP).astype(int)
    return (
        int(np.clip(height, LEAST_HEIGHT, WINDOW_HEIGHT)),
        int(np.clip(width, LEAST_WIDTH, WINDOW_WIDTH)),
    )


def inner_lips(points: Floats, between: int = 6) -> Floats:
    """A smooth line once around the inner lips of the 68 points `[68, 2 or more]`: `[8 * between, 2]`.

    Catmull-Rom splines from corner to corner (Catmull and Rom, 1974): lips are round, their corners are not.
    """
    ring = points[INNER_LIP, :2]
    t = np.arange(between)[:, None] / between
    parts = []
    for n in range(len(ring)):
        a, b = ring[n], ring[(n + 1) % len(ring)]
        before = a if n in LIP_CORNERS else ring[n - 1]
        after = b if (n + 1) % len(ring) in LIP_CORNERS else ring[(n + 2) % len(ring)]
        slopes = (b - before) / 2, (after - a) / 2
        parts.append(
            (2 * t**3 - 3 * t**2 + 1) * a
            + (t**3 - 2 * t**2 + t) * slopes[0]
            + (3 * t**2 - 2 * t**3) * b
            + (t**3 - t**2) * slopes[1]
        )
    return np.concatenate(parts)


def lip_mask(lips: Floats, height: int = WINDOW_HEIGHT, width: int = WINDOW_WIDTH, grow: float = 2.0) -> Floats:
    """What lies between the lips, `[height, width]` float32: 1 inside, 0 outside, soft by about a pixel.

    Args:
        lips: polygon `[K, 2]`, pixels of the window.
        height: of the window.
        width: likewise.
        grow: how far (pixels) the mask reaches beyond the polygon, or with a minus sign ends within it.
    """
    inside = np.zeros((height, width), np.uint8)
    cv2.fillPoly(inside, [np.round(lips * (1 << SHIFT)).astype(np.int32)], 1, shift=SHIFT)
    # Signed distance of pixel centres from the edge. OpenCV fills the pixels that the edge crosses: they count half.
    distance = cv2.distanceTransform(inside, cv2.DIST_L2, 5) - cv2.distanceTransform(1 - inside, cv2.DIST_L2, 5)
    mask: Floats = np.clip(distance - 0.5 * np.sign(distance) + grow, 0, 1).astype(np.float32)
    return mask
