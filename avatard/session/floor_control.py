"""Floor control: one speaker at a time. The term is that of BFCP (RFC 8855); voice agents call it turn-taking."""

from __future__ import annotations

import math
from typing import Generic, TypeVar

from avatard.clock import monotonic

S = TypeVar("S")

FLOOR_SECONDS = 0.5  # a speaker that was silent this long gives the floor to anyone


class Floor(Generic[S]):
    """The floor of one session. A speaker holds it until they stop; pushed speech takes it from a microphone."""

    def __init__(self) -> None:
        self.holder: S | None = None
        self.pushed = False  # whether the last holder pushes speech, and is no microphone, which is always on
        self._spoken_at = -math.inf

    @property
    def silent_seconds(self) -> float:
        """How long ago somebody spoke."""
        return monotonic() - self._spoken_at

    def claim(self, speaker: S, pushed: bool, waiting: bool, loud: bool = True) -> bool:
        """Take the floor, or keep it.

        Args:
            speaker: who.
            pushed: whether the speech is pushed, and not heard live.
            waiting: whether speech is still waiting to be played.
            loud: whether it can be heard. A microphone that hears nothing holds the floor only as long as nobody else
                wants it, and takes it from nobody.

        Returns:
            Whether the speaker has it now.
        """
        if self.holder is not speaker:
            idle = self.silent_seconds > FLOOR_SECONDS and not (waiting and self.pushed)
            if self.holder is not None and not (loud and (idle or (pushed and not self.pushed))):
                return False
            self.holder, self.pushed = speaker, pushed
        if loud:
            self._spoken_at = monotonic()
        return True

    def release(self, speaker: S) -> bool:
        """The speaker has said everything; return whether they held the floor."""
        held = self.holder is speaker
        if held:
            self.holder = None
        return held

    def interrupt(self) -> None:
        """Take the floor from whoever holds it."""
        self.holder = None
