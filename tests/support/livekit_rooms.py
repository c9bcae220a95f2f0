"""LiveKit rooms in memory: participants, data streams and RPC between them, and tracks that are subscribed at once.

Everything else is LiveKit's own: `AvatarRunner`, sources of sound and pictures, `QueueAudioOutput`, data streams' ends.
Import it only where `livekit` is installed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import Any

from livekit import rtc

AGENT = rtc.ParticipantKind.PARTICIPANT_KIND_AGENT


class Server:
    """What participants have in common; a test may refuse or hold connections and subscriptions."""

    def __init__(self) -> None:
        self.rooms: list[FakeRoom] = []
        self.subscribed = asyncio.Event()  # tracks are, from now on
        self.subscribed.set()
        self.refusal: Exception | None = None
        self.published: list[str] = []

    def room(self, identity: str, attributes: dict[str, str] | None = None) -> FakeRoom:
        return FakeRoom(self, identity, attributes or {})


class FakeRoom(rtc.EventEmitter[str]):
    """One participant's view of the room."""

    def __init__(self, server: Server, identity: str, attributes: dict[str, str]) -> None:
        super().__init__()
        self.server = server
        self.name = "lobby"
        self.local_participant = LocalParticipant(self, identity, attributes)
        self.options: Any = None
        self.connected = False
        self._streams: dict[str, Callable[[Any, str], None]] = {}

    async def connect(self, url: str, token: str, options: Any = None) -> None:
        if self.server.refusal is not None:
            raise self.server.refusal
        self.options = options
        self.connected = True
        for other in self.server.rooms:
            other.emit("participant_active", self.seen)
        self.server.rooms.append(self)

    async def disconnect(self) -> None:
        if not self.connected:
            return
        self.connected = False
        self.server.rooms.remove(self)
        self.emit("disconnected", 0)
        for other in list(self.server.rooms):
            other.emit("participant_disconnected", self.seen)

    def isconnected(self) -> bool:
        return self.connected

    @property
    def seen(self) -> Any:
        """This participant, as others see it."""
        me = self.local_participant
        tracks = {track.sid: track for track in me.tracks}
        state = rtc.ParticipantState.PARTICIPANT_STATE_ACTIVE
        return SimpleNamespace(
            identity=me.identity, kind=AGENT, state=state, attributes=me.attributes, track_publications=tracks
        )

    @property
    def remote_participants(self) -> dict[str, Any]:
        return {room.local_participant.identity: room.seen for room in self.server.rooms if room is not self}

    def register_byte_stream_handler(self, topic: str, handler: Callable[[Any, str], None]) -> None:
        self._streams[topic] = handler

    def receive(self, topic: str, reader: Any, sender: str) -> None:
        self._streams[topic](reader, sender)


class LocalParticipant:
    def __init__(self, room: FakeRoom, identity: str, attributes: dict[str, str]) -> None:
        self.identity = identity
        self.attributes = attributes
        self.kind = AGENT
        self.tracks: list[Any] = []
        self._room = room
        self._rpc_handlers: dict[str, Callable[[Any], str | Awaitable[str]]] = {}

    async def publish_track(self, track: Any, options: Any) -> Any:
        kind = track.kind
        publication = SimpleNamespace(
            sid=f"TR_{len(self.tracks)}",
            kind=kind,
            track=track,
            subscribed=True,
            wait_for_subscription=self._room.server.subscribed.wait,
        )
        self.tracks.append(publication)
        self._room.server.published.append(rtc.TrackKind.Name(kind))
        for other in self._room.server.rooms:
            if other is not self._room:
                other.emit("track_published", publication, self._room.seen)
        return publication

    def register_rpc_method(self, name: str, handler: Callable[[Any], Any]) -> None:
        self._rpc_handlers[name] = handler

    async def perform_rpc(self, *, destination_identity: str, method: str, payload: str) -> str:
        await asyncio.sleep(0)
        other = self._other(destination_identity)
        handler = other.local_participant._rpc_handlers.get(method)
        if handler is None:
            raise rtc.RpcError(rtc.RpcError.ErrorCode.UNSUPPORTED_METHOD, method)
        answer = handler(rtc.RpcInvocationData("1", self.identity, payload, 10.0, method))
        return answer if isinstance(answer, str) else await answer

    async def stream_bytes(
        self, *, name: str, topic: str, destination_identities: list[str], attributes: dict[str, str]
    ) -> Any:
        chunks: asyncio.Queue[bytes | None] = asyncio.Queue()
        self._other(destination_identities[0]).receive(topic, Reader(chunks, attributes), self.identity)
        return SimpleNamespace(write=chunks.put, aclose=lambda: chunks.put(None))

    def _other(self, identity: str) -> FakeRoom:
        return next(room for room in self._room.server.rooms if room.local_participant.identity == identity)


class Reader:
    """A stream that is being received."""

    def __init__(self, chunks: asyncio.Queue[bytes | None], attributes: dict[str, str]) -> None:
        self.info = SimpleNamespace(attributes=attributes, stream_id="1")
        self._chunks = chunks

    def __aiter__(self) -> Reader:
        return self

    async def __anext__(self) -> bytes:
        chunk = await self._chunks.get()
        if chunk is None:
            raise StopAsyncIteration
        return chunk
