"""What is behind the person: the photograph's own background, a colour or another picture."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray

from avatard.engine.plate import Plate
from avatard.errors import UserError
from avatard.media.image_file import ImageError, load_image
from avatard.models.face.matte import Matting, foreground

Pixels = NDArray[np.uint8]

#: Alpha of what is opaque.
FULL: Final = 255
#: Pixels around a transparent person that keep their colours.
BORDER: Final = 6


class BackgroundError(UserError):
    """A background that cannot be used."""

    CODE = "background"


def read_background(setting: str) -> Pixels | None:
    """The picture that `picture.background` names `[H, W, 3]`, of a colour a single pixel; None for words.

    Raises:
        BackgroundError: neither a word, nor a colour, nor a picture file.
    """
    if setting in ("keep", "transparent"):
        return None
    if setting.startswith("#"):
        if not re.fullmatch("#[0-9A-Fa-f]{6}", setting):
            raise BackgroundError(f"picture.background = {setting!r}: expected a colour such as #20A040")
        return np.frombuffer(bytes.fromhex(setting[1:]), np.uint8).reshape(1, 1, 3)
    if not Path(setting).exists():
        raise BackgroundError(
            f"picture.background = {setting!r}: no such file; expected keep, transparent, a colour such as #20A040 "
            "or a picture file"
        )
    try:
        return load_image(setting)
    except ImageError as error:
        raise BackgroundError(f"picture.background: {error}") from None


@dataclass(frozen=True)
class Background:
    """A colour, a picture or nothing behind every person."""

    picture: Pixels | None  # [H, W, 3] RGB; of a colour a single pixel; None: nothing, frames have alpha
    matting: Matting

    @classmethod
    def of(cls, setting: str) -> Background | None:
        """From `picture.background` of the configuration; None keeps the photograph's own.

        Raises:
            BackgroundError: neither a colour nor a picture file.
        """
        return None if setting == "keep" else cls(read_background(setting), Matting())

    def filled(self, width: int, height: int) -> Pixels | None:
        """A whole frame of it `[height, width, 3]`, unless there is nothing; a picture covers it, from its middle."""
        if self.picture is None:
            return None
        tall, wide = self.picture.shape[:2]
        if (tall, wide) == (1, 1):
            return np.tile(self.picture, (height, width, 1))
        factor = max(width / wide, height / tall)
        size = (max(width, round(wide * factor)), max(height, round(tall * factor)))
        method = cv2.INTER_AREA if factor < 1 else cv2.INTER_CUBIC
        large = cv2.resize(self.picture, size, interpolation=method)
        left, top = (size[0] - width) // 2, (size[1] - height) // 2
        return np.asarray(large[top : top + height, left : left + width], np.uint8)

    def cut(self, plate: Plate, alpha: Pixels | None, person: tuple[float, float]) -> Plate:
        """The person of a plate, without what was behind.

        Args:
            plate: of the photograph.
            alpha: how opaque the photograph's own pixels are, as the plate shows them, if it says so: its own cut.
            person: a point of the face in pixels of the frame.
        """
        x, y = person[0] - plate.left, person[1] - plate.top
        rgb = np.ascontiguousarray(plate.pixels[..., :3])
        matte = alpha.astype(np.float32) / np.float32(255) if alpha is not None else self.matting(rgb, (x, y))
        colours, alpha = foreground(rgb, matte), np.rint(255 * matte).astype(np.uint8)
        if self.picture is None:
            colours = _without_hidden(colours, alpha)
        return Plate(np.dstack([colours, alpha]), plate.left, plate.top)


def _without_hidden(colours: Pixels, alpha: Pixels) -> Pixels:
    """Colours `[H, W, 3]` with a flat one where alpha `[H, W]` hides them: the room behind a person is not passed on.

    A border is kept for filters and coarse chroma, which mix neighbours. The flat colour is the person's mean: it
    compresses to nothing, and shows least where it is mixed in all the same.
    """
    near = cv2.dilate((alpha > 0).view(np.uint8), np.ones((2 * BORDER + 1, 2 * BORDER + 1), np.uint8))
    shown = colours.copy()
    shown[near == 0] = np.rint(cv2.mean(colours, (alpha == FULL).view(np.uint8))[:3]).astype(np.uint8)
    return shown
