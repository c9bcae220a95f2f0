"""A LiveKit room that a daemon's avatar has joined, from `join` until its agent leaves or it is told to."""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Callable

from avatard.integrations.extras import needs
from avatard.integrations.livekit import LiveKitError, make_runner
from avatard.integrations.stream import SessionStream
from avatard.protocols.tasks import cancel_and_wait
from avatard.session.session import Session

with needs("livekit", "livekit"):
    from livekit import rtc
    from livekit.agents import utils
    from livekit.agents.types import ATTRIBUTE_PUBLISH_ON_BEHALF
    from livekit.agents.voice.avatar import DataStreamAudioReceiver

logger = logging.getLogger(__name__)

CONNECT_SECONDS = 15.0
AGENT_SECONDS = 60.0  # for the agent to come; then the avatar leaves


class JoinedRoom:
    """One room.

    Args:
        session: the avatar.
        room: connected.
    """

    def __init__(self, session: Session, room: rtc.Room) -> None:
        self.id = secrets.token_urlsafe(8)
        self.name = str(room.name)
        self.identity = str(room.local_participant.identity)
        self.agent = str(room.local_participant.attributes.get(ATTRIBUTE_PUBLISH_ON_BEHALF, ""))
        self._session = session
        self._room = room
        self._over = asyncio.Event()  # the agent left, or the room was closed
        room.on("participant_disconnected", self._on_participant_disconnected)
        room.on("disconnected", self._on_disconnected)
        self._task = asyncio.create_task(self._attend(), name="livekit")

    @property
    def left(self) -> bool:
        """Whether it is over."""
        return self._task.done()

    async def leave(self) -> None:
        """Leave the room."""
        await cancel_and_wait(self._task)

    def _on_participant_disconnected(self, participant: rtc.RemoteParticipant) -> None:
        if participant.identity == self.agent:
            self._over.set()

    def _on_disconnected(self, *_: object) -> None:
        self._over.set()

    async def _attend(self) -> None:
        """Be the avatar of the agent until it leaves."""
        try:
            async with asyncio.timeout(AGENT_SECONDS):
                agent = await self._find_agent()
            self.agent = str(agent.identity)
            logger.info("avatar of a LiveKit agent", extra={"room": self.name, "agent": self.agent})
            await self._perform()
            logger.info("the LiveKit agent left", extra={"room": self.name, "agent": self.agent})
        except TimeoutError:
            logger.warning("no LiveKit agent came", extra={"room": self.name, "seconds": AGENT_SECONDS})
        except Exception:
            logger.exception("LiveKit room failed", extra={"room": self.name})
        finally:
            await self._room.disconnect()

    async def _find_agent(self) -> rtc.RemoteParticipant:
        kind = None if self.agent else rtc.ParticipantKind.PARTICIPANT_KIND_AGENT
        return await utils.wait_for_participant(self._room, identity=self.agent or None, kind=kind)

    async def _perform(self) -> None:
        # The agent is there, so that `start` does not wait for it: a runner that was stopped there cannot be closed.
        receiver = DataStreamAudioReceiver(self._room, sender_identity=self.agent)
        stream = SessionStream(self._session)
        await stream.start()
        try:
            runner = make_runner(self._room, stream, receiver)
            await runner.start()
            watched = [asyncio.create_task(self._over.wait()), asyncio.create_task(runner.wait_for_complete())]
            try:
                done, _ = await asyncio.wait(watched, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    task.result()  # a runner that fails would stand still in the room
            finally:
                await cancel_and_wait(watched)
                await runner.aclose()
        finally:
            await stream.stop()


async def join(session: Session, url: str, token: str, make_room: Callable[[], rtc.Room] | None = None) -> JoinedRoom:
    """Join a room as the avatar of the agent that the token's `lk.publish_on_behalf` names, or of the first one there.

    Args:
        session: the avatar, started.
        url: of the LiveKit server.
        token: a grant for the room.
        make_room: makes a room that is not connected.

    Raises:
        LiveKitError: the server cannot be reached, or refuses.
    """
    room = make_room() if make_room is not None else rtc.Room()
    try:
        async with asyncio.timeout(CONNECT_SECONDS):
            # It only listens to the agent, which sends its speech as data.
            await room.connect(url, token, rtc.RoomOptions(auto_subscribe=False))
    except TimeoutError:
        raise LiveKitError(f"the LiveKit server at {url} did not answer within {CONNECT_SECONDS:.0f} s") from None
    except rtc.ConnectError as error:
        raise LiveKitError(f"cannot join by {url}: {' '.join(str(error).split())[:200]}") from None
    return JoinedRoom(session, room)
