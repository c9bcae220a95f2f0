"""The boundary between streaming and networks: what the inference process asks of an engine, and what it gets."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Generic, Protocol, TypeAlias, TypeVar

from avatard.config import Config
from avatard.errors import UserError
from avatard.frame import Frame, Samples
from avatard.portrait import Portrait


class Piece(Protocol):
    """What one stage hands to the next: something of consecutive frames."""

    @property
    def first(self) -> int:
        """Absolute number of the first of them."""
        ...


#: What the motion network hands to the video network, and what that hands to the renderer.
M = TypeVar("M", bound=Piece)
C = TypeVar("C", bound=Piece)


class EngineError(UserError):
    """An engine cannot do what the user asks of it, and no restart cures that: weights, portrait, configuration."""

    CODE = "engine"


#: Entered around each named part of the work; a benchmark measures with it.
Timer: TypeAlias = Callable[[str], AbstractContextManager[None]]


def untimed(part: str) -> AbstractContextManager[None]:
    """The timer that measures nothing."""
    return nullcontext()


class Stream(Protocol, Generic[M, C]):
    """One unbroken run of both networks, in three stages that may run side by side.

    Each method is called by one thread at a time, and is given in order all that the stage before yields. An iterable
    is used up before the method is called again, or the stream is given up. Between two things that it yields, other
    streams may have their turn, and another thread may go on with it.
    """

    def motion(self, samples: Samples) -> Iterable[M]:
        """Take the next samples; yield what `generate` needs, as soon as it is known."""

    def generate(self, motion: M) -> Iterable[C]:
        """Run the video network; yield the clips that this motion completes, for `render`."""

    def render(self, clip: C) -> Iterable[tuple[int, list[Frame]]]:
        """Turn a clip into frames; yield runs of them with the absolute number of their first frame."""


class Engine(Protocol):
    """The two networks and a portrait: one room."""

    timer: Timer  # of the streams that begin from now on

    @property
    def at_once(self) -> int:
        """Rooms that each stage should serve at the same time: 1 where nothing is gained by more."""

    def another(self, config: Config) -> Engine:
        """An engine for another room: the same networks where the configuration allows it, and no portrait yet.

        Raises:
            UserError: the configuration cannot be used.
        """

    def identify(self, portrait: Portrait) -> tuple[str, Frame]:
        """Use this portrait from the next `begin` on; return its digest, and itself as a frame at rest.

        Raises:
            UserError: the portrait cannot be used.
        """

    def begin(self, first_frame: int, warm_up: bool = False) -> Stream[Any, Any]:
        """Start a new stream at this frame.

        The frames of a warm-up are discarded: the next stream still starts from the portrait's own expression.
        May be called while another thread is in `identify`. Streams may run side by side: on a GPU, those that are used
        by different threads share passes of the networks.

        Raises:
            UserError: the configuration does not fit the networks.
        """

    def set_quality(self, motion_steps: int, video_steps: int, frame_stride: int, size_divisor: int = 1) -> None:
        """Set how much work a frame may cost.

        Args:
            motion_steps: denoising steps of the motion network from the next clip on.
            video_steps: the same of the video network.
            frame_stride: from the next `begin` on, consecutive frames that show the same pixels; 1 renders every frame.
            size_divisor: from the next `begin` on, 2 composes pictures at half their size and enlarges them.
        """


#: Loads the networks. Raises `UserError` where their weights are missing or do not fit.
MakeEngine: TypeAlias = Callable[[Config], Engine]
