"""Speech of a voice agent over a WebSocket: a JSON hello, then binary samples; the events come back as JSON.

> {"sample_rate": 24000, "encoding": "s16le", "channels": 1}       the last two may be left out
> binary: samples as fast as they are produced, cut anywhere; while minutes of them wait, the socket is not read
> {"type": "start_of_utterance", "id": "answer-1"}                 optional: names what follows
> {"type": "end_of_utterance"}     or {"type": "interrupt"}, which drops all that was not heard yet
< {"label": "rtvi-ai", "type": "utterance", "id": "", "data": {"id": "answer-1", "state": "queued"}}
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Iterable
from typing import Annotated, Any, Literal, Protocol, TypeAlias

import msgspec
from aiohttp import WSMessage, WSMsgType, web

from avatard.media.pcm import Encoding, FileHeaderError, PcmDecoder
from avatard.protocols.events import Error, Event, Metrics, to_message
from avatard.protocols.json_text import parse_object
from avatard.protocols.tasks import cancel_and_wait
from avatard.session.session import Session
from avatard.session.speaker import PushedSpeaker

MAX_MESSAGE_BYTES = 1024 * 1024  # half a minute at 16 kHz
QUEUED_MESSAGES = 1000  # for a client that does not read; then the oldest are dropped
PING_SECONDS = 20.0
GONE_MS = 30_000  # without a sign of life from the other side's system

Message: TypeAlias = dict[str, Any]
Id: TypeAlias = Annotated[str, msgspec.Meta(max_length=64)]


class Hello(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How the samples are encoded."""

    sample_rate: Annotated[int, msgspec.Meta(ge=8_000, le=192_000)]
    encoding: Encoding = "s16le"
    channels: Literal[1, 2] = 1


class StartOfUtterance(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="start_of_utterance"):
    """Names the utterance that follows."""

    id: Id = ""


class EndOfUtterance(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="end_of_utterance"):
    """The utterance is complete."""


class Interrupt(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="interrupt"):
    """Drop all speech that was not heard yet. An id is the sender's own business."""

    id: Id = ""


Command: TypeAlias = StartOfUtterance | EndOfUtterance | Interrupt


class Dialect(Protocol):
    """One connection's messages, as calls of its speaker, and the session's events as its messages."""

    speaker: PushedSpeaker

    def greeting(self) -> Iterable[Message]:
        """The first messages."""

    def receive(self, message: WSMessage) -> Iterable[Message]:
        """Obey a message; give what answers it."""

    def translate(self, event: Event) -> Iterable[Message]:
        """What tells an event."""


async def serve_agent(
    request: web.Request, session: Session, sockets: set[web.WebSocketResponse]
) -> web.WebSocketResponse:
    """Serve one connection to its end; it is in `sockets` meanwhile."""
    # aiohttp refuses messages as long as its limit.
    return await serve_socket(request, session, sockets, Agent, MAX_MESSAGE_BYTES + 1)


async def serve_socket(
    request: web.Request,
    session: Session,
    sockets: set[web.WebSocketResponse],
    open_dialect: Callable[[PushedSpeaker], Dialect],
    max_bytes: int,
) -> web.WebSocketResponse:
    """Serve one connection to its end, in the dialect that it speaks.

    Args:
        request: the upgrade.
        session: the avatar.
        sockets: has the connection meanwhile.
        open_dialect: begins to talk through a speaker.
        max_bytes: longer messages close the connection.
    """
    # No heartbeat, which hangs up on a sender whose pongs wait unread behind its speech.
    websocket = web.WebSocketResponse(max_msg_size=max_bytes)
    await websocket.prepare(request)
    _notice_silence(request)
    sockets.add(websocket)
    outbox: asyncio.Queue[Message] = asyncio.Queue()

    def send(messages: Iterable[Message]) -> None:
        for message in messages:
            if outbox.qsize() >= QUEUED_MESSAGES:
                outbox.get_nowait()
            outbox.put_nowait(message)

    async def send_messages() -> None:
        while True:
            try:
                message = await asyncio.wait_for(outbox.get(), PING_SECONDS)
            except TimeoutError:
                await websocket.ping()
            else:
                await websocket.send_json(message)

    dialect = open_dialect(session.open_speaker())
    send(dialect.greeting())
    unlisten = session.listen(lambda event: send(dialect.translate(event)))
    sender = asyncio.create_task(send_messages(), name="ws-events")
    try:
        async for message in websocket:
            if message.type in (WSMsgType.TEXT, WSMsgType.BINARY):
                send(dialect.receive(message))
            await dialect.speaker.room()
    finally:
        unlisten()
        await cancel_and_wait(sender)
        await dialect.speaker.close()
        sockets.discard(websocket)
    return websocket


def _notice_silence(request: web.Request) -> None:
    """Let the system hang up when the other side is gone without a word."""
    connection = request.transport.get_extra_info("socket") if request.transport is not None else None
    if connection is not None and hasattr(socket, "TCP_USER_TIMEOUT"):
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, GONE_MS)


class Agent:
    """One connection's messages, as calls of its speaker."""

    def __init__(self, speaker: PushedSpeaker) -> None:
        self.speaker = speaker
        self._rate_hz = 0
        self._decoder: PcmDecoder | None = None

    def greeting(self) -> Iterable[Message]:
        """See `Dialect`."""
        return ()

    def receive(self, message: WSMessage) -> Iterable[Message]:
        """See `Dialect`."""
        try:
            if message.type is WSMsgType.TEXT:
                self.control(parse_object(message.data))
            else:
                self.push(message.data)
        except ValueError as error:
            return [to_message(Error(message=str(error), code="bad-message"))]
        return ()

    def translate(self, event: Event) -> Iterable[Message]:
        """See `Dialect`."""
        return () if isinstance(event, Metrics) else [to_message(event)]

    def control(self, message: dict[str, Any]) -> None:
        """Take a hello or a command.

        Raises:
            ValueError: it is neither.
        """
        if "type" not in message:
            hello: Hello = _convert(message, Hello)
            self._rate_hz, self._decoder = hello.sample_rate, PcmDecoder(hello.encoding, hello.channels)
            return
        command: Command = _convert(message, Command)
        if self._decoder is not None:
            self._decoder.reset()
        match command:
            case StartOfUtterance():
                self.speaker.begin(command.id)
            case EndOfUtterance():
                self.speaker.flush()
            case Interrupt():
                self.speaker.interrupt()

    def push(self, data: bytes) -> None:
        """Take the next samples.

        Raises:
            ValueError: there was no hello, or these are no samples.
        """
        if self._decoder is None:
            raise ValueError('expected the hello {"sample_rate": HZ} before the first samples')
        try:
            samples = self._decoder.push(data)
        except FileHeaderError:
            self.speaker.drop_rest()
            raise
        self.speaker.push_audio(samples, self._rate_hz)


def _convert(message: dict[str, Any], kind: Any) -> Any:
    """A message as a Struct. Raises `ValueError`, in one line."""
    try:
        return msgspec.convert(message, kind)
    except msgspec.ValidationError as error:
        expected = [
            '{"sample_rate": 8000 to 192000, "encoding": "s16le", "f32le" or "mulaw", "channels": 1 or 2}',
            'a "type" of start_of_utterance, end_of_utterance or interrupt',
        ]
        if message:  # what it was meant to be is known
            expected = expected[:1] if kind is Hello else expected[1:]
        raise ValueError(f"{' '.join(str(error).split())[:200]}; expected {', or '.join(expected)}") from None
