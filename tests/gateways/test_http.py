"""The HTTP side, with the test engine: signalling, control, speech over a WebSocket, and everything that is wrong."""

import asyncio
import io
import os
import re
import signal
import time
from typing import Any

import aiohttp
import cv2
import numpy as np
import pytest

from avatard.commands.bench_client import ClientError, LiveClient
from avatard.config import Server, Webrtc
from avatard.media.pcm import to_pcm16
from tests.protocols.test_offer import offer
from tests.support.paths import ROOT
from tests.support.serving import Screen, beeps, config, running_server, until


@pytest.fixture(autouse=True)
def engine(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))


@pytest.fixture
async def serving():
    async with running_server() as (session, url), aiohttp.ClientSession() as http:
        yield session, url, http


async def answer_of(response: Any) -> tuple[int, str]:
    async with response as got:
        return got.status, (await got.json())["error"]


def tones(sound: np.ndarray) -> list[tuple[float, float]]:
    """Pitch in Hz and length in seconds of each run of 10 ms blocks at 48 kHz that can be heard."""
    blocks = sound[: len(sound) // 480 * 480].reshape(-1, 480)
    loud = np.concatenate([[False], np.sqrt((blocks**2).mean(axis=1)) > 0.05, [False]])
    edges = np.flatnonzero(np.diff(loud.astype(int)))
    found = []
    for first, last in zip(edges[::2], edges[1::2], strict=True):
        run = sound[480 * first : 480 * last]
        spectrum = np.abs(np.fft.rfft(run * np.hanning(len(run)), 48_000))
        found.append((float(np.argmax(spectrum)), (last - first) / 100))
    return found


async def test_a_client_sees_and_hears_what_it_says(serving):
    session, url, http = serving
    brightness: list[float] = []

    def whole_syllables() -> int:
        """Most that were heard whole in a row: a busy machine cuts some, as the microphone waits for it."""
        sound = [client.sound[at] for at in sorted(client.sound)]
        heard = tones(np.concatenate(sound).astype(np.float32) / 32768) if sound else []
        most = row = 0
        for hz, seconds in heard:
            row = row + 1 if abs(hz - 300) < 15 and 0.08 < seconds < 0.16 else 0
            most = max(most, row)
        return most

    client = LiveClient(url, beeps(60), on_picture=lambda pts, rgb: brightness.append(float(rgb[192, 128].mean())))
    try:
        await client.connect()
        await until(lambda: any(kind == "bot-started-speaking" for _, kind, _ in client.events))
        await until(lambda: any(kind == "metrics" for _, kind, _ in client.events))
        packets = 0
        async with asyncio.timeout(60):
            while whole_syllables() < 4:  # looking at the sound takes a while: not for every packet
                await until(lambda packets=packets: len(client.sound) >= packets + 50)
                packets = len(client.sound)
        await until(lambda: min(brightness) < 60 < max(brightness))  # the mouth opened and closed
        await until(lambda: abs(session.figures()["av_skew_ms"]) < 40)
        async with http.get(f"{url}/metrics") as response:
            text = await response.text()
        fates = {fate: float(n) for fate, n in re.findall(r'avatard_frames_total{fate="(\w+)"} ([\d.]+)', text)}
        assert 0 < fates["sent"] <= fates["encoded"] <= fates["played"] + fates.get("repeated", 0)
        assert 'fate="dropped"' in text and 'avatard_stage_seconds_total{stage="encoder"}' in text
        client.send({"type": "interrupt"})
        await until(lambda: any(kind == "bot-interrupted" for _, kind, _ in client.events))
        client.send("[" * 60_000)
        await until(lambda: any(data.get("message") == "expected JSON" for _, _, data in client.events))
        client.send({"type": "dance", "id": "7"})
        await until(lambda: any("unknown message" in data.get("message", "") for _, _, data in client.events))
    finally:
        await client.close()
    await until(lambda: b'avatard_sessions{kind="page"} 0.0' in session.metrics.text())


async def test_twenty_clients_in_a_row_leave_nothing_behind(serving):
    session, url, _ = serving

    async def visit() -> None:
        client = LiveClient(url)
        await client.connect()
        await client.close()
        await until(lambda: b'avatard_sessions{kind="page"} 0.0' in session.metrics.text())

    await visit()
    before = len(asyncio.all_tasks())
    for _ in range(20):
        await visit()
    await until(lambda: len(asyncio.all_tasks()) <= before)


async def test_a_full_server_says_when_to_come_back(serving):
    _, url, http = serving
    client = LiveClient(url)
    try:
        await client.connect()
        async with http.post(f"{url}/api/offer", json={"type": "offer", "sdp": offer("chrome_page")}) as response:
            body = await response.json()
            assert response.status == 503 and response.headers["Retry-After"] == "10"
            assert body == {
                "error": "the one seat is taken; try again in 10 s",
                "code": "full",
                "seats": 1,
                "retry_after_s": 10,
            }
        with pytest.raises(ClientError, match="503: the one seat is taken; try again in 10 s") as refused:
            await LiveClient(url).connect()
        assert refused.value.code == "full"
        async with http.get(f"{url}/api/status") as response:
            assert (await response.json())["clients"] == 1
    finally:
        await client.close()


async def test_garbage_is_answered_not_obeyed(serving):
    session, url, http = serving
    offer = {"type": "offer"}
    assert await answer_of(http.post(f"{url}/api/offer", data=b"x")) == (
        415,
        "got application/octet-stream, expected application/json",
    )
    as_json = {"headers": {"Content-Type": "application/json"}}
    for body, said in (
        (b"{", "expected JSON"),
        (b"[" * 200_000, "expected JSON"),
        (b"\xff", "the body is not UTF-8"),
        (b"[]", "expected a JSON object"),
        (b"{}", 'expected {"sdp"'),
    ):
        status, text = await answer_of(http.post(f"{url}/api/offer", data=body, **as_json))
        assert status == 400 and text.startswith(said)
    for sdp in ("", "v=0", "m=\r\n", "v=0\r\nm=video 9 x 1\r\n", "m=audio 9 UDP/TLS/RTP/SAVPF 0\r\na=mid:0\r\n" * 3):
        status, text = await answer_of(http.post(f"{url}/api/offer", json={**offer, "sdp": sdp}))
        assert status == 400 and text.startswith("the offer ") and "\n" not in text
    assert (await answer_of(http.post(f"{url}/api/offer", json={**offer, "sdp": "m=" + "x" * 300_000})))[0] == 413
    assert (await answer_of(http.patch(f"{url}/api/offer", json={})))[0] == 400
    assert (await answer_of(http.patch(f"{url}/api/offer", json={"pc_id": "1", "candidates": []})))[0] == 404
    assert (await answer_of(http.get(f"{url}/nothing")))[0] == 404
    assert (await answer_of(http.delete(f"{url}/api/offer")))[0] == 405
    async with http.get(f"{url}/readyz") as response:
        assert response.status == 200
    assert b'avatard_sessions{kind="page"} 0.0' in session.metrics.text()


async def test_a_portrait_is_swapped_by_http(serving):
    session, url, http = serving
    before = session.generation.digest
    data = cv2.imencode(".png", np.full((64, 64, 3), 9, np.uint8))[1].tobytes()
    async with http.post(f"{url}/api/identity", data=data, headers={"Content-Type": "image/png"}) as response:
        assert response.status == 200 and (await response.json())["identity"] == session.generation.digest != before
    async with http.get(f"{url}/api/portrait") as response:
        pixels = cv2.imdecode(np.frombuffer(await response.read(), np.uint8), cv2.IMREAD_COLOR)
        assert response.content_type == "image/jpeg" and pixels is not None and abs(int(pixels[0, 0, 0]) - 9) < 3
    status, text = await answer_of(http.post(f"{url}/api/identity", data=b"x", headers={"Content-Type": "image/png"}))
    assert (status, text) == (422, "the portrait is not a picture that can be read")
    assert (await answer_of(http.post(f"{url}/api/identity", data=b"x")))[0] == 415
    image = {"Content-Type": "image/png"}
    status, text = await answer_of(http.post(f"{url}/api/identity?face=2", data=data, headers=image))
    assert (status, text) == (422, "the portrait has 1 face, got face 2")
    two = cv2.imencode(".png", np.full((64, 128, 3), 9, np.uint8))[1].tobytes()
    async with http.post(f"{url}/api/identity", data=two, headers=image) as response:
        body = await response.json()
        assert response.status == 422 and (body["code"], body["faces"]) == ("several-faces", 2)
        assert body["error"] == "the portrait has 2 faces: choose with face=1 or 2, counted from the left"
    status, text = await answer_of(http.post(f"{url}/api/identity?face=two", data=data, headers=image))
    assert (status, text) == (400, "got face=two, expected 1 to 64, counted from the left")
    status, text = await answer_of(http.post(f"{url}/api/identity?face={'0' * 5000}", data=data, headers=image))
    assert status == 400 and text.startswith("got face=000") and len(text) < 100
    huge = http.post(f"{url}/api/identity", data=io.BytesIO(bytes(9 << 20)), headers={"Content-Type": "image/png"})
    assert (await answer_of(huge))[0] == 413


async def test_half_requests_are_closed_by_the_server(serving, monkeypatch):
    monkeypatch.setattr("avatard.gateways.connections.HEAD_SECONDS", 0.2)
    _, url, http = serving
    host, _, port = url.removeprefix("http://").rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(b"GET / HTTP/1.1\r\n")
    async with asyncio.timeout(10):
        assert (await reader.read()).startswith(b"HTTP/1.1 408 Request Timeout\r\n")
    writer.close()
    await writer.wait_closed()
    async with http.get(f"{url}/healthz") as response:
        assert response.status == 200


async def test_a_voice_agent_speaks_and_interrupts_over_a_websocket(serving):
    session, url, http = serving
    async with http.ws_connect(f"{url}/ws/audio") as socket:
        await socket.send_bytes(b"\0\0")
        assert "expected the hello" in (await socket.receive_json())["data"]["message"]
        for garbage in ("{", "[" * 200_000):
            await socket.send_str(garbage)
            assert (await socket.receive_json())["type"] == "error"
        for hello, said in HELLOS:
            await socket.send_json(hello)
            assert said in (await socket.receive_json())["data"]["message"]
        await socket.send_json({"sample_rate": 24000})
        voice = to_pcm16(beeps(4, 24000)).tobytes()
        for start in range(0, len(voice), 4095):  # faster than real time, samples cut in two
            await socket.send_bytes(voice[start : start + 4095])
        seen = await events_until(socket, "bot-started-speaking")
        async with http.post(f"{url}/api/interrupt") as response:
            cut = await response.json()
        assert 0 < cut["played_ms"] < 4000 and cut["played_ms"] + cut["dropped_ms"] == pytest.approx(4000, abs=1)
        event = (await events_until(socket, "bot-interrupted"))[-1]
        assert event["label"] == "rtvi-ai" and event["data"]["played_ms"] == cut["played_ms"]
        assert seen[0]["data"]["state"] == "queued"
        await socket.send_json({"type": "end_of_utterance"})
    async with http.ws_connect(f"{url}/ws/audio") as socket:
        await socket.send_bytes(bytes(2 << 20))
        message = await socket.receive(timeout=10)
        assert message.type is aiohttp.WSMsgType.CLOSE and message.data == 1009
    assert session.ready


async def test_a_file_instead_of_samples_is_refused_to_its_end(serving):
    _, url, http = serving
    async with http.ws_connect(f"{url}/ws/audio") as socket:
        await socket.send_json({"sample_rate": 16000})
        await socket.send_json({"type": "start_of_utterance", "id": "file"})
        for part in (b"RIFF....WAVE", to_pcm16(beeps(1)).tobytes()):
            await socket.send_bytes(part)
            await asyncio.sleep(0.6)  # a sender that pauses is still in its file
        await socket.send_json({"type": "start_of_utterance", "id": "samples"})
        await socket.send_bytes(to_pcm16(beeps(1)).tobytes())
        await socket.send_json({"type": "end_of_utterance"})
        seen: list[dict[str, Any]] = []
        while [event["data"].get("state") for event in seen].count("ended") < 2:
            seen += await events_until(socket, "utterance")
    assert ["got a WAV file" in event["data"]["message"] for event in seen if event["type"] == "error"] == [True]
    ended = [event["data"] for event in seen if event["data"].get("state") == "ended"]
    assert [(data["id"], data["played_ms"]) for data in ended] == [("file", 0), ("samples", 1000)]


HELLOS = [
    ({"sample_rate": 5}, "Expected `int` >= 8000"),
    ({"sample_rate": 22050.5}, "Expected `int`, got `float`"),
    ({"sample_rate": "22050"}, "Expected `int`, got `str`"),
    ({"sample_rate": True}, "Expected `int`, got `bool`"),
    ({"sample_rate": 24000, "channels": 3}, '"channels": 1 or 2'),
    ({"sample_rate": 24000, "encoding": "opus"}, '"s16le", "f32le" or "mulaw"'),
    ({"sample_rate": 24000, "format": "f32le"}, "unknown field `format`"),
    ({"type": "nonsense"}, "Invalid value 'nonsense'"),
]


async def events_until(socket, last):
    """The events that come up to the one that is waited for."""
    seen: list[dict[str, Any]] = []
    async with asyncio.timeout(20):
        while not seen or seen[-1]["type"] != last:
            seen.append(await socket.receive_json())
    return seen


async def test_each_utterance_ends_once_by_its_name(serving):
    session, url, http = serving
    session.attach(Screen())
    async with http.ws_connect(f"{url}/ws/audio") as socket:
        await socket.send_json({"sample_rate": 16000, "encoding": "f32le", "channels": 2})
        for name in ("a", "b", "empty"):
            await socket.send_json({"type": "start_of_utterance", "id": name})
            if name != "empty":
                await socket.send_bytes(beeps(0.4).repeat(2).astype("<f4").tobytes())
            await socket.send_json({"type": "end_of_utterance"})
        told: list[tuple[str, str]] = []
        while told[-1:] != [("empty", "ended")]:
            event = (await events_until(socket, "utterance"))[-1]["data"]
            told.append((event["id"], event["state"]))
        for name in ("a", "b", "empty"):
            assert [state for which, state in told if which == name] == ["queued", "started", "ended"]


async def test_a_message_of_one_mebibyte_is_taken(serving):
    session, url, http = serving
    async with http.ws_connect(f"{url}/ws/audio") as socket:
        await socket.send_json({"sample_rate": 48000})
        await socket.send_bytes(bytes(1 << 20))
        await socket.send_json({"type": "end_of_utterance"})
        assert (await events_until(socket, "utterance"))[-1]["data"]["state"] == "queued"
        await socket.send_json({"type": "interrupt"})
        ended = (await events_until(socket, "utterance"))[-1]
        while ended["data"]["state"] != "ended":
            ended = (await events_until(socket, "utterance"))[-1]
        assert ended["data"]["played_ms"] + ended["data"]["dropped_ms"] == (1 << 19) // 48


async def push_two_minutes(socket, rate_hz):
    await socket.send_json({"sample_rate": rate_hz})
    for _ in range(4):
        await socket.send_bytes(to_pcm16(beeps(30, rate_hz)).tobytes())


async def test_an_interrupt_overtakes_the_speech_before_it_and_what_follows_is_said(serving):
    session, url, http = serving
    screen = Screen()
    session.attach(screen)
    async with http.ws_connect(f"{url}/ws/audio") as socket:
        await push_two_minutes(socket, 8000)
        await events_until(socket, "bot-started-speaking")
        began = time.monotonic()
        await socket.send_json({"type": "interrupt"})
        await socket.send_bytes(to_pcm16(beeps(1, 8000)).tobytes())
        await events_until(socket, "bot-interrupted")
        assert time.monotonic() - began < 60, "not after two minutes of speech"
        seen = len(screen.entries)
        await until(lambda: sum(np.abs(entry.samples).max() > 0.1 for entry in screen.entries[seen:]) >= 6)
        await until(lambda: not session.scheduler.buffered_samples)


async def test_what_was_said_before_the_connection_ended_is_said(serving):
    session, url, http = serving
    screen = Screen()
    session.attach(screen)
    async with http.ws_connect(f"{url}/ws/audio") as socket:
        await socket.send_json({"sample_rate": 16000})
        await socket.send_bytes(to_pcm16(beeps(2)).tobytes())
    await until(lambda: sum(np.abs(entry.samples).max() > 0.1 for entry in screen.entries) >= 15)


async def test_a_sender_is_held_back_when_minutes_of_speech_wait(serving, monkeypatch):
    monkeypatch.setattr("avatard.session.speaker.MAX_WAITING_SECONDS", 1.0)
    session, url, http = serving
    session.attach(Screen())
    async with http.ws_connect(f"{url}/ws/audio") as socket:
        await push_two_minutes(socket, 16000)
        await socket.send_json({"type": "nonsense"})
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(2):
                while (await socket.receive_json())["type"] != "error":
                    pass
        session.interrupt()
        await events_until(socket, "error")


async def test_a_page_of_another_site_is_refused(serving):
    _, url, http = serving
    elsewhere = {"headers": {"Origin": "https://evil.example"}}
    status, text = await answer_of(http.post(f"{url}/api/interrupt", **elsewhere))
    assert (status, text) == (403, "requests from pages of https://evil.example are not accepted")
    async with http.options(f"{url}/whep", **elsewhere) as response:
        assert response.status == 403 and "Access-Control-Allow-Origin" not in response.headers
    rebound = {"headers": {"Origin": "http://evil.example", "Host": "evil.example"}}
    assert (await answer_of(http.post(f"{url}/api/interrupt", **rebound)))[0] == 403
    async with http.post(f"{url}/api/interrupt", headers={"Origin": url}) as response:
        assert response.status == 200


async def test_the_page_comes_whole_from_this_server(serving):
    _, url, http = serving
    async with http.get(f"{url}/") as response:
        page = await response.text()
        assert "default-src 'self'" in response.headers["Content-Security-Policy"]
    assert "http://" not in page and "https://" not in page
    for name in ("app.js", "connection.js", "say.js", "speech.js", "style.css", "icon.svg"):
        async with http.get(f"{url}/web/{name}") as response:
            assert response.status == 200


async def test_with_a_token_only_health_is_open():
    settings = config(server=Server(port=0, token="s3cret"))
    async with running_server(settings) as (_, url), aiohttp.ClientSession() as http:
        for path in ("/", "/metrics", "/web/app.js", "/ws/audio", "/mjpeg", "/api/outputs"):
            async with http.get(f"{url}{path}") as response:
                assert response.status == 401 and response.headers["WWW-Authenticate"] == "Bearer"
        for path in ("/healthz", "/readyz"):
            async with http.get(f"{url}{path}") as response:
                assert response.status == 200
        assert (await answer_of(http.post(f"{url}/whep", data=b"")))[0] == 401
        async with http.options(f"{url}/whep", headers={"Origin": "https://viewer.example"}) as response:
            assert response.status == 204 and response.headers["Access-Control-Allow-Origin"] == "*"
        async with http.get(f"{url}/metrics", headers={"Authorization": "Bearer s3cret"}) as response:
            assert response.status == 200
        async with http.get(f"{url}/?token=wrong") as response:
            assert response.status == 401
        async with http.get(f"{url}/?token=s3cret") as response:
            cookie = response.cookies["avatard_token"]
            assert response.status == 200 and cookie["httponly"] and cookie["samesite"] == "Strict"
        client = LiveClient(url, token="s3cret")
        await client.connect()
        await client.close()


async def test_behind_a_proxy_page_and_cookie_know_their_prefix():
    settings = config(server=Server(port=0, token="s3cret"))
    async with running_server(settings) as (_, url), aiohttp.ClientSession(cookie_jar=aiohttp.DummyCookieJar()) as http:
        for headers, base, path, secure in (
            ({}, "", "/", ""),
            ({"X-Forwarded-Prefix": "/avatar/1/"}, '<base href="/avatar/1/">', "/avatar/1", ""),
            ({"X-Forwarded-Prefix": '/"><script>', "X-Forwarded-Proto": "https"}, "", "/", True),
        ):
            async with http.get(f"{url}/?token=s3cret", headers=headers) as response:
                text, cookie = await response.text(), response.cookies["avatard_token"]
            assert base in text if base else "<base" not in text
            assert cookie["path"] == path and cookie["secure"] == secure


async def test_browsers_are_told_the_ice_servers_they_can_use():
    turn = ("stun:stun.example:3478", "turn:turn.example", "turns:turn.example")
    for credential, servers in (
        ("", [{"urls": [turn[0]]}]),
        ("pass", [{"urls": [turn[0]]}, {"urls": [*turn[1:]], "username": "me", "credential": "pass"}]),
    ):
        webrtc = Webrtc(ice_servers=turn, ice_username="me", ice_credential=credential)
        async with running_server(config(webrtc=webrtc)) as (_, url), aiohttp.ClientSession() as http:
            async with http.get(f"{url}/api/ice") as response:
                assert await response.json() == {"ice_servers": servers}
                assert response.headers["Cache-Control"] == "no-store"


async def test_while_the_worker_restarts_new_clients_are_asked_to_wait(serving):
    session, url, http = serving
    assert session.generation.supervisor.pid is not None
    os.kill(session.generation.supervisor.pid, signal.SIGKILL)
    await until(lambda: not session.ready)
    async with http.get(f"{url}/readyz") as response:
        assert response.status == 503 and response.headers["Retry-After"] == "2"
    with pytest.raises(ClientError, match="503: the avatar is starting"):
        await LiveClient(url).connect()
    await until(lambda: session.ready)
    client = LiveClient(url)
    await client.connect()
    await client.close()


async def test_metrics_are_prometheus_text(serving):
    _, url, http = serving
    async with http.get(f"{url}/metrics") as response:
        assert response.headers["Content-Type"].startswith("text/plain; version=0.0.4")
        text = await response.text()
    for name in ("avatard_rtf", "avatard_first_frame_seconds", "avatard_interrupt_seconds", "avatard_queue_depth"):
        assert f"# HELP {name}" in text


async def test_h264_is_an_option():
    async with running_server(config(webrtc=Webrtc(codec="h264"))) as (_, url):
        client = LiveClient(url)
        await client.connect()
        await until(lambda: client.pictures > 25)
        await client.close()
