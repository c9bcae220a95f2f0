"""Media time: everything is indexed by absolute frame number, and this is the only module that reads a clock.

A track, socket or thread asks here when frame n is due; none counts its
own time, so that sound and picture cannot drift apart.
"""

import asyncio
import math
import time
from collections.abc import Callable

from avatard.timebase import FPS, FRAME_SECONDS


def monotonic() -> float:
    """Seconds that never go back, for durations and deadlines; the zero has no meaning."""
    return time.monotonic()


def thread_cpu() -> float:
    """CPU seconds that this thread has used."""
    return time.thread_time()


def process_cpu() -> float:
    """CPU seconds that this process has used."""
    return time.process_time()


def wall_us() -> int:
    """Microseconds since the Unix epoch, for what leaves the machine (message headers, sender reports)."""
    return time.time_ns() // 1_000


class MediaClock:
    """When is frame n due, and which frame is due now.

    The clock runs from the moment `start` is called. A session that was starved (the machine slept, the worker died)
    continues with `start` at the frame it wants to show next; frame numbers go on, only their due times move.

    Args:
        now: the clock that is read, in seconds; tests give their own.
    """

    def __init__(self, now: Callable[[], float] = monotonic) -> None:
        self._now = now
        self._zero: float | None = None

    @property
    def running(self) -> bool:
        """Whether `start` was called."""
        return self._zero is not None

    def start(self, frame: int = 0) -> None:
        """Make `frame` due now."""
        self._zero = self._now() - frame * FRAME_SECONDS

    def stop(self) -> None:
        """Stand still until the next `start`."""
        self._zero = None

    def due(self, frame: int) -> float:
        """When the frame is due, in the seconds of `now`.

        Raises:
            RuntimeError: when the clock was not started.
        """
        if self._zero is None:
            raise RuntimeError("the media clock was asked for a due time before it was started")
        return self._zero + frame * FRAME_SECONDS

    def frame(self) -> int:
        """The last frame that is due; negative before frame 0.

        Raises:
            RuntimeError: as `due`.
        """
        # The due time of a frame must count as that frame, whatever the rounding of n/25 was.
        return math.floor(self.lateness(0) * FPS + 1e-6)

    def lateness(self, frame: int) -> float:
        """Seconds since the frame was due; negative while it is in the future."""
        return self._now() - self.due(frame)

    async def until(self, frame: int) -> float:
        """Sleep until the frame is due, and return how many seconds late that is; return at once if it is late."""
        # A timer may fire early by its resolution, and a frame must not leave early.
        while (late := self.lateness(frame)) < 0:  # noqa: ASYNC110
            await asyncio.sleep(-late)
        return late
