"""Which frame is shown: generated ones, cross-faded where one epoch takes over from another."""

from __future__ import annotations

from dataclasses import replace
from enum import Enum, auto

import numpy as np

from avatard.frame import Frame, raised_cosine

REST_FRAMES = 10  # of quiet, then the mouth is closed


class State(Enum):
    """What the current epoch shows."""

    RESTING = auto()  # nobody watched, so its first frames cannot be there yet
    WAITING = auto()  # none of its frames is there yet: those of epochs before are shown
    BRIDGING = auto()  # as WAITING after an interrupt: a closed mouth is shown
    RUNNING = auto()  # its own frames, the first ones cross-faded with what was shown before


class FrameQueue:
    """Generated frames until they are due.

    Args:
        first_frame: of the first epoch.
        fade_frames: of a cross-fade between epochs.
    """

    def __init__(self, first_frame: int, fade_frames: int) -> None:
        self.newest = first_frame - 1  # the current epoch's frame that came last
        self.missed = 0  # frames in a row that the current epoch had nothing for in time
        self._fade_frames = fade_frames
        self._state = State.RESTING
        self._since = first_frame  # frame at which BRIDGING or RUNNING began
        self._fresh: dict[int, Frame] = {}  # of the current epoch
        self._stale: dict[int, Frame] = {}  # of epochs before, shown until the current one has frames
        self._last: Frame | None = None  # shown last
        self._closed: Frame | None = None  # this person with a mouth that has been quiet for a while
        self._quiet = 0  # frames since the last speech

    def ahead(self, next_frame: int) -> int:
        """How many frames wait for `next_frame` or a later one."""
        return sum(index >= next_frame for index in self._fresh)

    def settled(self, next_frame: int) -> bool:
        """Whether a cross-fade is over: into the current epoch, or after an interrupt into a closed mouth."""
        return self._state in (State.BRIDGING, State.RUNNING) and next_frame - self._since > self._fade_frames

    def add(self, index: int, frame: Frame) -> None:
        """Keep a frame of the current epoch until it is due."""
        self._fresh[index] = frame

    def show(self, frame: Frame) -> None:
        """Show this until there is another."""
        self._last = frame

    def restart(self, first: int) -> None:
        """Begin a new epoch with frame `first`; until then what is there is shown."""
        self._stale |= self._fresh
        self._fresh = {}
        self._state = self._state if self._state is State.RESTING else State.WAITING
        self.newest = first - 1
        self.missed = 0

    def pause(self) -> None:
        """Nobody watches any more: what is there will be of no use."""
        self._stale, self._fresh, self._state = {}, {}, State.RESTING

    def forget_face(self) -> None:
        """Another person is shown from the next epoch on."""
        self._closed = None

    def close_mouth(self, first: int) -> None:
        """Show a closed mouth from frame `first` until the epoch has frames.

        A clip takes longer than a mouth may go on moving without a sound.
        """
        if self._closed is not None:
            self._state, self._since = State.BRIDGING, first

    def take(self, index: int, quiet: bool) -> tuple[Frame | None, bool]:
        """Take the frame to show; to be called once for each.

        Args:
            index: the frame's number.
            quiet: whether nothing is said in it.

        Returns:
            The frame, `None` before there was one; and whether it was shown before because the right one was not there
            in time.
        """
        fresh, stale = self._fresh.pop(index, None), self._stale.pop(index, None)
        self.missed = 0 if fresh is not None else self.missed + 1
        late = self._state is not State.RESTING
        frame = self._choose(index, fresh, stale)
        self._last = frame if frame is not None else self._last
        self._quiet = self._quiet + 1 if quiet else 0
        if fresh is not None and self._quiet > REST_FRAMES:
            self._closed = fresh
        return self._last, frame is None and late

    def _choose(self, index: int, fresh: Frame | None, stale: Frame | None) -> Frame | None:
        """The new epoch's frame or, after an interrupt, a closed mouth; cross-faded with what was there."""
        before = stale if stale is not None else self._last
        if fresh is not None:
            if self._state is not State.RUNNING:
                before = self._last if self._state is State.BRIDGING else before
                self._state, self._since = State.RUNNING, index
            return self._fade(before, fresh, index)
        if self._state is State.BRIDGING and self._closed is not None:
            return self._fade(before, self._closed, index)
        return None if self._state is State.RUNNING else stale

    def _fade(self, before: Frame | None, after: Frame, index: int) -> Frame:
        """A frame of the cross-fade that began at `self._since`, by a raised cosine."""
        step = index - self._since + 1
        if step > self._fade_frames or before is None or before.pixels.shape != after.pixels.shape:
            self._stale.clear()
            return after
        weight = np.float32(raised_cosine(np.array(step / (self._fade_frames + 1))))
        mixed = before.pixels * (1 - weight) + after.pixels * weight
        return replace(
            after,
            pixels=np.rint(mixed).astype(np.uint8),
            landmarks=before.landmarks * (1 - weight) + after.landmarks * weight,
            blendshapes=before.blendshapes * (1 - weight) + after.blendshapes * weight,
        )
