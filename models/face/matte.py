"""Which pixels of a photograph are a person's: MediaPipe's selfie segmentation on LiteRT, refined along edges.

Source: Google, "MediaPipe Selfie Segmentation" (model card, 2021), the general model; He, Sun and Tang, "Guided Image
Filtering" (2013).
"""

from __future__ import annotations

from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray

from avatard.models.checkpoint import verified
from avatard.models.face.mesh import LiteRtNetwork

Pixels = NDArray[np.uint8]
Floats = NDArray[np.float32]

SIDE: Final = 256
#: Radius of the guided filter, of the picture's longer side; its smoothing (luminance 0 to 1).
RADIUS_SHARE: Final = 0.008
SMOOTHING: Final = 1e-4
#: What the filter leaves below the first of these is background, above the second the person.
CLEAR: Final = (0.2, 0.95)


class Matting:
    """The network; load it once."""

    def __init__(self) -> None:
        self._network = LiteRtNetwork(verified("selfie_segmentation.tflite"))

    def __call__(self, picture: Pixels, inside: tuple[float, float]) -> Floats:
        """The share `[H, W]`, 0 to 1, of a person in each pixel of a picture `[H, W, 3]`.

        Args:
            picture: RGB, head and shoulders large in it.
            inside: a point of the person, x and y: what is not connected with it is somebody else.
        """
        height, width = picture.shape[:2]
        small = cv2.resize(picture, (SIDE, SIDE), interpolation=cv2.INTER_AREA).astype(np.float32) / np.float32(255)
        rough = self._network(small)[0][0, :, :, 0]
        rough = rough * _connected(rough, (inside[0] * SIDE / width, inside[1] * SIDE / height))
        matte = np.asarray(cv2.resize(rough, (width, height), interpolation=cv2.INTER_LINEAR), np.float32)
        luma = np.asarray(cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY), np.float32) / np.float32(255)
        refined = _guided(luma, matte, max(2, round(RADIUS_SHARE * max(height, width))))
        low, high = CLEAR
        return np.asarray(np.clip((refined - low) / (high - low), 0, 1), np.float32)


def foreground(picture: Pixels, matte: Floats) -> Pixels:
    """A picture `[H, W, 3]` whose half-transparent pixels have the person's colours, without the background's."""
    # A pixel or two inside what is certain: there the background has left no trace.
    sure = cv2.erode((matte > 0.95).astype(np.float32), np.ones((5, 5), np.uint8))
    if not sure.any():
        sure = (matte > 0.95).astype(np.float32)
    colours, known = picture.astype(np.float32), sure[..., None]
    filled = colours * known
    weight = sure
    # Colours spread outwards, the nearest first.
    for sigma in (1.0, 2.0, 4.0, 8.0, 16.0):
        blurred = cv2.GaussianBlur(colours * known, (0, 0), sigma)
        reach = cv2.GaussianBlur(sure, (0, 0), sigma)
        new = (weight == 0) & (reach > 0.02)
        filled[new] = (blurred / np.maximum(reach, 1e-6)[..., None])[new]
        weight = np.maximum(weight, new)
    filled[weight == 0] = colours[weight == 0]
    return np.asarray(np.rint(filled).clip(0, 255), np.uint8)


def _connected(matte: Floats, inside: tuple[float, float]) -> NDArray[np.bool_]:
    """What of a matte `[H, W]` is connected with a point, and its soft border; all of it where the point is outside."""
    count, labels = cv2.connectedComponents((matte > 0.3).astype(np.uint8))
    x, y = (min(max(int(v), 0), side - 1) for v, side in zip(inside, matte.shape[::-1], strict=True))
    if count < 2 or not labels[y, x]:
        return np.ones(matte.shape, bool)
    grown = cv2.dilate((labels == labels[y, x]).astype(np.uint8), np.ones((5, 5), np.uint8))
    return np.asarray(grown > 0)


def _guided(guide: Floats, matte: Floats, radius: int) -> Floats:
    """A matte that follows the edges of its guide (both `[H, W]`)."""

    def mean(values: Floats) -> Floats:
        return np.asarray(cv2.blur(values, (2 * radius + 1, 2 * radius + 1)), np.float32)

    of_guide, of_matte = mean(guide), mean(matte)
    covariance = mean(guide * matte) - of_guide * of_matte
    slope = covariance / (mean(guide * guide) - of_guide**2 + SMOOTHING)
    return np.asarray(mean(slope) * guide + mean(of_matte - slope * of_guide), np.float32)
