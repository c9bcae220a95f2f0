"""Bad network weather: two WebRTC peers through a UDP relay that loses, delays, reorders and throttles packets.

    async with watching(Weather(loss=0.05, jitter_seconds=0.1, bits_per_second=300_000)) as viewer:
        await until(lambda: viewer.pictures > 100)

The sender is the daemon's `Peer` and `Broadcaster`, the receiver aiortc's. Each picture carries its frame number, and
every second frame 0 of it beeps, so that the receiver can tell by how much sound and picture differ when it plays them
by the sender reports, as browsers do.
"""

from __future__ import annotations

import asyncio
import heapq
import random
import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import av
import numpy as np
from aiortc import MediaStreamTrack, RTCConfiguration, RTCPeerConnection, RTCSessionDescription
from aiortc.codecs.vpx import VpxPayloadDescriptor
from aiortc.jitterbuffer import JitterBuffer
from aiortc.mediastreams import MediaStreamError
from aiortc.rtp import AnyRtcpPacket, RtcpSrPacket, RtpPacket
from numpy.typing import NDArray

from avatard.clock import MediaClock, monotonic
from avatard.protocols.aiortc_internals import tap_rtcp, tap_rtp
from avatard.protocols.broadcast import AUDIO_CLOCK_HZ, VIDEO_CLOCK_HZ, Broadcaster, Encoding
from avatard.protocols.peer import IceServers, Peer
from avatard.protocols.tasks import cancel_and_wait
from avatard.timebase import FPS
from tests.support.webrtc import RecordingHandler

SIDE, BLOCK, BITS = 256, 16, 16
PLAYBACK_SAMPLES = 1920
BEEP = (0.5 * 32767 * np.sin(2 * np.pi * 1000 * np.arange(PLAYBACK_SAMPLES) / AUDIO_CLOCK_HZ)).astype(np.int16)
LOUD = 4000  # of int16: a beep, and no echo of the codec
WAITING_PACKETS = 64  # of the pictures, for one that is lost; a power of 2
STUN_BYTES = range(4)  # first byte of a STUN message (RFC 7983)


@dataclass(frozen=True)
class Weather:
    """What happens to packets, in both directions."""

    loss: float = 0.0
    delay_seconds: float = 0.02
    jitter_seconds: float = 0.0  # more delay, different for each packet, which reorders them
    bits_per_second: float = 0.0  # towards the viewer; 0: without limit
    queue_seconds: float = 0.5  # of a full bottleneck; then packets are dropped
    seed: int = 1


class _Socket(asyncio.DatagramProtocol):
    def __init__(self, received: Callable[[bytes, Any], None]) -> None:
        self._received = received

    def datagram_received(self, data: bytes, addr: Any) -> None:
        self._received(data, addr)


class Relay:
    """Stands between a client and the server; each knows only the relay's address.

    Args:
        weather: from the first media packet on. ICE and DTLS have good weather, so that tests begin soon.
    """

    def __init__(self, weather: Weather) -> None:
        self.weather = weather
        self.dropped = self.passed = self.passed_bytes = 0
        self._rng = random.Random(weather.seed)
        self._free_at = 0.0  # the bottleneck
        self._client: Any = None
        self._server: Any = None
        self._asked: dict[bytes, Any] = {}  # addresses of the client by STUN transaction
        self._due: list[tuple[float, int, Callable[[], None]]] = []
        self._count = 0
        self._pump: asyncio.Task[None] | None = None
        self._wake = asyncio.Event()

    async def start(self) -> None:
        """Open both sockets."""
        loop = asyncio.get_running_loop()
        self._front, _ = await loop.create_datagram_endpoint(lambda: _Socket(self._from_client), ("0.0.0.0", 0))
        self._back, _ = await loop.create_datagram_endpoint(lambda: _Socket(self._from_server), ("0.0.0.0", 0))
        self._pump = asyncio.create_task(self._deliver())

    async def close(self) -> None:
        """Close them."""
        await cancel_and_wait(self._pump)
        self._front.close()
        self._back.close()

    def offer(self, sdp: str) -> str:
        """A client's offer, with the relay's address in place of its own."""
        return _readdressed(sdp, self._back.get_extra_info("sockname")[1])

    def answer(self, sdp: str) -> str:
        """The server's answer, with the relay's address in place of its own."""
        found = re.search(r"a=candidate:\S+ 1 udp \d+ (\d+\.\d+\.\d+\.\d+) (\d+) typ host", sdp)
        assert found is not None, "the server has an IPv4 address"
        self._server = (found[1], int(found[2]))
        return _readdressed(sdp, self._front.get_extra_info("sockname")[1])

    def _from_client(self, data: bytes, address: Any) -> None:
        if data[0] in STUN_BYTES:
            self._asked[data[8:20]] = address
            while len(self._asked) > 100:
                del self._asked[next(iter(self._asked))]
        if self._client is None or data[0] not in STUN_BYTES:
            self._client = address
        self._pass(data, lambda: self._back.sendto(data, self._server), 0.0)

    def _from_server(self, data: bytes, _: Any) -> None:
        address = self._asked.get(data[8:20], self._client) if data[0] in STUN_BYTES else self._client
        if address is not None:
            self._pass(data, lambda: self._front.sendto(data, address), self.weather.bits_per_second)

    def _pass(self, data: bytes, send: Callable[[], None], bits_per_second: float) -> None:
        weather, now = self.weather, monotonic()
        if data[0] < 128:  # not RTP or RTCP (RFC 7983)
            send()
            return
        at = now
        if bits_per_second:
            self._free_at = max(self._free_at, now) + 8 * (len(data) + 28) / bits_per_second
            at = self._free_at
            if at - now > weather.queue_seconds:
                self._free_at -= 8 * (len(data) + 28) / bits_per_second
                self.dropped += 1
                return
        if self._rng.random() < weather.loss:
            self.dropped += 1
            return
        self.passed += 1
        self.passed_bytes += len(data)
        at += weather.delay_seconds + self._rng.random() * weather.jitter_seconds
        self._count += 1
        heapq.heappush(self._due, (at, self._count, send))
        self._wake.set()

    async def _deliver(self) -> None:
        while True:
            while self._due and self._due[0][0] <= monotonic():
                heapq.heappop(self._due)[2]()
            self._wake.clear()
            wait = self._due[0][0] - monotonic() if self._due else 1.0
            try:
                async with asyncio.timeout(max(0.001, wait)):
                    await self._wake.wait()
            except TimeoutError:
                pass


def _readdressed(sdp: str, port: int) -> str:
    """With one candidate: this port, here."""
    lines = [line for line in sdp.splitlines() if not line.startswith(("a=candidate:", "a=end-of-candidates"))]
    first = next(n for n, line in enumerate(lines) if line.startswith("a=ice-ufrag"))
    lines.insert(first, f"a=candidate:1 1 udp 2130706431 127.0.0.1 {port} typ host")
    return "".join(f"{line}\r\n" for line in lines)


def texture() -> NDArray[np.uint8]:
    """What moves in pictures, larger than one: patterns and grain, which take bits."""
    y, x = np.mgrid[: 2 * SIDE, : 2 * SIDE]
    waves = 110 + 70 * np.sin(x / 9) * np.cos(y / 7) + np.random.default_rng(0).normal(0, 6, x.shape)
    return np.repeat(waves.clip(0, 255).astype(np.uint8)[..., None], 3, axis=2)


def picture(behind: NDArray[np.uint8], index: int) -> NDArray[np.uint8]:
    """A frame that moves, and says its number in its first rows."""
    left, top = (3 * index) % SIDE, (2 * index) % SIDE
    rgb = behind[top : top + SIDE, left : left + SIDE].copy()
    for row, number in enumerate((index, _check(index))):
        for bit in range(BITS):
            rgb[row * BLOCK : (row + 1) * BLOCK, bit * BLOCK : (bit + 1) * BLOCK] = 255 * (number >> bit & 1)
    return rgb


def _check(index: int) -> int:
    """A second number, by which one that was put together from several pictures is told."""
    return (index * 40_503 >> 4) & 0xFFFF


def number_of(rgb: NDArray[np.uint8]) -> int | None:
    """The number that a picture says; None where what it was predicted from was lost."""
    blocks = rgb[: 2 * BLOCK, : BITS * BLOCK, 0].reshape(2, BLOCK, BITS, BLOCK)[:, 4:-4, :, 4:-4].mean(axis=(1, 3))
    index, check = (sum(1 << bit for bit in range(BITS) if row[bit] > 127) for row in blocks)
    return index if check == _check(index) else None


@dataclass
class Viewer:
    """What the receiver sees and hears."""

    relay: Relay
    peer: Peer
    broadcaster: Broadcaster
    connection: RTCPeerConnection
    pictures: int = 0
    sounds: int = 0  # decoded, of frames
    sound_packets: int = 0
    wrong: int = 0  # pictures that were predicted from others which were lost
    shown_at: list[float] = field(default_factory=list)
    skew_ms: list[float] = field(default_factory=list)  # sound minus picture, each beep
    shares: list[tuple[float, float]] = field(default_factory=list)  # when, of the bit rate
    received: list[tuple[float, int]] = field(default_factory=list)  # when, bytes of pictures
    key_frames: int = 0
    key_requests: int = 0
    _reports: dict[str, tuple[float, int]] = field(default_factory=dict)  # of the sender: NTP seconds, RTP timestamp
    _zero: float | None = None  # NTP seconds of frame 0, by the pictures
    _quiet_until: int = 0

    @property
    def share(self) -> float:
        """Of the bit rate, that is sent now."""
        rendition = next(track.rendition for track in self.broadcaster.tracks if track.rendition is not None)
        return rendition.share

    async def request_key_frame(self) -> None:
        """Ask for one, as a decoder does that cannot go on (RTCP PLI)."""
        receiver: Any = next(receiver for receiver in self.connection.getReceivers() if receiver.track.kind == "video")
        (ssrc,) = list(receiver._RTCRtpReceiver__active_ssrc)[:1]
        await receiver._send_rtcp_pli(ssrc)

    def listen(self) -> None:
        """Tap the receivers."""
        for receiver in self.connection.getReceivers():
            tap_rtp(receiver, self._on_packet)
            kind = receiver.track.kind
            if kind == "video":
                # aiortc waits for a lost packet until 512 others are there; browsers ask for a key frame sooner.
                receiver._RTCRtpReceiver__jitter_buffer = JitterBuffer(WAITING_PACKETS, is_video=True)  # type: ignore[attr-defined]
            tap_rtcp(receiver, lambda packet, kind=kind: self._on_report(kind, packet))  # type: ignore[misc]

    def _on_packet(self, kind: str, packet: RtpPacket) -> None:
        self.sound_packets += kind == "audio"
        if kind == "video":
            self.received.append((monotonic(), len(packet.payload)))
            descriptor, data = VpxPayloadDescriptor.parse(packet.payload)
            self.key_frames += bool(
                descriptor.partition_start and not descriptor.partition_id and data and not data[0] & 1
            )

    def _on_report(self, kind: str, packet: AnyRtcpPacket) -> None:
        if isinstance(packet, RtcpSrPacket) and packet.sender_info.ntp_timestamp:
            self._reports[kind] = packet.sender_info.ntp_timestamp / 2**32, packet.sender_info.rtp_timestamp

    def _sent_at(self, kind: str, receiver: Any, pts: int) -> float | None:
        """When a position in a stream is played, by the sender's clock."""
        if kind not in self._reports:
            return None
        origin: int = receiver._RTCRtpReceiver__timestamp_mapper._origin
        ntp, timestamp = self._reports[kind]
        behind = (pts + origin - timestamp + (1 << 31)) % (1 << 32) - (1 << 31)
        return ntp + behind / (VIDEO_CLOCK_HZ if kind == "video" else AUDIO_CLOCK_HZ)

    async def watch(self, receiver: Any) -> None:
        """Read the pictures."""
        while True:
            frame = await receiver.track.recv()
            assert isinstance(frame, av.VideoFrame) and frame.pts is not None
            self.pictures += 1
            self.shown_at.append(monotonic())
            self.shares.append((monotonic(), self.share))
            index = number_of(frame.to_ndarray(format="rgb24").astype(np.uint8, copy=False))
            at = self._sent_at("video", receiver, frame.pts)
            if index is None:
                self.wrong += 1
            if at is None or index is None:
                continue
            zero = at - index / FPS
            self._zero = zero

    async def hear(self, receiver: Any) -> None:
        """Read the sound."""
        while True:
            frame = await receiver.track.recv()
            assert isinstance(frame, av.AudioFrame) and frame.pts is not None
            self.sounds += 1
            loud = np.flatnonzero(np.abs(frame.to_ndarray().reshape(-1, 2)[:, 0]) > LOUD)
            if not len(loud):
                continue
            begins = frame.pts + int(loud[0])
            at = self._sent_at("audio", receiver, begins)
            if begins > self._quiet_until and at is not None and self._zero is not None:
                self.skew_ms.append(1000 * ((at - self._zero + 0.5) % 1 - 0.5))
            self._quiet_until = begins + AUDIO_CLOCK_HZ // 2


@asynccontextmanager
async def watching(weather: Weather, encoding: Encoding | None = None) -> AsyncIterator[Viewer]:
    """A viewer that is connected through a relay, and frames that are sent to it."""
    broadcaster = Broadcaster(encoding or Encoding(), monotonic)
    peer = Peer(broadcaster, IceServers(), RecordingHandler(), receives=False)
    connection = RTCPeerConnection(RTCConfiguration(iceServers=[]))
    relay = Relay(weather)
    viewer = Viewer(relay, peer, broadcaster, connection)
    tasks: list[asyncio.Task[None]] = []
    await relay.start()
    try:
        connection.addTransceiver("video", direction="recvonly")
        connection.addTransceiver("audio", direction="recvonly")

        def on_track(track: MediaStreamTrack) -> None:
            receiver = next(receiver for receiver in connection.getReceivers() if receiver.track is track)
            tasks.append(
                asyncio.create_task(viewer.watch(receiver) if track.kind == "video" else viewer.hear(receiver))
            )

        connection.on("track", on_track)
        await connection.setLocalDescription(await connection.createOffer())
        answer = await peer.answer(relay.offer(connection.localDescription.sdp))
        await connection.setRemoteDescription(RTCSessionDescription(relay.answer(answer), "answer"))
        viewer.listen()
        request = broadcaster.request_key_frame

        def requested(rendition: Any) -> None:
            viewer.key_requests += 1
            request(rendition)

        broadcaster.request_key_frame = requested  # type: ignore[method-assign]
        tasks.append(asyncio.create_task(_send(broadcaster)))
        yield viewer
    finally:
        try:
            await cancel_and_wait(tasks)
        except MediaStreamError:
            pass
        await connection.close()
        await peer.close()
        await broadcaster.close()
        await relay.close()


async def _send(broadcaster: Broadcaster) -> None:
    """A frame each 40 ms; numbers are those that pictures can say."""
    clock, index, behind = MediaClock(), 0, texture()
    clock.start(0)
    while True:
        await clock.until(index)
        sound = BEEP if index % FPS == 0 else np.zeros(PLAYBACK_SAMPLES, np.int16)
        broadcaster.send(index, picture(behind, index), sound)
        index += 1
