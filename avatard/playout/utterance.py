"""What one speaker says between two pauses of their own choosing, counted from the sender to the viewer's ear."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Literal, NamedTuple


class Caption(NamedTuple):
    """A sentence, and where in its utterance it begins, in samples at 16 kHz."""

    text: str
    at: int


@dataclass(slots=True, eq=False)
class Utterance:
    """Everything pushed up to an end of utterance. All counts are samples at 16 kHz."""

    id: str
    pushed: int = 0  # taken from the sender
    played: int = 0
    started: bool = False  # its first sample was played
    announced: bool = False  # listeners were told that it started
    ended: bool = False
    interrupted: bool = False
    captions: deque[Caption] = field(default_factory=deque)  # of sentences that are not heard yet

    @property
    def dropped(self) -> int:
        """Taken from the sender and never heard."""
        return max(0, self.pushed - self.played) if self.ended else 0


class UtteranceChange(NamedTuple):
    """An utterance starts or ends."""

    utterance: Utterance
    state: Literal["started", "ended"]


class Span(NamedTuple):
    """Part of an utterance within one frame; samples [first, end) at 16 kHz, counted from the frame's first one."""

    utterance: Utterance
    first: int
    end: int
