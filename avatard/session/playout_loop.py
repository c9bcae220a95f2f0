"""The play-out: every frame leaves when it is due, to everybody who watches, and nothing is played for nobody."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import Protocol

from avatard.clock import MediaClock
from avatard.playout.scheduler import PlayoutFrame, Scheduler
from avatard.timebase import FPS

logger = logging.getLogger(__name__)

TICK_SECONDS = 0.01
STARVED_FRAMES = 25  # later than this the clock moves, instead of every frame being sent at once
WAIT_SECONDS = 0.1  # for a frame, where none may come


class Sink(Protocol):
    """Somewhere that frames go."""

    def play(self, entry: PlayoutFrame) -> None:
        """Take a frame that is due now; must not block."""


class Host(Protocol):
    """Whose frames are played."""

    def wants_frames(self) -> bool:
        """Whether to play."""

    def before_frame(self) -> None:
        """Called at every tick while frames are played."""

    def frame_played(self, entry: PlayoutFrame) -> None:
        """Called with each frame, before the sinks."""


class PlayoutLoop:
    """Plays while it is wanted.

    Args:
        scheduler: what is played when.
        clock: the media clock.
        host: says whether to play, and is told of each frame.
    """

    def __init__(self, scheduler: Scheduler, clock: MediaClock, host: Host) -> None:
        self.sinks: list[Sink] = []
        self._scheduler = scheduler
        self._clock = clock
        self._host = host
        self._wake = asyncio.Event()
        self._played = asyncio.Event()

    def wake(self) -> None:
        """Look again whether to play."""
        self._wake.set()

    async def next_frame(self) -> None:
        """Wait until a frame was played, or a moment where none is."""
        played = self._played
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(WAIT_SECONDS):
                await played.wait()

    async def run(self) -> None:
        """Play for ever."""
        while True:
            self._wake.clear()
            if not self._host.wants_frames():
                await self._wake.wait()
            try:
                await self._play_while_wanted()
            except Exception:
                # Whatever it was, an avatar that stands still for a moment is better than none.
                logger.exception("play-out failed")
                await asyncio.sleep(1)

    async def _play_while_wanted(self) -> None:
        scheduler, clock = self._scheduler, self._clock
        clock.start(scheduler.next_frame)
        scheduler.resume(self.position)
        while self._host.wants_frames():
            # First: the sound up to a position that nobody will hear would push out what was not played yet.
            self._move_late_clock()
            self._host.before_frame()
            self._play_due()
            due = -clock.lateness(scheduler.next_frame)
            await asyncio.sleep(max(0.0, min(TICK_SECONDS, due)))
        scheduler.interrupt(self.position)
        clock.stop()

    @property
    def playing(self) -> bool:
        """Whether frames are being played."""
        return self._clock.running

    @property
    def position(self) -> float:
        """The play position in frames; never so late that the clock is about to move."""
        clock, following = self._clock, self._scheduler.next_frame
        return min(clock.lateness(0) * FPS, following + STARVED_FRAMES) if clock.running else float(following)

    def _move_late_clock(self) -> None:
        """Go on where the play-out stopped, as after a suspended machine."""
        scheduler, clock = self._scheduler, self._clock
        behind = clock.frame() - scheduler.next_frame
        if behind > STARVED_FRAMES:
            logger.warning("play-out stalled, clock moved", extra={"frames": behind})
            clock.start(scheduler.next_frame)

    def _play_due(self) -> None:
        """Play one frame if it is due: where frames take longer than they last, others must have their turn too."""
        scheduler, clock = self._scheduler, self._clock
        if scheduler.next_frame > clock.frame():
            return
        entry = scheduler.play(self.position)
        self._host.frame_played(entry)
        for sink in list(self.sinks):
            sink.play(entry)
        self._played.set()
        self._played = asyncio.Event()
