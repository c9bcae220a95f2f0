"""One client: its sound is decoded as it arrives, losses become silence; it is sent what it asks for."""

import asyncio
import re
from typing import Any

import aioice
import av
import numpy as np
import pytest
from aiortc import RTCConfiguration, RTCPeerConnection, RTCSessionDescription
from aiortc.mediastreams import MediaStreamError

from avatard.clock import monotonic
from avatard.protocols.aiortc_internals import IceRestart
from avatard.protocols.broadcast import Broadcaster, Encoding
from avatard.protocols.offer import OfferError, parse_candidate, parse_fragment
from avatard.protocols.peer import IceServers, Peer
from tests.support.serving import said, until
from tests.support.webrtc import RecordingHandler


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


async def test_lost_packets_are_silence_and_a_pause_is_none():
    handler = RecordingHandler()
    peer = Peer(None, IceServers(), handler)
    await peer._read(Frames(10, 11, 14, 200, 201))  # type: ignore[arg-type]
    await peer.close()
    assert (handler.sound.reshape(-1, 960)[:, 0] == [0.5, 0.5, 0, 0, 0.5, 0.5, 0.5]).all()


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
    broadcaster = Broadcaster(Encoding(), monotonic)
    peer, viewer = Peer(broadcaster, IceServers(), RecordingHandler()), Viewer(*kinds)
    answer = await peer.answer(await viewer.offer())
    await viewer.pc.setRemoteDescription(RTCSessionDescription(answer, "answer"))
    async with asyncio.timeout(20):
        index = 0
        while viewer.kinds != set(kinds):
            broadcaster.send(index, np.full((64, 64, 3), 90, np.uint8), np.zeros(1920, np.int16))
            index += 1
            await asyncio.sleep(0.02)
    await viewer.close()
    await peer.close()
    assert not broadcaster.tracks
    await broadcaster.close()


@pytest.mark.parametrize("watches", [True, False])
async def test_an_offer_without_picture_and_sound_is_refused(watches):
    broadcaster = Broadcaster(Encoding(), monotonic)
    peer, viewer = Peer(broadcaster if watches else None, IceServers(), RecordingHandler()), Viewer()
    with pytest.raises(OfferError, match="^the offer has neither a video nor an audio section$"):
        await peer.answer(await viewer.offer())
    assert peer.closed
    await viewer.close()
    await broadcaster.close()


async def test_servers_that_cannot_be_used_leave_nothing_behind():
    broadcaster = Broadcaster(Encoding(), monotonic)
    peer, viewer = (
        Peer(broadcaster, IceServers(("stun.l.google.com:19302",)), RecordingHandler()),
        Viewer("video", "audio"),
    )
    with pytest.raises(OfferError, match="malformed uri"):
        await peer.answer(await viewer.offer())
    assert peer.closed and not broadcaster.tracks
    await viewer.close()
    await broadcaster.close()


async def test_an_error_hangs_up_and_is_one_line(monkeypatch, caplog):
    """A client that nobody watches any more would keep its place for ever."""
    broadcaster = Broadcaster(Encoding(), monotonic)
    peer, viewer = Peer(broadcaster, IceServers(), RecordingHandler()), Viewer("video")

    async def fail() -> None:
        raise RuntimeError("no report")

    monkeypatch.setattr(peer._pc, "getStats", fail)
    await peer.answer(await viewer.offer())
    await until(lambda: peer.closed)
    assert said(caplog) == ["a connection failed"]
    await viewer.close()
    await broadcaster.close()


async def unresolvable(subscriber: object) -> Any:
    await asyncio.Event().wait()


async def test_names_that_do_not_resolve_delay_neither_the_answer_nor_other_candidates(monkeypatch):
    monkeypatch.setattr("aioice.ice.get_or_create_mdns_protocol", unresolvable)
    broadcaster = Broadcaster(Encoding(), monotonic)
    peer, viewer = Peer(broadcaster, IceServers(), RecordingHandler()), Viewer("video")
    hidden = "a=candidate:1 1 udp 2113937151 8b1b4c6a-6d4c-4a1e-9b1f-0d8c2a9a9a11.local 54321 typ host\r\n"
    offer = await viewer.offer()
    known = [line.removeprefix("a=") for line in offer.splitlines() if line.startswith("a=candidate:")]
    bare = "".join(f"{line}\r\n" for line in offer.splitlines() if "candidate" not in line)
    async with asyncio.timeout(5):
        answer = await peer.answer(bare + hidden)
        await viewer.pc.setRemoteDescription(RTCSessionDescription(answer, "answer"))
        peer.add_candidates([parse_candidate(hidden, "0"), *(parse_candidate(line, "0") for line in known)])
        await until(lambda: viewer.pc.connectionState == "connected")
    await viewer.close()
    await peer.close()
    await broadcaster.close()


async def test_a_client_that_cannot_be_reached_is_logged_in_one_line(monkeypatch, caplog):
    monkeypatch.setattr("avatard.protocols.peer.CONNECT_SECONDS", 0.5)
    broadcaster, handler = Broadcaster(Encoding(), monotonic), RecordingHandler()
    peer, viewer = Peer(broadcaster, IceServers(), handler), Viewer("video")
    offer = re.sub("(?m)^a=candidate.* host\r\n", "", await viewer.offer()).replace("a=end-of-candidates\r\n", "")
    await peer.answer(offer + "a=candidate:1 1 udp 1 192.0.2.1 9 typ host\r\n")
    await until(lambda: handler.closed)
    (record,) = [record for record in caplog.records if record.name.startswith("avatard")]
    assert record.getMessage() == "WebRTC connection failed"
    assert record.reason == "ICE checking: no path to host 192.0.2.1:9/udp"
    await viewer.close()
    await broadcaster.close()


async def test_ice_is_restarted_while_the_picture_goes_on():
    broadcaster = Broadcaster(Encoding(), monotonic)
    peer, viewer = Peer(broadcaster, IceServers(), RecordingHandler()), Viewer("video")
    answer = await peer.answer(await viewer.offer())
    await viewer.pc.setRemoteDescription(RTCSessionDescription(answer, "answer"))
    ice = viewer.pc.getTransceivers()[0].receiver.transport.transport
    client = IceRestart(ice)
    track = viewer.pc.getReceivers()[0].track
    index = 0

    async def frames_until(condition: Any) -> None:
        nonlocal index
        async with asyncio.timeout(20):
            while not condition():
                broadcaster.send(index, np.full((64, 64, 3), 90, np.uint8), np.zeros(1920, np.int16))
                index += 1
                await asyncio.sleep(0.01)

    await frames_until(lambda: viewer.kinds == {"video"})
    old = ice.iceGatherer.getLocalParameters()
    same = f"a=ice-ufrag:{old.usernameFragment}\r\na=ice-pwd:{old.password}\r\na=end-of-candidates\r\n"
    assert not peer.is_restart(parse_fragment(same)), "the credentials of the offer restart nothing"
    new = await client.prepare("", "")
    lines = [f"a=ice-ufrag:{new.local_username}", f"a=ice-pwd:{new.local_password}", "a=mid:0"]
    lines += [f"a=candidate:{candidate.to_sdp()}" for candidate in new.local_candidates] + ["a=end-of-candidates"]
    fragment = parse_fragment("\r\n".join(lines))
    assert peer.is_restart(fragment)
    given_up = parse_fragment("a=ice-ufrag:abcd\r\na=ice-pwd:0123456789012345678901\r\n")
    await peer.restart_ice(given_up)
    reply = parse_fragment(await peer.restart_ice(fragment))
    assert reply.ended and reply.candidates and reply.username
    new.remote_username, new.remote_password = reply.username, reply.password
    for candidate in reply.candidates:
        await new.add_remote_candidate(
            aioice.Candidate(
                candidate.foundation,
                candidate.component,
                candidate.protocol,
                candidate.priority,
                candidate.address,
                candidate.port,
                candidate.type,
            )
        )
    await new.add_remote_candidate(None)
    await client.complete(new)
    reading = asyncio.ensure_future(track.recv())
    await frames_until(reading.done)
    frame = await reading
    assert isinstance(frame, av.VideoFrame) and frame.width == 64
    assert viewer.pc.connectionState == "connected" and not peer.closed
    await viewer.close()
    await until(lambda: peer.closed)
    await broadcaster.close()


async def test_ice_cannot_be_restarted_before_the_connection_is_there():
    broadcaster = Broadcaster(Encoding(), monotonic)
    peer, viewer = Peer(broadcaster, IceServers(), RecordingHandler()), Viewer("video")
    await peer.answer(await viewer.offer())
    fragment = parse_fragment("a=ice-ufrag:abcd\r\na=ice-pwd:0123456789012345678901\r\n")
    with pytest.raises(OfferError, match="^ICE cannot be restarted: the connection is not established"):
        await peer.restart_ice(fragment)
    await peer.close()
    await viewer.close()
    await broadcaster.close()
