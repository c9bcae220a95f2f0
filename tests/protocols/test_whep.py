"""WHEP and WHIP over HTTP with the test engine."""

import asyncio
from typing import Any

import aiohttp
import numpy as np
import pytest
from aiortc import RTCConfiguration, RTCPeerConnection, RTCRtpReceiver, RTCSessionDescription
from aiortc.mediastreams import MediaStreamTrack

from avatard.commands.bench_client import Voice
from avatard.config import Picture, Webrtc
from avatard.protocols.peer import IceServers
from avatard.protocols.whep import link_headers
from tests.protocols.test_offer import offer
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

    def __init__(self, codec: str = "vp8", track: MediaStreamTrack | None = None) -> None:
        self.codec = codec  # without which it offers nothing
        self.pc = RTCPeerConnection(RTCConfiguration(iceServers=[]))
        self.frames = {"audio": 0, "video": 0}
        self.picture: np.ndarray | None = None  # the last
        self.tasks: list[asyncio.Task[None]] = []
        if track is not None:
            self.pc.addTransceiver(track, direction="sendonly")
        else:
            self.pc.addTransceiver("video", direction="recvonly")
            self.pc.addTransceiver("audio", direction="recvonly")
            capabilities = RTCRtpReceiver.getCapabilities("video")
            assert capabilities is not None
            known = [
                known for known in capabilities.codecs if codec == "vp8" or known.mimeType.lower() == f"video/{codec}"
            ]
            self.pc.getTransceivers()[0].setCodecPreferences(known)
        self.pc.on("track", lambda track: self.tasks.append(asyncio.ensure_future(self.read(track))))

    async def read(self, track: Any) -> None:
        while True:
            frame = await track.recv()
            self.frames[track.kind] += 1
            if track.kind == "video":
                self.picture = frame.to_ndarray(format="rgb24")

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
    assert b'avatard_sessions{kind="whep"} 3.0' in session.metrics.text()
    for location in locations:
        async with http.delete(f"{url}{location}") as response:
            assert response.status == 200
        async with http.delete(f"{url}{location}") as response:
            assert response.status == 404
    assert b'avatard_sessions{kind="whep"} 0.0' in session.metrics.text()
    for viewer in viewers:
        await viewer.close()


async def test_a_viewer_may_have_colour_over_matte():
    async with (
        running_server(config(picture=Picture(background="transparent"))) as (_, url),
        aiohttp.ClientSession() as http,
    ):
        viewers = {"?alpha=stacked": Viewer(), "": Viewer()}
        for query, viewer in viewers.items():
            async with http.post(f"{url}/whep{query}", data=await viewer.offer(), headers=SDP) as response:
                assert response.status == 201
                await viewer.pc.setRemoteDescription(RTCSessionDescription(await response.text(), "answer"))
        viewers["page"] = page = Viewer()
        offer = {"type": "offer", "sdp": await page.offer()}
        async with http.post(f"{url}/api/offer?alpha=stacked", json=offer) as response:
            assert response.status == 200
            await page.pc.setRemoteDescription(RTCSessionDescription((await response.json())["sdp"], "answer"))
        await until(lambda: all(viewer.frames["video"] > 5 for viewer in viewers.values()))
        stacked, plain, seated = (viewer.picture for viewer in viewers.values())
        assert stacked is not None and stacked.shape == (512, 256, 3)
        assert seated is not None and seated.shape == stacked.shape
        matte = stacked[256:, 32::64].mean(axis=(0, 2))
        np.testing.assert_allclose(matte, [0, 255, 255, 128], atol=8)
        np.testing.assert_allclose(stacked[100:156, 70:180].mean(), 128, atol=6)
        assert plain is not None and plain.shape == (256, 256, 3)
        assert plain[100:156, 4:60].min() > 180, "chequers"
        for refused in (
            http.post(f"{url}/whep?alpha=yes", data="v=0", headers=SDP),
            http.post(f"{url}/api/offer?alpha=yes", json=offer),
        ):
            async with refused as response:
                assert response.status == 400
                assert (await response.json())["error"] == "got alpha=yes, expected alpha=stacked or none"
        for viewer in viewers.values():
            await viewer.close()


async def test_without_a_matte_none_is_sent(serving):
    session, url, http = serving
    viewer = Viewer()
    async with http.post(f"{url}/whep?alpha=stacked", data=await viewer.offer(), headers=SDP) as response:
        assert response.status == 406
        answer = await response.json()
    assert answer["code"] == "not-acceptable" and "picture.background" in answer["error"]
    assert b'avatard_sessions{kind="whep"} 0.0' in session.metrics.text() or b"whep" not in session.metrics.text()
    await viewer.close()


async def test_speech_comes_in_by_whip(serving):
    session, url, http = serving
    voice = Viewer(track=Voice(beeps(5)))
    async with http.post(f"{url}/whip", data=await voice.offer(), headers=SDP) as response:
        assert response.status == 201
        location = response.headers["Location"]
        await voice.pc.setRemoteDescription(RTCSessionDescription(await response.text(), "answer"))
    await until(lambda: session.speaking)
    assert location.startswith("/whip/")
    await voice.close()
    await until(lambda: b'avatard_sessions{kind="whip"} 0.0' in session.metrics.text())


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
    assert await patch(line, **{"Content-Type": "text/plain"}) == 415
    bad = "a=candidate:1 1 udp 1 127.0.0.1 70000 typ host\r\n"
    async with http.patch(f"{url}{location}", data=bad, headers=kind) as response:
        body = await response.json()
        assert response.status == 400 and body["code"] == "offer"
        assert body["error"].endswith("cannot be used: port 70000 is not from 0 to 65535")
    restart = "a=ice-ufrag:abcd\r\na=ice-pwd:0123456789012345678901\r\n"
    async with http.patch(f"{url}{location}", data=restart, headers=kind) as response:
        assert response.status == 422
        assert (await response.json())["error"].startswith("ICE cannot be restarted: the connection is not established")
    await viewer.close()


async def test_a_restart_of_ice_is_answered_with_new_credentials(serving):
    _, url, http = serving
    viewer = Viewer()
    async with http.post(f"{url}/whep", data=await viewer.offer(), headers=SDP) as response:
        location, etag = response.headers["Location"], response.headers["ETag"]
        await viewer.pc.setRemoteDescription(RTCSessionDescription(await response.text(), "answer"))
    await until(lambda: viewer.frames["video"] > 0)
    kind = {"Content-Type": "application/trickle-ice-sdpfrag"}
    restart = "a=ice-ufrag:abcd\r\na=ice-pwd:0123456789012345678901\r\n"
    async with http.patch(f"{url}{location}", data=restart, headers=kind | {"If-Match": "*"}) as response:
        assert response.status == 200 and response.content_type == "application/trickle-ice-sdpfrag"
        fragment, restarted = await response.text(), response.headers["ETag"]
    assert restarted != etag and "a=ice-ufrag:" in fragment and "a=candidate:" in fragment
    async with http.patch(
        f"{url}{location}", data="a=end-of-candidates", headers=kind | {"If-Match": etag}
    ) as response:
        assert response.status == 412
    seen = viewer.frames["video"]
    await until(lambda: viewer.frames["video"] > seen + 5)  # over the old path, while the new one is checked
    await viewer.close()


async def test_offers_that_cannot_be_served_are_told_what_can(serving):
    session, url, http = serving
    for path, name, said, codecs in (
        ("/whep", "av1_only", "no video codec of the offer can be sent: got AV1", ["vp8", "h264"]),
        ("/whep/", "g711_only", "no audio codec of the offer can be used: got PCMU, PCMA; expected Opus", ["opus"]),
        ("/whep", "obs_whip", "the offer receives nothing", None),
        ("/whip/", "obs_whep", "the offer sends no sound", None),
    ):
        async with http.post(f"{url}{path}", data=offer(name), headers=SDP) as response:
            body = await response.json()
            assert response.status == 406 and body["error"].startswith(said), body
            assert body["code"] == "not-acceptable" and body.get("supported") == codecs
    for kind in (b"whep", b"whip"):
        assert b'avatard_sessions{kind="%s"} 0.0' % kind in session.metrics.text()


async def test_paths_may_end_with_a_slash_and_lie_behind_a_proxy(serving):
    _, url, http = serving
    for path, prefix, location in (
        ("/whep/", "/avatar/1/", "/avatar/1/whep/"),
        ("/whep", "//evil.example", "/whep/"),
        ("/whep", "https://evil.example", "/whep/"),
    ):
        headers = SDP | {"X-Forwarded-Prefix": prefix}
        async with http.post(f"{url}{path}", data=offer("obs_whep"), headers=headers) as response:
            assert response.status == 201 and response.headers["Location"].startswith(location)
            name = response.headers["Location"].rpartition("/")[2]
        async with http.delete(f"{url}/whep/{name}") as response:
            assert response.status == 200


async def test_obs_speaks_by_whip_and_its_picture_is_refused(serving):
    session, url, http = serving
    async with http.post(f"{url}/whip", data=offer("obs_whip"), headers=SDP) as response:
        assert response.status == 201 and "m=video 0 " in await response.text()


async def test_viewers_of_both_codecs_are_served_at_once(serving):
    _, url, http = serving
    viewers = [Viewer(), Viewer("h264")]
    for viewer in viewers:
        async with http.post(f"{url}/whep", data=await viewer.offer(), headers=SDP) as response:
            answer = await response.text()
            assert response.status == 201 and ("H264" in answer) == (viewer.codec == "h264")
            await viewer.pc.setRemoteDescription(RTCSessionDescription(answer, "answer"))
    await until(lambda: all(viewer.frames["video"] > 10 for viewer in viewers))
    for viewer in viewers:
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
    assert b'avatard_sessions{kind="whep"} 0.0' in session.metrics.text()


async def test_ice_servers_are_announced():
    webrtc = Webrtc(ice_servers=("stun:127.0.0.1:3479", "turn:127.0.0.1:3480"), ice_username="u", ice_credential='c"')
    async with running_server(config(webrtc=webrtc)) as (_, url), aiohttp.ClientSession() as http:
        async with http.options(f"{url}/whep") as response:
            links = response.headers.getall("Link")
    assert links == link_headers(IceServers(webrtc.ice_servers, "u", 'c"'))
    assert links[0] == '<stun:127.0.0.1:3479>; rel="ice-server"'
    assert r'username="u"; credential="c\""; credential-type="password"' in links[1]
