"""Which replica has which room, and which one the next room goes to. No I/O and no clock: the caller passes `now`."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

from avatard.errors import UserError

#: A replica that has not answered for so long is lost; three questions of a second fit into it.
LOST_SECONDS: Final = 3.0
#: Rooms of lost replicas that are remembered, so that their clients are told what happened.
LOST_ROOMS: Final = 100_000
#: What a room is thought to take of a replica that has none yet.
FIRST_SHARE: Final = 0.25


class NoRoomError(UserError):
    """A room that no replica knows."""

    CODE = "not-found"

    def __init__(self) -> None:
        super().__init__("there is no such room")


class LostRoomError(UserError):
    """A room whose replica is gone."""

    CODE = "room-lost"

    def __init__(self) -> None:
        super().__init__("the machine of this room was lost: make a new room")


@dataclass(frozen=True)
class Member:
    """What a replica tells of itself when it registers.

    Attributes:
        url: where its daemon answers, without a slash at the end.
        draining: whether it takes no more rooms.
    """

    url: str
    draining: bool = False


@dataclass(frozen=True)
class Report:
    """What a daemon answers.

    Attributes:
        capacity: what rooms may take of its machine, in core-ms a second.
        headroom: what is left of it.
        rooms: ids of those that there are.
    """

    capacity: float
    headroom: float
    rooms: frozenset[str] = frozenset()


@dataclass
class Replica:
    """A daemon, as far as it is known.

    Attributes:
        name: of the replica.
        url: of its daemon.
        draining: whether it takes no more rooms.
        report: its last answer; None before the first.
        answered_at: when it came; at first, when the replica was first seen.
        rooms: their ids, and when each was made here; minus infinity for those that were found there.
    """

    name: str
    url: str
    draining: bool
    answered_at: float
    report: Report | None = None
    rooms: dict[str, float] = field(default_factory=dict)

    @property
    def headroom(self) -> float:
        """What is left, less what rooms may take that the last report did not know."""
        if self.report is None:
            return 0.0
        new = len(self.rooms.keys() - self.report.rooms)
        known = len(self.report.rooms)
        used = self.report.capacity - self.report.headroom
        each = used / known if known else FIRST_SHARE * self.report.capacity
        return self.report.headroom - new * each


class Directory:
    """Replicas and their rooms."""

    def __init__(self) -> None:
        self._replicas: dict[str, Replica] = {}
        self._homes: dict[str, str] = {}  # names of replicas, by room
        self._lost: dict[str, None] = {}  # rooms, the oldest loss first

    @property
    def replicas(self) -> Collection[Replica]:
        """All that are not lost."""
        return self._replicas.values()

    def register(self, members: Mapping[str, Member], now: float) -> None:
        """Note which replicas there are.

        One that is not among them any more drains: it is lost when it stops to answer.
        """
        for name, member in members.items():
            known = self._replicas.get(name)
            if known is None or known.url != member.url:  # a daemon that was started again has none of the rooms before
                self._lose(name)
                self._replicas[name] = Replica(name, member.url, member.draining, now)
            else:
                known.draining = member.draining
        for name in self._replicas.keys() - members.keys():
            self._replicas[name].draining = True

    def answered(self, name: str, report: Report, asked_at: float, now: float) -> None:
        """Note what a replica answered at `now` to a question of `asked_at`."""
        replica = self._replicas.get(name)
        if replica is None:
            return
        replica.report, replica.answered_at = report, now
        for room in report.rooms - replica.rooms.keys():
            self._put(replica, room, float("-inf"))
        for room in replica.rooms.keys() - report.rooms:
            if replica.rooms[room] < asked_at:  # else it may have been made after the answer
                self.forget(room)

    def refused(self, name: str) -> Iterable[str]:
        """Nothing listens at a replica's address: it is lost. Gives its rooms."""
        return self._lose(name)

    def silent(self, now: float) -> Iterable[str]:
        """Give up replicas that have not answered for long. Gives their rooms."""
        gone = [name for name, replica in self._replicas.items() if now - replica.answered_at >= LOST_SECONDS]
        return [room for name in gone for room in self._lose(name)]

    def candidates(self) -> list[Replica]:
        """Replicas that take rooms, the one with most headroom first."""
        ready = [replica for replica in self._replicas.values() if replica.report is not None and not replica.draining]
        return sorted(ready, key=lambda replica: (-replica.headroom, replica.name))

    def place(self, room: str, name: str, now: float) -> None:
        """Note that a replica has made a room."""
        if name in self._replicas:
            self._put(self._replicas[name], room, now)

    def forget(self, room: str) -> None:
        """Note that a room has ended."""
        home = self._homes.pop(room, None)
        if home in self._replicas:
            self._replicas[home].rooms.pop(room, None)

    def find(self, room: str) -> Replica:
        """The replica that has a room.

        Raises:
            LostRoomError: it had one, which is gone.
            NoRoomError: none has it.
        """
        home = self._replicas.get(self._homes.get(room, ""))
        if home is not None:
            return home
        raise LostRoomError if room in self._lost else NoRoomError

    def _put(self, replica: Replica, room: str, now: float) -> None:
        replica.rooms[room] = now
        self._homes[room] = replica.name
        self._lost.pop(room, None)

    def _lose(self, name: str) -> list[str]:
        replica = self._replicas.pop(name, None)
        rooms = list(replica.rooms) if replica is not None else []
        for room in rooms:
            self._homes.pop(room, None)
            self._lost[room] = None
        while len(self._lost) > LOST_ROOMS:
            del self._lost[next(iter(self._lost))]
        return rooms
