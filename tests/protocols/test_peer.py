"""One client: its sound is taken as it comes, with what was lost as silence; it is sent what it asks for."""

import asyncio
from typing import Any

import av
import numpy as np
import pytest
from aiortc import RTCConfiguration, RTCPeerConnection, RTCSessionDescription
from aiortc.mediastreams import MediaStreamError
from aiortc.rtp import RtpPacket

from avatard.clock import monotonic
from avatard.protocols.broadcast import Broadcaster, Encoding
from avatard.protocols.peer import IceServers, OfferError, PassthroughJitterBuffer, Peer
from tests.support.serving import said, until


def packet(number: int) -> RtpPacket:
    packet = RtpPacket(sequence_number=number % 65536, timestamp=960 * number)
    packet._data = bytes([number % 256])  # type: ignore[attr-defined]
    return packet


def test_each_packet_is_handed_on_at_once_and_none_twice_or_after_a_later_one():
    buffer = PassthroughJitterBuffer()
    given = [buffer.add(packet(number))[1] for number in (65534, 65535, 65536, 65536, 65539, 65538, 65540)]
    assert [frame and frame.timestamp // 960 for frame in given] == [65534, 65535, 65536, None, 65539, None, 65540]
    assert given[0] is not None and given[0].data == bytes([65534 % 256])


class Frames:
    """A track of frames of 20 ms at these positions, full of ones."""

    def __init__(self, *numbers: int) -> None:
        self.numbers = list(numbers)

    async def recv(self) -> av.AudioFrame:
        if not self.numbers:
            raise MediaStreamError
        frame = av.AudioFrame.from_ndarray(np.full((1, 960), 16384, np.int16), "s16", "mono")
        frame.sample_rate, frame.pts = 48_000, 960 * self.numbers.pop(0)
        return frame


class Ear:
    def __init__(self) -> None:
        self.sound = np.zeros(0, np.float32)

    def on_audio(self, samples, rate_hz):
        self.sound = np.concatenate([self.sound, samples])

    def on_closed(self):
        pass

    on_first_frame = on_message = lambda self, told: None


async def test_lost_packets_are_silence_and_a_pause_is_none():
    ear = Ear()
    peer = Peer(None, IceServers(), ear)
    await peer._read(Frames(10, 11, 14, 200, 201))  # type: ignore[arg-type]
    await peer.close()
    assert (ear.sound.reshape(-1, 960)[:, 0] == [0.5, 0.5, 0, 0, 0.5, 0.5, 0.5]).all()


class Viewer:
    """Receives these kinds, in this order, and a data channel."""

    def __init__(self, *kinds: str) -> None:
        self.pc = RTCPeerConnection(RTCConfiguration(iceServers=[]))
        self.pc.createDataChannel("events")
        self.kinds: set[str] = set()
        self.tasks: list[asyncio.Task[None]] = []
        for kind in kinds:
            self.pc.addTransceiver(kind, direction="recvonly")
        self.pc.on("track", lambda track: self.tasks.append(asyncio.ensure_future(self.read(track))))

    async def read(self, track: Any) -> None:
        await track.recv()
        self.kinds.add(track.kind)

    async def offer(self) -> str:
        await self.pc.setLocalDescription(await self.pc.createOffer())
        return str(self.pc.localDescription.sdp)

    async def close(self) -> None:
        await self.pc.close()
        await asyncio.gather(*self.tasks, return_exceptions=True)


@pytest.mark.parametrize("kinds", [("video",), ("audio",), ("video", "audio"), ("audio", "video")])
async def test_a_client_is_sent_what_its_offer_has_sections_for(kinds):
    hub = Broadcaster(Encoding(), monotonic)
    peer, viewer = Peer(hub, IceServers(), Ear()), Viewer(*kinds)
    answer = await peer.answer(await viewer.offer())
    await viewer.pc.setRemoteDescription(RTCSessionDescription(answer, "answer"))
    async with asyncio.timeout(20):
        index = 0
        while viewer.kinds != set(kinds):
            hub.send(index, np.full((64, 64, 3), 90, np.uint8), np.zeros(640, np.int16))
            index += 1
            await asyncio.sleep(0.02)
    await viewer.close()
    await peer.close()
    assert not hub._tracks
    await hub.close()


@pytest.mark.parametrize("watches", [True, False])
async def test_an_offer_without_picture_and_sound_is_refused(watches):
    hub = Broadcaster(Encoding(), monotonic)
    peer, viewer = Peer(hub if watches else None, IceServers(), Ear()), Viewer()
    with pytest.raises(OfferError, match="^the offer has neither a video nor an audio section$"):
        await peer.answer(await viewer.offer())
    assert peer.closed
    await viewer.close()
    await hub.close()


async def test_servers_that_cannot_be_used_leave_nothing_behind():
    hub = Broadcaster(Encoding(), monotonic)
    peer, viewer = Peer(hub, IceServers(("stun.l.google.com:19302",)), Ear()), Viewer("video", "audio")
    with pytest.raises(OfferError, match="malformed uri"):
        await peer.answer(await viewer.offer())
    assert peer.closed and not hub._tracks
    await viewer.close()
    await hub.close()


async def test_an_error_hangs_up_and_is_one_line(monkeypatch, caplog):
    """A client that nobody watches any more would keep its place for ever."""
    hub = Broadcaster(Encoding(), monotonic)
    peer, viewer = Peer(hub, IceServers(), Ear()), Viewer("video")

    async def fail() -> None:
        raise RuntimeError("no report")

    monkeypatch.setattr(peer._pc, "getStats", fail)
    await peer.answer(await viewer.offer())
    await until(lambda: peer.closed)
    assert said(caplog) == ["a connection failed"]
    await viewer.close()
    await hub.close()
