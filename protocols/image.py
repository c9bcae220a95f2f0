"""Pictures on the wire."""

from typing import Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

Encoding = Literal["jpeg", "png", "rgb24"]


class ImageFormat(msgspec.Struct, frozen=True):
    """How frames are encoded; `quality` (1-100) is JPEG's."""

    enc: Encoding = "jpeg"
    quality: int = 85


def encode_image(rgb: NDArray[np.uint8], image_format: ImageFormat) -> bytes:
    """A picture uint8 [h, w, 3] as a JPEG or PNG file, or as its plain rows.

    Raises:
        ValueError: the picture has another shape or type.
    """
    if rgb.dtype != np.uint8 or rgb.ndim != 3 or rgb.shape[2] != 3:
        raise ValueError(f"got a picture {rgb.dtype} {list(rgb.shape)}, expected uint8 [h, w, 3]")
    if image_format.enc == "rgb24":
        return rgb.tobytes()
    import cv2  # 0.1 s, and nobody may ever subscribe to video

    if image_format.enc == "jpeg":
        suffix, options = ".jpg", [cv2.IMWRITE_JPEG_QUALITY, image_format.quality]
    else:
        # Run lengths at level 1: 3 ms a 256 x 256 frame and as small as the slower levels make a photograph.
        suffix = ".png"
        options = [cv2.IMWRITE_PNG_COMPRESSION, 1, cv2.IMWRITE_PNG_STRATEGY, cv2.IMWRITE_PNG_STRATEGY_RLE]
    _, data = cv2.imencode(suffix, cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR), options)
    return data.tobytes()
