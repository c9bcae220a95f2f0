"""Which picture a frame shows: generated ones, cross-faded where one epoch takes over from another."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from avatard.frame import Frame

REST_FRAMES = 10  # of quiet, then the mouth is closed


class FrameQueue:
    """Generated pictures until their frame is due.

    Args:
        first_frame: of the first epoch.
        fade_frames: of a cross-fade between epochs.
    """

    def __init__(self, first_frame: int, fade_frames: int) -> None:
        self.newest = first_frame - 1  # frame of the current epoch that a picture came for last
        self.missed = 0  # frames in a row that the current epoch had no picture for in time
        self._fade_frames = fade_frames
        self._fresh: dict[int, Frame] = {}
        self._stale: dict[int, Frame] = {}  # of epochs before, shown until the new one has pictures
        self._last: Frame | None = None
        self._rest: Frame | None = None  # of this person, with a mouth that has been quiet for a while
        self._quiet = 0  # frames since the last speech
        self._fade_from: int | None = None  # frame at which the epoch starts to be blended in
        self._bridge_from: int | None = None  # after an interrupt `_rest` is shown until the epoch has pictures
        self._resting = True  # nobody watched, so the first pictures cannot be there yet

    def ahead(self, next_frame: int) -> int:
        """Pictures that wait for `next_frame` or a later one."""
        return sum(index >= next_frame for index in self._fresh)

    def settled(self, next_frame: int) -> bool:
        """Whether a cross-fade is over: into the current epoch, or after an interrupt into a closed mouth."""
        began = self._bridge_from if self._bridge_from is not None else self._fade_from
        return began is not None and next_frame - began > self._fade_frames

    def add(self, index: int, picture: Frame) -> None:
        """A picture for a frame to come."""
        self._fresh[index] = picture

    def show(self, picture: Frame) -> None:
        """Show this until there is another."""
        self._last = picture

    def restart(self, first: int) -> None:
        """A new epoch begins with frame `first`; until then what is there is shown."""
        self._stale = {**self._stale, **self._fresh}
        self._fresh = {}
        self._fade_from = self._bridge_from = None
        self.newest = first - 1
        self.missed = 0

    def pause(self) -> None:
        """Nobody watches any more: what is there will be of no use."""
        self._stale, self._fresh, self._resting = {}, {}, True

    def forget_face(self) -> None:
        """Another person is shown from the next epoch on."""
        self._rest = None

    def close_mouth(self, first: int) -> None:
        """Show a closed mouth from frame `first` until the epoch has pictures.

        A clip takes longer than a mouth may go on moving without a sound.
        """
        self._bridge_from = first if self._rest is not None else None

    def take(self, index: int, quiet: bool) -> tuple[Frame | None, bool]:
        """The picture of a frame; to be called for each.

        Args:
            index: the frame.
            quiet: whether nothing is said in it.

        Returns:
            The picture, `None` before there was one; and whether it was shown before because the right one was not
            there in time.
        """
        fresh = self._fresh.pop(index, None)
        self.missed = 0 if fresh is not None else self.missed + 1
        picture = self._blend(index, fresh, self._stale.pop(index, None))
        self._last = picture if picture is not None else self._last
        self._quiet = self._quiet + 1 if quiet else 0
        if fresh is not None and self._quiet > REST_FRAMES:
            self._rest = fresh
        return self._last, picture is None and not self._resting

    def _blend(self, index: int, fresh: Frame | None, stale: Frame | None) -> Frame | None:
        """A new epoch or, after an interrupt, a closed mouth; cross-faded with what was there."""
        before = stale if stale is not None else self._last
        if fresh is not None:
            if self._fade_from is None:
                self._fade_from, self._resting = index, False
                if self._bridge_from is not None:
                    before = self._last
                self._bridge_from = None
            return self._mix(before, fresh, index - self._fade_from + 1)
        if self._bridge_from is not None and self._rest is not None:
            return self._mix(before, self._rest, index - self._bridge_from + 1)
        return stale if self._fade_from is None else None

    def _mix(self, before: Frame | None, after: Frame, step: int) -> Frame:
        """The `step`th picture of a cross-fade, by a raised cosine."""
        if step > self._fade_frames or before is None or before.pixels.shape != after.pixels.shape:
            self._stale.clear()
            return after
        weight = np.float32(0.5 - 0.5 * math.cos(math.pi * step / (self._fade_frames + 1)))
        mixed = before.pixels * (1 - weight) + after.pixels * weight
        return replace(
            after,
            pixels=np.rint(mixed).astype(np.uint8),
            landmarks=before.landmarks * (1 - weight) + after.landmarks * weight,
            blendshapes=before.blendshapes * (1 - weight) + after.blendshapes * weight,
        )
