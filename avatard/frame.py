"""A generated frame, the sound it is made from, and the weights by which two of them are blended."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from avatard.timebase import PLAYBACK_RATIO

#: Mono sound, float32 `[T]` in [-1, 1]; at 16 kHz unless a rate is named.
Samples: TypeAlias = NDArray[np.float32]

#: Side of a chequer in pixels, and the greys of both kinds.
CHEQUER = 16
CHEQUERS = (204, 240)


@dataclass(frozen=True, slots=True)
class HeadPose:
    """Where a head is: scaled orthographic projection (POS), as it goes over the wire."""

    quaternion: tuple[float, float, float, float]  # x, y, z, w
    translation: tuple[float, float, float]  # from the picture's centre, in interocular distances (IOD)
    scale: float  # pixels per IOD


class Rectangle(NamedTuple):
    """Part of a frame, in pixels; all even, so that subsampled chroma has whole pixels in it."""

    left: int
    top: int
    width: int
    height: int

    @property
    def slices(self) -> tuple[slice, slice]:
        """Rows and columns."""
        return slice(self.top, self.top + self.height), slice(self.left, self.left + self.width)


@dataclass(frozen=True, slots=True)
class Backdrop:
    """What stands still behind the frames of a person: only a rectangle of them is ever computed, sent and copied."""

    pixels: NDArray[np.uint8]  # as `Frame.pixels`: the frame at rest; never written to
    moving: Rectangle  # what may differ from it

    def with_moved(self, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """A whole frame from the moving part of it."""
        whole = self.pixels.copy()
        whole[self.moving.slices] = pixels
        return whole


@dataclass(frozen=True, slots=True)
class Frame:
    """One generated frame."""

    pixels: NDArray[np.uint8]  # [H, W, 3] RGB; [H, W, 4] with straight alpha where the background is transparent
    landmarks: NDArray[np.float32]  # [68, 3], iBUG points of the frontal face, IOD units
    blendshapes: NDArray[np.float32]  # [52], ARKit order
    head: HeadPose
    backdrop: Backdrop | None = None  # what `pixels` was put together with, if only part of it moves

    @property
    def rgb(self) -> NDArray[np.uint8]:
        """What is shown where alpha is not understood, `[H, W, 3]`: the person over a chequered grey."""
        return self.pixels if self.pixels.shape[2] == 3 else over_chequers(self.pixels)


@dataclass(frozen=True, slots=True)
class Sound:
    """The same sound at two rates, in step: what the networks hear, and what viewers hear."""

    speech: Samples  # [T], 16 kHz
    playback: Samples  # [3 T], 48 kHz

    @classmethod
    def of_speech(cls, speech: Samples) -> Sound:
        """Sound that only the networks hear; each sample is held for playback."""
        return cls(speech, np.repeat(speech, PLAYBACK_RATIO))

    def __len__(self) -> int:
        """Samples at 16 kHz."""
        return len(self.speech)

    def then(self, after: Sound) -> Sound:
        """This sound, and `after` behind it."""
        return Sound(np.concatenate([self.speech, after.speech]), np.concatenate([self.playback, after.playback]))

    def part(self, start: int, end: int | None = None) -> Sound:
        """Samples [start, end), counted at 16 kHz."""
        last = len(self) if end is None else end
        return Sound(self.speech[start:last], self.playback[PLAYBACK_RATIO * start : PLAYBACK_RATIO * last])


def over_chequers(rgba: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """A picture with straight alpha `[H, W, 4]` over the pattern that image editors show for nothing, `[H, W, 3]`."""
    y, x = (np.arange(side) // CHEQUER for side in rgba.shape[:2])
    behind = np.where((y[:, None] + x) % 2, *CHEQUERS).astype(np.uint16)[..., None]
    alpha = rgba[..., 3:].astype(np.uint16)
    # At most 255 · 255 + 128, which 16 bits hold; the shifts divide by 255, exactly and faster than a division.
    mixed = rgba[..., :3] * alpha + (behind * (255 - alpha) + 128)
    mixed += mixed >> 8
    shown: NDArray[np.uint8] = (mixed >> 8).astype(np.uint8)
    return shown


def raised_cosine(phase: NDArray[np.floating]) -> NDArray[np.floating]:
    """Blend weights that rise smoothly from 0 at phase 0 to 1 at phase 1; constant outside."""
    weights: NDArray[np.floating] = (1 - np.cos(np.pi * np.clip(phase, 0, 1))) / 2
    return weights
