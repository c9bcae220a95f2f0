"""Speech of a voice agent over a WebSocket: a JSON hello, then binary PCM16; the events come back as JSON.

> {"sample_rate": 24000}
> binary: 16-bit little-endian mono, as fast as it comes; while minutes of it wait, the socket is not read
> {"type": "end_of_utterance"}     or {"type": "interrupt"}, which drops what waits
< {"label": "rtvi-ai", "type": "bot-started-speaking", "id": "", "data": {"frame": 1234}}
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Mapping
from typing import Any

from aiohttp import WSMsgType, web

from avatard.frame import Samples
from avatard.media.resample import Resampler, from_pcm16
from avatard.protocols.json_text import parse_object
from avatard.session.floor_control import FloorError
from avatard.session.session import Session
from avatard.timebase import SAMPLE_RATE_HZ, SAMPLES_PER_FRAME

MAX_MESSAGE_BYTES = 1024 * 1024  # half a minute at 16 kHz
MAX_WAITING_SAMPLES = 300 * SAMPLE_RATE_HZ
PING_SECONDS = 20.0
GONE_MS = 30_000  # without a sign of life from the other side's system


async def serve_agent(
    request: web.Request, session: Session, sockets: set[web.WebSocketResponse]
) -> web.WebSocketResponse:
    """Serve one connection to its end; it is in `sockets` meanwhile."""
    # No heartbeat, which hangs up on a sender whose pongs wait unread behind its speech.
    websocket = web.WebSocketResponse(max_msg_size=MAX_MESSAGE_BYTES)
    await websocket.prepare(request)
    _notice_silence(request)
    sockets.add(websocket)
    events: asyncio.Queue[dict[str, Any]] = asyncio.Queue(100)

    def on_event(kind: str, data: Mapping[str, Any]) -> None:
        if kind != "metrics" and not events.full():
            events.put_nowait({"label": "rtvi-ai", "type": kind, "id": "", "data": dict(data)})

    def on_error(message: str) -> None:
        on_event("error", {"message": message, "fatal": False})

    async def send_events() -> None:
        while True:
            try:
                event = await asyncio.wait_for(events.get(), PING_SECONDS)
            except TimeoutError:
                await websocket.ping()
            else:
                await websocket.send_json(event)

    unlisten = session.listen(on_event)
    sender = asyncio.create_task(send_events(), name="ws-events")
    speaker = Speaker(session, on_error)
    try:
        async for message in websocket:
            try:
                if message.type == WSMsgType.TEXT:
                    speaker.control(parse_object(message.data))
                elif message.type == WSMsgType.BINARY:
                    speaker.speak(message.data)
            except ValueError as error:
                on_error(str(error))
            await speaker.room()
    finally:
        unlisten()
        sender.cancel()
        await asyncio.gather(sender, return_exceptions=True)
        await speaker.finish()
        sockets.discard(websocket)
    return websocket


def _notice_silence(request: web.Request) -> None:
    """Let the system hang up when the other side is gone without a word."""
    connection = request.transport.get_extra_info("socket") if request.transport is not None else None
    if connection is not None and hasattr(socket, "TCP_USER_TIMEOUT"):
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, GONE_MS)


class Speaker:
    """What one `/ws/audio` connection says. It waits in line here, so that an interrupt is read at once."""

    def __init__(self, session: Session, on_error: Callable[[str], None]) -> None:
        self._session, self._on_error = session, on_error
        self._resampler: Resampler | None = None
        self._line: asyncio.Queue[Samples | None] = asyncio.Queue()  # None ends an utterance
        self._waiting_samples = 0
        self._room = asyncio.Event()
        self._closing = False
        self._task = asyncio.create_task(self._say(), name="ws-speech")

    def control(self, message: Any) -> None:
        """A hello, or a command.

        Raises:
            ValueError: it is neither.
        """
        match message:
            case {"sample_rate": int(rate_hz)}:
                self._resampler = Resampler(rate_hz)
            case {"type": "interrupt"}:
                self._interrupt()
            case {"type": "end_of_utterance"}:
                self._end()
            case _:
                raise ValueError('expected {"sample_rate": HZ}, {"type": "end_of_utterance"} or {"type": "interrupt"}')

    def speak(self, pcm: bytes) -> None:
        """The next samples.

        Raises:
            ValueError: there was no hello, or these are no samples.
        """
        if self._resampler is None:
            raise ValueError('expected the hello {"sample_rate": HZ} before the first samples')
        self._put(self._resampler.push(from_pcm16(pcm)))

    async def room(self) -> None:
        """Wait while too much is in line."""
        while self._waiting_samples > MAX_WAITING_SAMPLES:
            self._room.clear()
            await self._room.wait()

    async def finish(self) -> None:
        """The connection is gone; what was said will be said to its end."""
        self._closing = True
        self._end()
        await self._task

    def _interrupt(self) -> None:
        while not self._line.empty():
            self._line.get_nowait()
        self._waiting_samples = 0
        if self._resampler is not None:
            self._resampler.flush()
        self._session.interrupt()
        # It came in line with the speech, so what follows it is new, and not the rest of what was cut off.
        self._session.end_of_utterance(self)

    def _end(self) -> None:
        if self._resampler is not None:
            self._put(self._resampler.flush())
        self._put(None)

    def _put(self, samples: Samples | None) -> None:
        self._line.put_nowait(samples)
        self._waiting_samples += _size(samples)

    async def _say(self) -> None:
        while not (self._closing and self._line.empty()):
            samples = await self._line.get()
            self._waiting_samples -= _size(samples)
            self._room.set()
            if samples is None:
                self._session.end_of_utterance(self)
                continue
            try:
                await self._session.speak(samples, self)
            except FloorError as error:
                self._on_error(str(error))


def _size(samples: Samples | None) -> int:
    """What an entry counts for in line; that of the smallest keeps the number of entries bounded."""
    return max(SAMPLES_PER_FRAME, 0 if samples is None else len(samples))
