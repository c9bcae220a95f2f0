"""A running daemon as a stream: speech and events over its WebSocket, pictures and sound over its ZeroMQ publisher.

    avatard serve --identity me.png --zmq tcp://127.0.0.1:5556

Its sound is that of ZeroMQ's `audio`: what the networks hear, 16 kHz.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections import deque
from pathlib import Path

import aiohttp
import numpy as np
import zmq
import zmq.asyncio
from numpy.typing import NDArray

from avatard.errors import UserError
from avatard.frame import Samples, over_chequers
from avatard.integrations.stream import AvatarFrame, SegmentEnd, Stream
from avatard.media.pcm import to_pcm16
from avatard.protocols.curve import set_client_keys
from avatard.protocols.image import decode_image
from avatard.protocols.json_text import parse_object
from avatard.protocols.messages import Audio, MessageError, Meta, Topic, Video, decode, split, topic_of
from avatard.protocols.tasks import cancel_and_wait
from avatard.timebase import FRAME_US, SAMPLE_RATE_HZ

QUEUE_MESSAGES = 64
CONNECT_SECONDS = 15.0
MAX_UNSENT = 256  # messages; then `room` waits
MAX_MESSAGE_SAMPLES = 240_000  # half of what the WebSocket takes
RATES_HZ = (8_000, 192_000)


class DaemonError(UserError):
    """A daemon that cannot be used."""

    CODE = "daemon"


class DaemonStream(Stream):
    """An avatar of another process.

    Args:
        url: of `avatard serve`.
        zmq_endpoint: of its `--zmq`.
        token: of its `--token`, or of the room.
        room: the id of one of its rooms that are on ZeroMQ.
        server_key: its public CURVE key, beyond loopback.
        key_file: this client's own `.key_secret` file, if the daemon asks for known clients.
    """

    def __init__(
        self,
        url: str = "http://127.0.0.1:8080",
        zmq_endpoint: str = "tcp://127.0.0.1:5556",
        *,
        token: str = "",
        room: str = "",
        server_key: str = "",
        key_file: str | Path | None = None,
    ) -> None:
        super().__init__()
        self._url = url.rstrip("/") + (f"/rooms/{room}" if room else "") + "/ws/audio"
        self._topics = {kind: topic_of(kind, room) for kind in (Topic.META, Topic.AUDIO, Topic.VIDEO)}
        self._endpoint = zmq_endpoint
        self._headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._keys = (server_key, Path(key_file) if key_file is not None else None)
        self._size = (0, 0)
        self._http: aiohttp.ClientSession | None = None
        self._socket: aiohttp.ClientWebSocketResponse | None = None
        self._context: zmq.asyncio.Context | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._outbox: deque[bytes | dict[str, object]] = deque()
        self._wake, self._sent = asyncio.Event(), asyncio.Event()
        self._rate_hz = 0
        self._segment = ""  # that is being pushed
        self._cut: set[str] = set()  # segments that this stream has interrupted
        self._segments: list[str] = []  # that have not ended
        self._ended: list[SegmentEnd] = []
        self._muted = False  # until the daemon has said which frame is the first silent one
        self._silent_us = -1  # what is in frames up to here was interrupted
        self._sound: Audio | None = None

    @property
    def size(self) -> tuple[int, int]:
        """See `Stream`."""
        return self._size

    async def start(self) -> None:
        """See `Stream`.

        Raises:
            DaemonError: there is none at one of the two addresses.
            KeysError: a key is not valid.
        """
        try:
            await self._connect()
        except BaseException:
            await self.stop()
            raise

    async def _connect(self) -> None:
        self._http = aiohttp.ClientSession(headers=self._headers)
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                self._socket = socket = await self._http.ws_connect(self._url)
        except (aiohttp.ClientError, OSError, TimeoutError, ValueError) as error:
            raise DaemonError(f"no avatard answers at {self._url}: {str(error) or 'timeout'}") from None
        self._context = zmq.asyncio.Context()
        frames = self._context.socket(zmq.SUB)
        frames.linger, frames.rcvhwm = 0, QUEUE_MESSAGES
        if self._keys[0]:
            set_client_keys(zmq.Socket.shadow(frames.underlying), *self._keys)
        try:
            frames.connect(self._endpoint)
        except zmq.ZMQError as error:
            raise DaemonError(f"cannot connect to {self._endpoint}: {error}") from None
        frames.subscribe(self._topics[Topic.META])
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                while not self._size[0]:
                    self._receive(await frames.recv_multipart())
        except TimeoutError:
            raise DaemonError(
                f"nothing is published at {self._endpoint}: start it with avatard serve --zmq {self._endpoint}"
            ) from None
        frames.subscribe(self._topics[Topic.AUDIO])
        frames.subscribe(self._topics[Topic.VIDEO])
        self._tasks = [
            asyncio.create_task(self._send(socket), name="daemon-speech"),
            asyncio.create_task(self._listen(socket), name="daemon-events"),
            asyncio.create_task(self._watch(frames), name="daemon-frames"),
        ]

    async def stop(self) -> None:
        """See `Stream`."""
        self._close(now=True)
        await cancel_and_wait(self._tasks)
        self._tasks = []
        if self._socket is not None:
            await self._socket.close()
        if self._http is not None:
            await self._http.close()
        if self._context is not None:
            self._context.destroy(linger=0)

    def push(self, samples: Samples, rate_hz: int) -> str:
        """See `Stream`."""
        if not RATES_HZ[0] <= rate_hz <= RATES_HZ[1]:
            raise ValueError(f"sample rate is {rate_hz} Hz, expected 8,000 to 192,000")
        if self._closed:
            return ""
        if rate_hz != self._rate_hz:
            self._rate_hz = rate_hz
            self._put_out({"sample_rate": rate_hz})
        if not self._segment:
            self._segment = secrets.token_hex(4)
            self._segments.append(self._segment)
            self._put_out({"type": "start_of_utterance", "id": self._segment})
        pcm = to_pcm16(samples).astype("<i2")
        for first in range(0, len(pcm), MAX_MESSAGE_SAMPLES):
            self._put_out(pcm[first : first + MAX_MESSAGE_SAMPLES].tobytes())
        return self._segment

    def end(self) -> str:
        """See `Stream`."""
        segment, self._segment = self._segment, ""
        if segment:
            self._put_out({"type": "end_of_utterance"})
        return segment

    async def room(self) -> None:
        """See `Stream`."""
        while len(self._outbox) > MAX_UNSENT and not self._closed:
            self._sent.clear()
            await self._sent.wait()

    def interrupt(self) -> None:
        """See `Stream`; the ends come from the daemon, which knows what was heard."""
        self._silence()
        if self._segments:
            self._muted = True
            self._cut |= set(self._segments)
            self._segment = ""
            # Their starts stay, so that each has its end.
            self._outbox = deque(message for message in self._outbox if isinstance(message, dict))
            self._put_out({"type": "interrupt"})

    def _put_out(self, message: bytes | dict[str, object]) -> None:
        self._outbox.append(message)
        self._wake.set()

    async def _send(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        with contextlib.suppress(ConnectionError, aiohttp.ClientError):  # `_listen` hears of it, too
            await self._send_all(socket)

    async def _send_all(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        while True:
            while self._outbox:
                message = self._outbox.popleft()
                self._sent.set()
                if isinstance(message, bytes):
                    await socket.send_bytes(message)
                else:
                    await socket.send_json(message)
            self._wake.clear()
            await self._wake.wait()

    async def _listen(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        async for message in socket:
            if message.type is aiohttp.WSMsgType.TEXT:
                event = parse_object(message.data)
                data = event.get("data", {})
                if event.get("type") == "utterance" and data.get("state") == "ended":
                    self._end(data)
                elif event.get("type") == "bot-interrupted" and self._muted:
                    self._muted, self._silent_us = False, data["frame"] * FRAME_US
        # The daemon is gone; so is what it was saying.
        for segment in list(self._segments):
            self._end({"id": segment, "interrupted": True})
        self._sound = None
        self._give(Audio(enc="pcm_s16le", sr=SAMPLE_RATE_HZ, n=0, data=b""), None)
        self._outbox.clear()
        self._sent.set()
        self._close()

    def _end(self, data: dict[str, object]) -> None:
        """An utterance ended, whoever sent it; what follows of one that lost the floor is a segment of its own."""
        name = str(data.get("id", ""))
        if name not in self._segments:
            return
        self._segments.remove(name)
        if name == self._segment:
            self._segment = ""
        played, dropped = (int(str(data.get(key) or 0)) for key in ("played_ms", "dropped_ms"))
        self._ended.append(SegmentEnd(name, played, dropped, bool(data.get("interrupted")) or name in self._cut))
        self._cut.discard(name)

    async def _watch(self, socket: zmq.asyncio.Socket) -> None:
        while True:
            self._receive(await socket.recv_multipart())

    def _receive(self, parts: list[bytes]) -> None:
        """Take a message: of a frame the sound comes first, then the picture."""
        try:
            topic, payload = split(parts)
            if topic not in self._topics.values():
                return  # of a room, whose topics begin as those of the default one
            message = decode(payload)
        except MessageError:
            return  # of a later version
        match message:
            case Meta():
                self._size = (message.w, message.h)
            case Audio():
                if self._sound is not None:
                    self._give(self._sound, None)  # its picture was lost
                self._sound = message
            case Video() if self._sound is not None and self._sound.pts_us == message.pts_us:
                sound, self._sound = self._sound, None
                self._give(sound, message)

    def _give(self, audio: Audio, video: Video | None) -> None:
        sound = np.frombuffer(audio.data, "<i2").astype(np.int16)
        # The timeline's silence is digital, whatever a speaker says is not.
        speaking = bool(sound.any())
        speech = sound if self._segments and speaking else sound[:0]
        ended, self._ended = tuple(self._ended), []
        picture = _picture(video) if video is not None else None
        frame = AvatarFrame(picture, sound, speech, audio.sr, speaking, ended)
        self._put(frame.silenced() if self._muted or audio.pts_us <= self._silent_us else frame)


def _picture(video: Video) -> NDArray[np.uint8]:
    """RGB [H, W, 3]; what is transparent lies over a pattern."""
    picture = decode_image(video.data, video.enc, (video.h, video.w, video.ch))
    return over_chequers(picture) if video.ch == 4 else picture
