"""Asks all replicas every second what they have, so that a lost one is noticed."""

from __future__ import annotations

import asyncio
import errno
import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping

import aiohttp
import msgspec

from avatard.clock import monotonic
from avatard.cluster.directory import Directory, Member, Replica, Report

logger = logging.getLogger(__name__)

PERIOD_SECONDS = 1.0
ANSWER_SECONDS = 0.9
AGAIN_SECONDS = 0.2  # between looks that requests for unknown rooms ask for: anybody can send such

Members = Callable[[], Awaitable[Mapping[str, Member]]]


class Room(msgspec.Struct):
    """An item of `GET /api/rooms`."""

    id: str


class Rooms(msgspec.Struct):
    """The answer to `GET /api/rooms`, as far as it is needed."""

    rooms: list[Room]
    capacity_core_ms: float
    headroom_core_ms: float


class Watch:
    """Keeps a directory up to date.

    Args:
        directory: what is kept.
        members: gives the replicas that are registered.
        http: asks them.
        token: of the daemons.
        on_lost: is told the rooms of a replica that was lost.
    """

    def __init__(
        self,
        directory: Directory,
        members: Members,
        http: aiohttp.ClientSession,
        token: str,
        on_lost: Callable[[Iterable[str]], None],
    ) -> None:
        self._directory = directory
        self._members = members
        self._http = http
        self._token = token
        self._on_lost = on_lost
        self._again = asyncio.Lock()
        self._looked_at = float("-inf")

    async def run(self) -> None:
        """Look every second, for ever."""
        while True:
            try:
                await self.look()
            except Exception:
                logger.exception("could not look after the replicas")
            await asyncio.sleep(PERIOD_SECONDS)

    async def look_again(self) -> None:
        """Look, or wait for the look of another that begins after this call."""
        called_at = monotonic()
        async with self._again:
            if self._looked_at < called_at:
                await asyncio.sleep(max(0.0, self._looked_at + AGAIN_SECONDS - monotonic()))
                await self.look()

    async def look(self) -> None:
        """Look once."""
        self._looked_at = monotonic()
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                self._directory.register(await self._members(), monotonic())
        except TimeoutError:
            logger.warning("the register of replicas does not answer")
        await asyncio.gather(*(self.ask(replica) for replica in list(self._directory.replicas)))
        if rooms := list(self._directory.silent(monotonic())):
            logger.warning("replicas are silent", extra={"rooms": len(rooms)})
            self._on_lost(rooms)

    async def ask(self, replica: Replica) -> None:
        """Ask one replica; one at whose address nothing listens is lost."""
        asked_at = monotonic()
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                report = await ask(self._http, replica.url, self._token)
        except aiohttp.ClientConnectorError as error:
            if is_refusal(error):
                self.lost(replica)
        except (TimeoutError, aiohttp.ClientError, msgspec.DecodeError) as error:
            logger.warning("a replica does not answer", extra={"replica": replica.name, "reason": str(error)[:200]})
        else:
            self._directory.answered(replica.name, report, asked_at, monotonic())

    def lost(self, replica: Replica) -> None:
        """Nothing listens at its address."""
        rooms = list(self._directory.refused(replica.name))
        if replica.report is not None:  # else it was noticed before, and the register has not forgotten it yet
            logger.warning("a replica is gone", extra={"replica": replica.name, "rooms": len(rooms)})
        self._on_lost(rooms)


async def ask(http: aiohttp.ClientSession, url: str, token: str) -> Report:
    """What a daemon has.

    Raises:
        aiohttp.ClientError: it does not answer, or refuses to.
        msgspec.DecodeError: its answer is none.
    """
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    async with http.get(f"{url}/api/rooms", headers=headers) as response:
        response.raise_for_status()
        answer = msgspec.json.decode(await response.read(), type=Rooms)
    return Report(answer.capacity_core_ms, answer.headroom_core_ms, frozenset(room.id for room in answer.rooms))


def is_refusal(error: aiohttp.ClientConnectorError) -> bool:
    """Whether the machine answered that nothing listens there."""
    return error.os_error.errno == errno.ECONNREFUSED
