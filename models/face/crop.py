"""The aligned square in which every portrait and video is seen: fixed face size, no roll, eyes at a fixed place."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray

from avatard.models.face.pose import Pose
from avatard.timebase import CROP_SIDE

#: Forehead to chin of the mean face in interocular distances.
FACE_HEIGHT: Final = 2.64
#: Pixels per interocular distance, so that forehead to chin take 60 % of the side.
CROP_SCALE: Final = 0.6 * CROP_SIDE / FACE_HEIGHT
#: Where the canonical origin, midway between the eyes, falls.
CROP_ORIGIN: Final = (128.0, 108.0)

#: Standard deviation of the blur of what an image does not show, and how far out it is complete, in pixels of 256².
BLUR: Final = 8.0
BLUR_REACH: Final = 16.0


@dataclass(frozen=True)
class Crop:
    """A similarity from image pixels to pixels of the square."""

    matrix: NDArray[np.floating]  # [2, 3]

    @classmethod
    def of(cls, pose: Pose) -> Crop:
        """The crop that stands still around a face, from its pose (or its median over poses `[N]`)."""
        angles = pose.yaw_pitch_roll.reshape(-1, 3)
        roll = np.radians(np.median(angles[:, 2]))
        factor = CROP_SCALE / np.median(pose.scale)
        turn = factor * np.array([[np.cos(roll), np.sin(roll)], [-np.sin(roll), np.cos(roll)]])
        centre = np.median(pose.translation.reshape(-1, 2), axis=0)
        return cls(np.concatenate([turn, (np.array(CROP_ORIGIN) - turn @ centre)[:, None]], axis=1))

    @property
    def factor(self) -> float:
        """Pixels of the square per pixel of the image."""
        return float(np.hypot(self.matrix[0, 0], self.matrix[0, 1]))

    def image(self, image: NDArray[np.uint8], side: int = CROP_SIDE) -> NDArray[np.uint8]:
        """The square `[side, side, 3]` of an image `[H, W, 3]`: the same part of it at any side.

        What lies outside the image is its reflection, the more blurred the farther out.
        """
        scale = side / CROP_SIDE
        matrix, factor = scale * self.matrix, scale * self.factor
        matrix[:, 2] += (scale - 1) / 2  # whole numbers are pixel centres
        if factor < 1:  # shrink by area first: sampling alone would alias
            height, width = image.shape[:2]
            w, h = max(1, round(width * factor)), max(1, round(height * factor))
            image = cv2.resize(image, (w, h), interpolation=cv2.INTER_AREA).astype(np.uint8, copy=False)
            shrink = np.array([[width / w, 0, (width / w - 1) / 2], [0, height / h, (height / h - 1) / 2], [0, 0, 1]])
            matrix = matrix @ shrink
        square = cv2.warpAffine(image, matrix, (side, side), flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REFLECT_101)
        return _blurred_outside(np.asarray(square, np.uint8), matrix, image.shape)

    def points(self, points: NDArray[np.floating]) -> NDArray[np.floating]:
        """Points `[..., K, 3]` of the image (x, y, relative depth) in pixels of the square."""
        moved = np.empty_like(points)
        moved[..., :2] = points[..., :2] @ self.matrix[:, :2].T + self.matrix[:, 2]
        moved[..., 2] = points[..., 2] * self.factor
        return moved


def _blurred_outside(
    square: NDArray[np.uint8], matrix: NDArray[np.floating], shape: tuple[int, ...]
) -> NDArray[np.uint8]:
    """The square with what an image of a shape does not show blurred."""
    side = len(square)
    there = np.linalg.inv(matrix[:, :2])
    y, x = np.mgrid[:side, :side]
    seen = (np.stack([x, y], -1) - matrix[:, 2]) @ there.T
    beyond = np.maximum(-seen, seen - np.array([shape[1] - 1, shape[0] - 1])).max(axis=-1)
    distance = beyond * np.hypot(matrix[0, 0], matrix[0, 1])  # pixels of the square
    if distance.max() <= 0:
        return square
    scale = side / CROP_SIDE
    share = np.clip(distance / (scale * BLUR_REACH), 0, 1)[..., None]
    blurred = cv2.GaussianBlur(square, (0, 0), scale * BLUR)
    mixed: NDArray[np.uint8] = np.rint(square * (1 - share) + blurred * share).astype(np.uint8)
    return mixed
