"""Who may speak: one speaker at a time, and after an interrupt not what was cut off."""

from __future__ import annotations

import math

from avatard.clock import monotonic
from avatard.errors import UserError

FLOOR_SECONDS = 0.5  # a speaker that was silent this long gives the floor to anyone


class FloorError(UserError):
    """Somebody else is speaking."""


class Floor:
    """The floor of one session. Whoever speaks has it until they stop; pushed speech takes it from a microphone."""

    def __init__(self) -> None:
        self.interrupts = 0
        self._holder: object | None = None
        self.pushed = False  # who had the floor last pushes the speech, and is no microphone, which is always on
        self._spoken_at = -math.inf
        self._cut_off: object | None = None
        self._cut_off_at = 0.0

    @property
    def silent_seconds(self) -> float:
        """How long ago somebody spoke."""
        return monotonic() - self._spoken_at

    def claim(self, speaker: object, pushed: bool, waiting: bool, loud: bool = True) -> bool:
        """Take the floor, or keep it.

        Args:
            speaker: who.
            pushed: whether the speech is pushed, and not heard live.
            waiting: whether speech is still waiting to be said.
            loud: whether it can be heard. An open microphone that hears nothing has the floor only as long as nobody
                else wants it, and takes it from nobody.

        Returns:
            Whether another speaker's utterance ends with it.

        Raises:
            FloorError: another speaker is speaking.
        """
        before = self._holder
        if before is not speaker:
            idle = self.silent_seconds > FLOOR_SECONDS and not (waiting and self.pushed)
            if before is not None and not (loud and (idle or (pushed and not self.pushed))):
                raise FloorError("another speaker has the floor; try again when they have stopped")
            self._holder, self.pushed = speaker, pushed
        if loud:
            self._spoken_at = monotonic()
        return before is not None and before is not speaker

    def release(self, speaker: object) -> bool:
        """This speaker has said everything; whether they had the floor."""
        if speaker is self._cut_off:
            self._cut_off = None
        if speaker is not self._holder:
            return False
        self._holder = None
        return True

    def interrupt(self) -> None:
        """Take the floor from whoever has it; the rest of a pushed utterance, still on its way, is not wanted."""
        self.interrupts += 1
        if self.pushed and self._holder is not None:
            self._cut_off, self._cut_off_at = self._holder, monotonic()
        self._holder = None

    def is_cut_off(self, speaker: object) -> bool:
        """Whether what this speaker says now is the rest of what was interrupted: they did not pause since."""
        if speaker is not self._cut_off:
            return False
        paused = monotonic() - self._cut_off_at > FLOOR_SECONDS
        self._cut_off_at = monotonic()
        if paused:
            self._cut_off = None
        return not paused
