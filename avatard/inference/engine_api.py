"""What the pipeline expects of an engine, and what an engine gives it: the boundary between streaming and networks."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from avatard.config import Config
from avatard.playout.ring import Samples


class EngineError(ValueError):
    """An engine cannot do what the user asks of it, and no restart cures that: weights, portrait, configuration.

    One line. Any other exception of an engine is a bug.
    """


@dataclass(frozen=True, slots=True)
class Picture:
    """One generated frame."""

    pixels: NDArray[np.uint8]  # [H, W, 3] RGB
    landmarks: NDArray[np.float32]  # [68, 3], iBUG points of the frontal face, IOD units
    blendshapes: NDArray[np.float32]  # [52], ARKit order
    head: NDArray[np.float32]  # [8]: quaternion x, y, z, w; translation x, y, z in IOD from the centre; pixels per IOD


class Take(Protocol):
    """One unbroken run of both streams: `move` is called by the motion thread, `draw` by the video thread."""

    def move(self, samples: Samples) -> Iterable[Any]:
        """Take the next samples; gives what `draw` wants, as soon as it is known."""

    def draw(self, motion: Any) -> Iterable[tuple[int, list[Picture]]]:
        """Turn motion into pictures, by the absolute number of their first frame."""


class Engine(Protocol):
    """The two networks and a portrait."""

    delay_frames: int  # frames held back beyond hop and fade

    def identify(self, portrait: Path, face: int = 0) -> tuple[str, Picture]:
        """Use this portrait from the next `begin` on: its digest, and itself as a picture at rest.

        Args:
            portrait: a picture file.
            face: which face in it, counted from the left and from 1; 0 is its only one.

        Raises:
            EngineError: the portrait cannot be used.
        """

    def begin(self, first_frame: int, rehearsal: bool = False) -> Take:
        """A new take from this frame on; a rehearsal is seen by nobody, and the portrait has not moved after it.

        May be called while another thread is in `identify`.

        Raises:
            EngineError: the configuration does not fit the networks.
        """

    def effort(self, motion_steps: int, video_steps: int, stride: int) -> None:
        """How much work to put in.

        Args:
            motion_steps: denoising steps of the motion network from the next clip on.
            video_steps: the same of the video network.
            stride: from the next `begin` on, frames that show the same pixels: 1 for each frame its own.
        """


#: Loads the networks. Raises `EngineError` where their weights are missing or do not fit.
MakeEngine: TypeAlias = Callable[[Config], Engine]
