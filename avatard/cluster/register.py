"""Where the replicas announce themselves, and the ingresses find them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from avatard.clock import monotonic
from avatard.cluster.directory import Member

BEAT_SECONDS: Final = 1.0
#: One that has not announced itself for so long is forgotten; the ingresses notice a dead one much earlier.
FORGOTTEN_SECONDS: Final = 10.0


class Register:
    """Replicas by their names. It needs no memory: each announces itself every second.

    Args:
        now: seconds.
    """

    def __init__(self, now: Callable[[], float] = monotonic) -> None:
        self._now = now
        self._beats: dict[str, tuple[Member, float]] = {}

    def beat(self, name: str, member: Member) -> None:
        """A replica is there."""
        self._beats[name] = member, self._now()

    def leave(self, name: str) -> None:
        """A replica has ended."""
        self._beats.pop(name, None)

    def members(self) -> Mapping[str, Member]:
        """Those that are there."""
        oldest = self._now() - FORGOTTEN_SECONDS
        self._beats = {name: beat for name, beat in self._beats.items() if beat[1] > oldest}
        return {name: member for name, (member, _) in self._beats.items()}
