"""Pictures on the wire."""

from collections.abc import Mapping
from typing import Final, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

Encoding = Literal["jpeg", "png", "rgb24", "rgba32"]


class ImageFormat(msgspec.Struct, frozen=True):
    """How frames are encoded; `quality` (1-100) is JPEG's."""

    enc: Encoding = "jpeg"
    quality: int = 85


#: Channels that each encoding can carry; four are RGB and straight alpha.
CHANNELS: Final[Mapping[Encoding, tuple[int, ...]]] = {"jpeg": (3,), "png": (3, 4), "rgb24": (3,), "rgba32": (4,)}


def encode_image(picture: NDArray[np.uint8], image_format: ImageFormat) -> bytes:
    """A picture uint8 [h, w, 3], or [h, w, 4] with straight alpha, as a JPEG or PNG file, or as its plain rows.

    Raises:
        ValueError: the picture has another shape or type than the encoding can carry.
    """
    known = CHANNELS[image_format.enc]
    if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] not in known:
        expected = f"uint8 [h, w, {' or '.join(map(str, known))}]"
        raise ValueError(f"got a picture {picture.dtype} {list(picture.shape)}, expected {expected}")
    if image_format.enc in ("rgb24", "rgba32"):
        return picture.tobytes()
    import cv2  # 0.1 s, and nobody may ever subscribe to video

    if image_format.enc == "jpeg":
        suffix, options = ".jpg", [cv2.IMWRITE_JPEG_QUALITY, image_format.quality]
    else:
        # Run lengths at level 1: 3 ms a 256 x 256 frame and as small as the slower levels make a photograph.
        suffix = ".png"
        options = [cv2.IMWRITE_PNG_COMPRESSION, 1, cv2.IMWRITE_PNG_STRATEGY, cv2.IMWRITE_PNG_STRATEGY_RLE]
    order = cv2.COLOR_RGB2BGR if picture.shape[2] == 3 else cv2.COLOR_RGBA2BGRA
    _, data = cv2.imencode(suffix, cv2.cvtColor(picture, order), options)
    return data.tobytes()


def decode_image(data: bytes, enc: Encoding, shape: tuple[int, int, int]) -> NDArray[np.uint8]:
    """The picture that `encode_image` made of one of `shape` [h, w, 3 or 4]."""
    stored = np.frombuffer(data, np.uint8)
    if enc in ("rgb24", "rgba32"):
        return stored.reshape(shape)
    import cv2

    picture = np.asarray(cv2.imdecode(stored, cv2.IMREAD_UNCHANGED))
    order = cv2.COLOR_BGRA2RGBA if shape[2] == 4 else cv2.COLOR_BGR2RGB
    return np.asarray(cv2.cvtColor(picture, order), np.uint8)
