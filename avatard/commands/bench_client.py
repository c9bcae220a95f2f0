"""A client that connects as the page does, and measures what arrives."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import aiohttp
import av
import numpy as np
from aiortc import MediaStreamTrack, RTCConfiguration, RTCPeerConnection, RTCSessionDescription
from aiortc.mediastreams import MediaStreamError
from aiortc.rtp import RtpPacket
from numpy.typing import NDArray

from avatard.clock import monotonic
from avatard.errors import UserError
from avatard.frame import Samples
from avatard.media.pcm import to_pcm16
from avatard.protocols.aiortc_internals import tap_rtp
from avatard.protocols.tasks import cancel_and_wait
from avatard.timebase import SAMPLE_RATE_HZ

VOICE_RATE_HZ = 48_000
VOICE_PACKET_SECONDS = 0.02


class ClientError(UserError):
    """The daemon refused the connection; one line."""


@dataclass
class Arrivals:
    """The arrivals of one track: for each RTP timestamp, the time of its last packet."""

    at: dict[int, float] = field(default_factory=dict)  # RTP timestamp -> seconds
    bytes: int = 0


class Voice(MediaStreamTrack):
    """Speech at the pace of a microphone, then silence. A packet leaves when its last sample would be captured."""

    kind = "audio"

    def __init__(self, speech: Samples) -> None:
        super().__init__()
        self._speech = speech
        self._sent = 0
        self.started_at = 0.0  # when sample 0 was captured

    async def recv(self) -> av.AudioFrame:
        """The next 20 ms."""
        if not self._sent:
            self.started_at = monotonic()
        count = round(VOICE_PACKET_SECONDS * SAMPLE_RATE_HZ)
        due = self.started_at + (self._sent + count) / SAMPLE_RATE_HZ
        await asyncio.sleep(max(0.0, due - monotonic()))
        chunk = self._speech[self._sent : self._sent + count]
        chunk = np.pad(chunk, (0, count - len(chunk)))
        frame = av.AudioFrame.from_ndarray(to_pcm16(chunk)[None], format="s16", layout="mono")
        frame.sample_rate, frame.pts, frame.time_base = SAMPLE_RATE_HZ, self._sent, Fraction(1, SAMPLE_RATE_HZ)
        self._sent += count
        return frame


class LiveClient:
    """Connects to `url`, sends `speech` (16 kHz) and records what it receives.

    Args:
        url: of the page, without a slash at its end.
        speech: the microphone's sound; None sends nothing.
        token: of the daemon.
        on_picture: called with the position in the stream, in 90 kHz ticks, and each decoded picture [H, W, 3].
    """

    def __init__(
        self,
        url: str,
        speech: Samples | None = None,
        token: str = "",
        on_picture: Callable[[int, NDArray[np.uint8]], None] | None = None,
    ) -> None:
        self.video, self.audio = Arrivals(), Arrivals()
        self.sound: dict[int, NDArray[np.int16]] = {}  # by position in the stream, in 48 kHz ticks; mono
        self.events: list[tuple[float, str, dict[str, Any]]] = []
        self.pictures = 0
        self.first_frame_seconds = 0.0
        self.pc_id = ""
        self._url = url
        self._headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._on_picture = on_picture
        self._pc = RTCPeerConnection(RTCConfiguration(iceServers=[]))
        self._voice = Voice(speech) if speech is not None else None
        self._channel = self._pc.createDataChannel("events")
        self._channel.on("message", self._on_message)
        self._tasks: list[asyncio.Task[None]] = []
        self._first = asyncio.Event()
        self._pc.addTransceiver(self._voice or "audio", direction="sendrecv" if self._voice else "recvonly")
        self._pc.addTransceiver("video", direction="recvonly")
        self._pc.on("track", self._on_track)
        for receiver in self._pc.getReceivers():
            tap_rtp(receiver, self._on_packet)

    async def connect(self) -> float:
        """Connect and wait for the first picture; return the seconds from the offer to it.

        Raises:
            ClientError: the daemon refused.
        """
        since = monotonic()
        await self._pc.setLocalDescription(await self._pc.createOffer())
        body = {"sdp": self._pc.localDescription.sdp, "type": "offer"}
        async with (
            aiohttp.ClientSession(headers=self._headers) as http,
            http.post(f"{self._url}/api/offer", json=body) as response,
        ):
            answer = await response.json()
            if response.status != 200:
                await self.close()
                raise ClientError(f"{response.status}: {answer['error']}", code=answer["code"])
        self.pc_id = answer["pc_id"]
        await self._pc.setRemoteDescription(RTCSessionDescription(answer["sdp"], "answer"))
        await asyncio.wait_for(self._first.wait(), 20)
        self.first_frame_seconds = monotonic() - since
        return self.first_frame_seconds

    @property
    def voice_started_at(self) -> float:
        """When the first sample of the speech was captured."""
        return self._voice.started_at if self._voice is not None else 0.0

    def send(self, message: dict[str, Any] | str) -> None:
        """Send a message, or any text, over the data channel."""
        self._channel.send(message if isinstance(message, str) else json.dumps(message))

    async def close(self) -> None:
        """Hang up."""
        await cancel_and_wait(self._tasks)
        await self._pc.close()

    def _on_packet(self, kind: str, packet: RtpPacket) -> None:
        """Note when it arrived: aiortc's jitter buffers hold frames back until later ones are there."""
        arrivals = self.video if kind == "video" else self.audio
        arrivals.at[packet.timestamp] = monotonic()
        arrivals.bytes += len(packet.payload)

    def _on_track(self, track: MediaStreamTrack) -> None:
        read = self._read_video if track.kind == "video" else self._read_audio
        self._tasks.append(asyncio.ensure_future(read(track)))

    async def _read_video(self, track: MediaStreamTrack) -> None:
        try:
            while True:
                frame = await track.recv()
                assert isinstance(frame, av.VideoFrame) and frame.pts is not None
                self._first.set()
                self.pictures += 1
                if self._on_picture is not None:
                    self._on_picture(frame.pts, frame.to_ndarray(format="rgb24").astype(np.uint8, copy=False))
        except MediaStreamError:
            pass

    async def _read_audio(self, track: MediaStreamTrack) -> None:
        try:
            while True:
                frame = await track.recv()
                assert isinstance(frame, av.AudioFrame) and frame.pts is not None
                self.sound[frame.pts] = frame.to_ndarray().reshape(-1, 2)[:, 0].astype(np.int16)
        except MediaStreamError:
            pass

    def _on_message(self, text: str) -> None:
        event = json.loads(text)
        self.events.append((monotonic(), event["type"], event["data"]))
