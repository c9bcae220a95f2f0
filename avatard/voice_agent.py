"""Speech of a voice agent over a WebSocket: a JSON hello, then binary PCM16; the events come back as JSON.

> {"sample_rate": 24000}
> binary: 16-bit little-endian mono, as fast as it comes; when the buffer is full the socket is not read
> {"type": "end_of_utterance"}     or {"type": "interrupt"}
< {"label": "rtvi-ai", "type": "bot-started-speaking", "id": "", "data": {"frame": 1234}}
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import numpy as np
from aiohttp import WSMsgType, web

from avatard.audio.resample import Resampler, from_pcm16
from avatard.audio.ring import Samples
from avatard.floor import FloorError
from avatard.protocols.json_text import parse_object
from avatard.session import Session

MAX_MESSAGE_BYTES = 1024 * 1024  # about ten seconds at 48 kHz


async def serve_agent(
    request: web.Request, session: Session, sockets: set[web.WebSocketResponse]
) -> web.WebSocketResponse:
    """Serve one connection to its end; it is in `sockets` meanwhile."""
    socket = web.WebSocketResponse(max_msg_size=MAX_MESSAGE_BYTES, heartbeat=20)
    await socket.prepare(request)
    sockets.add(socket)
    events: asyncio.Queue[dict[str, Any]] = asyncio.Queue(100)

    def on_event(kind: str, data: Mapping[str, Any]) -> None:
        if kind != "metrics" and not events.full():
            events.put_nowait({"label": "rtvi-ai", "type": kind, "id": "", "data": dict(data)})

    async def send_events() -> None:
        while True:
            await socket.send_json(await events.get())

    unlisten = session.listen(on_event)
    sender = asyncio.create_task(send_events(), name="ws-events")
    speaker = Speaker(session)
    try:
        async for message in socket:
            try:
                if message.type == WSMsgType.TEXT:
                    speaker.control(parse_object(message.data))
                elif message.type == WSMsgType.BINARY:
                    await speaker.speak(message.data)
            except (ValueError, FloorError) as error:
                on_event("error", {"message": str(error), "fatal": False})
    finally:
        unlisten()
        sender.cancel()
        await asyncio.gather(sender, return_exceptions=True)
        await speaker.finish()
        sockets.discard(socket)
    return socket


class Speaker:
    """The state of one `/ws/audio` connection."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._resampler: Resampler | None = None

    def control(self, message: Any) -> None:
        """A hello, or a command.

        Raises:
            ValueError: it is neither.
        """
        match message:
            case {"sample_rate": int(rate_hz)}:
                self._resampler = Resampler(rate_hz)
            case {"type": "interrupt"}:
                self._session.interrupt()
            case {"type": "end_of_utterance"}:
                self._end()
            case _:
                raise ValueError('expected {"sample_rate": HZ}, {"type": "end_of_utterance"} or {"type": "interrupt"}')

    async def speak(self, pcm: bytes) -> None:
        """The next samples.

        Raises:
            ValueError: there was no hello, or these are no samples.
            FloorError: somebody else is speaking.
        """
        if self._resampler is None:
            raise ValueError('expected the hello {"sample_rate": HZ} before the first samples')
        await self._session.speak(self._resampler.push(from_pcm16(pcm)), self)

    def _end(self) -> None:
        rest: Samples = self._resampler.flush() if self._resampler is not None else np.zeros(0, np.float32)
        if len(rest):
            self._session.speak_rest(rest, self)
        self._session.end_of_utterance(self)

    async def finish(self) -> None:
        """The connection is gone; what was said will be said to its end."""
        self._end()
