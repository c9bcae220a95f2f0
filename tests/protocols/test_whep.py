"""WHEP and WHIP over HTTP with the test engine."""

import asyncio
from typing import Any

import aiohttp
import pytest
from aiortc import RTCConfiguration, RTCPeerConnection, RTCSessionDescription
from aiortc.mediastreams import MediaStreamTrack

from avatard.commands.bench_client import Voice
from avatard.config import Webrtc
from avatard.protocols.peer import IceServers, OfferError
from avatard.protocols.whep import Candidate, link_headers, parse_fragment
from tests.support.paths import ROOT
from tests.support.serving import beeps, config, running_server, until

SDP = {"Content-Type": "application/sdp"}


@pytest.fixture(autouse=True)
def engine(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))


@pytest.fixture
async def serving():
    async with running_server() as (session, url), aiohttp.ClientSession() as http:
        yield session, url, http


class Viewer:
    """A WHEP player, or with a track a WHIP encoder."""

    def __init__(self, track: MediaStreamTrack | None = None) -> None:
        self.pc = RTCPeerConnection(RTCConfiguration(iceServers=[]))
        self.frames = {"audio": 0, "video": 0}
        self.tasks: list[asyncio.Task[None]] = []
        if track is not None:
            self.pc.addTransceiver(track, direction="sendonly")
        else:
            self.pc.addTransceiver("video", direction="recvonly")
            self.pc.addTransceiver("audio", direction="recvonly")
        self.pc.on("track", lambda track: self.tasks.append(asyncio.ensure_future(self.read(track))))

    async def read(self, track: Any) -> None:
        while True:
            await track.recv()
            self.frames[track.kind] += 1

    async def offer(self) -> str:
        await self.pc.setLocalDescription(await self.pc.createOffer())
        return str(self.pc.localDescription.sdp)

    async def close(self) -> None:
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)
        await self.pc.close()


async def test_viewers_share_one_stream_and_leave(serving):
    session, url, http = serving
    viewers = [Viewer() for _ in range(3)]
    locations = []
    for viewer in viewers:
        async with http.post(f"{url}/whep", data=await viewer.offer(), headers=SDP) as response:
            assert response.status == 201 and response.content_type == "application/sdp"
            assert response.headers["ETag"] and "Access-Control-Allow-Origin" not in response.headers
            assert response.headers["Accept-Patch"] == "application/trickle-ice-sdpfrag"
            locations.append(response.headers["Location"])
            await viewer.pc.setRemoteDescription(RTCSessionDescription(await response.text(), "answer"))
    await until(lambda: all(viewer.frames["video"] > 10 and viewer.frames["audio"] > 5 for viewer in viewers))
    generated = session.scheduler.counters.generated
    assert generated < session.scheduler.next_frame + 100, "three viewers, one generated stream"
    assert b'avatard_sessions{kind="whep"} 3.0' in session.collect()
    for location in locations:
        async with http.delete(f"{url}{location}") as response:
            assert response.status == 200
        async with http.delete(f"{url}{location}") as response:
            assert response.status == 404
    assert b'avatard_sessions{kind="whep"} 0.0' in session.collect()
    for viewer in viewers:
        await viewer.close()


async def test_speech_comes_in_by_whip(serving):
    session, url, http = serving
    voice = Viewer(Voice(beeps(5)))
    async with http.post(f"{url}/whip", data=await voice.offer(), headers=SDP) as response:
        assert response.status == 201
        location = response.headers["Location"]
        await voice.pc.setRemoteDescription(RTCSessionDescription(await response.text(), "answer"))
    await until(lambda: session.speaking)
    assert location.startswith("/whip/")
    await voice.close()
    await until(lambda: b'avatard_sessions{kind="whip"} 0.0' in session.collect())


async def test_candidates_trickle(serving):
    _, url, http = serving
    viewer = Viewer()
    async with http.post(f"{url}/whep", data=await viewer.offer(), headers=SDP) as response:
        location, etag = response.headers["Location"], response.headers["ETag"]
    kind = {"Content-Type": "application/trickle-ice-sdpfrag"}
    line = "a=mid:0\r\na=candidate:1 1 udp 2122194687 127.0.0.1 40000 typ host\r\n"

    async def patch(data: str, **headers: str) -> int:
        async with http.patch(f"{url}{location}", data=data, headers=kind | headers) as response:
            return int(response.status)

    assert await patch(line) == 204
    assert await patch(line, **{"If-Match": etag}) == 204
    assert await patch(line, **{"If-Match": '"other"'}) == 412
    assert await patch("a=end-of-candidates") == 204
    assert await patch("nonsense") == 400
    assert await patch("a=candidate:nonsense") == 400
    assert await patch(line, **{"Content-Type": "text/plain"}) == 415
    await viewer.close()


async def test_what_is_no_offer_is_refused(serving):
    session, url, http = serving
    for data, headers, status in (
        ("v=0", SDP, 400),
        ("", SDP, 400),
        ("m=video 9 UDP/TLS/RTP/SAVPF 96\r\n", SDP, 400),
        ("v=0", {"Content-Type": "text/plain"}, 415),
        ("v" * 300_000, SDP, 413),
    ):
        async with http.post(f"{url}/whep", data=data, headers=headers) as response:
            assert response.status == status and (await response.json())["error"]
    async with http.patch(f"{url}/whep/none", data="a=end-of-candidates", headers=SDP) as response:
        assert response.status == 415
    async with http.delete(f"{url}/whep/none") as response:
        assert response.status == 404
    assert b'avatard_sessions{kind="whep"} 0.0' in session.collect()


async def test_ice_servers_are_announced():
    webrtc = Webrtc(ice_servers=("stun:127.0.0.1:3479", "turn:127.0.0.1:3480"), ice_username="u", ice_credential='c"')
    async with running_server(config(webrtc=webrtc)) as (_, url), aiohttp.ClientSession() as http:
        async with http.options(f"{url}/whep") as response:
            links = response.headers.getall("Link")
    assert links == link_headers(IceServers(webrtc.ice_servers, "u", 'c"'))
    assert links[0] == '<stun:127.0.0.1:3479>; rel="ice-server"'
    assert r'username="u"; credential="c\""; credential-type="password"' in links[1]


def test_a_fragment_says_which_section_a_candidate_is_for():
    text = (
        "a=ice-ufrag:x\r\nm=audio 9 RTP 0\r\na=mid:1\r\na=candidate:1 1 udp 1 ::1 9 typ host\r\na=end-of-candidates\r\n"
    )
    assert parse_fragment(text) == [Candidate("candidate:1 1 udp 1 ::1 9 typ host", "1")]
    with pytest.raises(OfferError, match="no candidate"):
        parse_fragment("v=0")
