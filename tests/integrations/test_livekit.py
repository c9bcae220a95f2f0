"""LiveKit's own `AvatarRunner`, audio outputs and sources with a session, in rooms in memory; in real time.

With LIVEKIT_URL, LIVEKIT_API_KEY and LIVEKIT_API_SECRET in the environment, also in a room of that server.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import random
import runpy
import sys
import warnings
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any

import aiohttp
import numpy as np
import pytest

from avatard.media.pcm import to_pcm16
from tests.support import memory
from tests.support.paths import SCRIPTS
from tests.support.serving import beeps, running_server, running_session, until
from tests.support.sounds import write_wav

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    pytest.importorskip("livekit.agents", reason="needs pip install 'avatard[livekit]'")
    from livekit import rtc
    from livekit.agents.voice.avatar import AudioSegmentEnd, DataStreamAudioOutput

    from avatard.gateways import livekit as route
    from avatard.integrations import livekit, livekit_room
    from avatard.integrations.stream import SessionStream
    from tests.support.livekit_rooms import Server

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
RATE = 24_000


@pytest.fixture(autouse=True)
def engine(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))


def sound(samples: np.ndarray, rate_hz: int = RATE) -> Any:
    return rtc.AudioFrame(to_pcm16(samples).tobytes(), rate_hz, 1, len(samples))


class Agent:
    """What an agent does with its audio output, and what it is told."""

    def __init__(self, output: Any) -> None:
        self.output = output
        self.finished: list[Any] = []
        self.started = 0
        output.on("playback_finished", self.finished.append)
        output.on("playback_started", self._on_started)

    def _on_started(self, _: object) -> None:
        self.started += 1

    async def say(self, seconds: float, message_ms: int = 20, end: bool = True) -> None:
        spoken = beeps(seconds, RATE)
        size = RATE * message_ms // 1000
        for first in range(0, len(spoken), size):
            await self.output.capture_frame(sound(spoken[first : first + size]))
        if end:
            self.output.flush()

    async def interrupt(self) -> None:
        self.output.clear_buffer()
        self.output.flush()
        await self.output.wait_for_playout()


class Ear:
    """What LiveKit's sources are given."""

    def __init__(self, monkeypatch: Any) -> None:
        self.sound: list[tuple[int, Any]] = []  # with how many pictures came before
        self.pictures: list[Any] = []
        capture_sound, capture_picture = rtc.AudioSource.capture_frame, rtc.VideoSource.capture_frame

        async def hear(source: Any, frame: Any) -> None:
            self.sound.append((len(self.pictures), frame))
            await capture_sound(source, frame)

        def see(source: Any, frame: Any, **options: Any) -> None:
            self.pictures.append(frame)
            capture_picture(source, frame, **options)

        monkeypatch.setattr(rtc.AudioSource, "capture_frame", hear)
        monkeypatch.setattr(rtc.VideoSource, "capture_frame", see)

    @property
    def seconds(self) -> float:
        return float(sum(frame.duration for _, frame in self.sound))


@pytest.fixture
def ear(monkeypatch):
    return Ear(monkeypatch)


@asynccontextmanager
async def in_process(server: Server):
    """An agent whose avatar is in its own process."""
    async with running_session() as session:
        room = server.room("agent")
        await room.connect("", "")
        stream = SessionStream(session)
        await stream.start()
        output = livekit.AgentAudioOutput()
        runner = livekit.make_runner(room, stream, output)
        await runner.start()
        try:
            yield Agent(output)
        finally:
            await stream.stop()
            await runner.aclose()


async def test_segments_pushed_ahead_end_each_at_its_length(ear):
    async with in_process(Server()) as agent:
        lengths = [0.3, 0.2, 0.44]
        for seconds in lengths:
            await agent.say(seconds)
        async with asyncio.timeout(30):
            await agent.output.wait_for_playout()
        await asyncio.sleep(0.1)
        positions = [event.playback_position for event in agent.finished]
        assert np.allclose(positions, lengths, atol=0.001) and agent.started == 3
        assert not any(event.interrupted for event in agent.finished)
        assert abs(ear.seconds - sum(lengths)) < 0.001, "sound is given only inside speech"
        assert len(ear.pictures) > 25 * sum(lengths), "pictures always"
        heard = np.concatenate([np.frombuffer(frame.data, np.int16) for _, frame in ear.sound])
        assert np.count_nonzero(heard) > 0.2 * len(heard)


async def test_an_interrupt_lets_nothing_old_be_heard_and_reports_once(ear):
    async with in_process(Server()) as agent:
        await agent.say(20, message_ms=100, end=False)
        await until(lambda: ear.seconds > 0.3)
        await agent.interrupt()
        heard = ear.seconds
        [event] = agent.finished
        assert event.interrupted and abs(event.playback_position - heard) <= 0.04
        seen = len(ear.pictures)
        await until(lambda: len(ear.pictures) > seen + 30)
        assert ear.seconds == heard and len(agent.finished) == 1
        await agent.say(0.3)
        async with asyncio.timeout(30):
            event = await agent.output.wait_for_playout()
        assert not event.interrupted and abs(event.playback_position - 0.3) <= 0.04
        assert len(agent.finished) == 2


async def test_an_interrupt_ends_what_the_runner_has_not_read(ear):
    async with in_process(Server()) as agent:
        await agent.say(5, end=False)
        async with asyncio.timeout(30):
            await agent.interrupt()  # before the runner had its turn
        assert [(event.playback_position, event.interrupted) for event in agent.finished] == [(0.0, True)]
        before = ear.seconds
        await agent.say(5)
        await agent.say(5)  # waits behind the end of the first
        await until(lambda: ear.seconds > before + 0.2)
        async with asyncio.timeout(30):
            await agent.interrupt()
        first, second = agent.finished[1:]
        assert first.interrupted and abs(first.playback_position - (ear.seconds - before)) <= 0.04
        assert second.interrupted and second.playback_position == 0
        await agent.say(0.2)
        async with asyncio.timeout(30):
            event = await agent.output.wait_for_playout()
        assert not event.interrupted and abs(event.playback_position - 0.2) <= 0.04
        assert len(agent.finished) == 4


async def test_twenty_segments_and_five_interrupts(ear):
    """In bursts of messages of 10 to 100 ms: one end each, positions within 40 ms."""
    random.seed(3)
    async with in_process(Server()) as agent:
        interrupted = set(random.sample(range(20), 5))
        for number, message_ms in zip(range(20), itertools.cycle([10, 20, 40, 100]), strict=False):
            before, seconds = ear.seconds, random.uniform(0.15, 0.5)
            await agent.say(seconds, message_ms, end=number not in interrupted)
            if number in interrupted:
                await asyncio.sleep(random.uniform(0, 0.9))
                await agent.interrupt()
            async with asyncio.timeout(30):
                event = await agent.output.wait_for_playout()
            heard = ear.seconds - before
            assert len(agent.finished) == number + 1
            assert event.interrupted == (number in interrupted)
            assert abs(event.playback_position - heard) <= 0.04
            assert event.interrupted or abs(event.playback_position - seconds) <= 0.04
        still, seen = ear.seconds, len(ear.pictures)
        await until(lambda: len(ear.pictures) > seen + 30)
        assert ear.seconds == still and len(agent.finished) == 20


@memory.long
async def test_memory_does_not_grow():
    async with in_process(Server()) as agent:

        async def once(number: int) -> None:
            await agent.say(0.3, end=number % 10 != 0)
            if number % 10 == 0:
                await agent.interrupt()
            async with asyncio.timeout(30):
                await agent.output.wait_for_playout()

        assert await memory.growth(once) < memory.MOST_BYTES
        assert len(agent.finished) == memory.REPEATS


async def test_nothing_is_said_before_a_listener_has_subscribed(ear):
    server = Server()
    server.subscribed.clear()
    async with in_process(server) as agent:
        await agent.say(0.3)
        await until(lambda: server.published == ["KIND_AUDIO"])
        await asyncio.sleep(0.3)
        assert not ear.sound and not ear.pictures
        server.subscribed.set()
        async with asyncio.timeout(30):
            event = await agent.output.wait_for_playout()
        assert abs(event.playback_position - 0.3) < 0.001
        assert server.published == ["KIND_AUDIO", "KIND_VIDEO"]


async def read(generator: Any) -> None:
    async for _ in generator:
        pass


async def test_an_interrupt_while_the_end_is_awaited_frees_the_next_segment(ear):
    async with running_session() as session:
        stream = SessionStream(session)
        await stream.start()
        generator = livekit.AvatarGenerator(stream)
        reading = asyncio.create_task(read(generator))
        await until(generator._published.is_set)
        await generator.push_audio(AudioSegmentEnd())  # of nothing: returns at once
        await generator.push_audio(sound(beeps(5, RATE)))
        waiting = asyncio.create_task(generator.push_audio(AudioSegmentEnd()))
        await asyncio.sleep(0.05)
        assert not waiting.done()
        assert generator.clear_buffer() is None
        async with asyncio.timeout(5):
            await waiting
        reading.cancel()
        await stream.stop()


def test_stereo_is_averaged():
    both = np.stack([np.full(100, 8192, np.int16), np.zeros(100, np.int16)], axis=1)
    mono = livekit._mono(rtc.AudioFrame(both.tobytes(), RATE, 2, 100))
    np.testing.assert_allclose(mono, np.full(100, 0.125))


def test_pictures_keep_their_colours():
    red = np.zeros((4, 4, 3), np.uint8)
    red[..., 0] = 200
    frame = livekit._video(red)
    assert bytes(frame.data)[:4] == bytes([200, 0, 0, 255])


class FakeSession:
    """What an avatar uses of an `AgentSession`."""

    def __init__(self) -> None:
        self.tail: Any = None
        self.output = SimpleNamespace(replace_audio_tail=lambda tail: setattr(self, "tail", tail))
        self.told: list[str] = []

    def on(self, name: str, _: object) -> None: ...

    def off(self, name: str, _: object) -> None: ...

    def emit(self, name: str, _: object) -> None:
        self.told.append(name)


async def test_an_avatar_in_the_agents_process(ear):
    server = Server()
    room = server.room("agent")
    await room.connect("", "")
    async with running_session() as session:
        avatar, agent_session = livekit.AvatarSession(session), FakeSession()
        await avatar.start(agent_session, room)
        agent = Agent(agent_session.tail)
        await agent.say(0.2)
        async with asyncio.timeout(30):
            event = await agent.output.wait_for_playout()
        assert abs(event.playback_position - 0.2) < 0.001
        assert avatar.avatar_identity == "agent" and avatar.provider == "avatard"
        await avatar.aclose()
        assert room.isconnected(), "the agent stays"
        assert session.ready
        await avatar.aclose()


async def test_a_real_agent_session_says_a_file_and_is_interrupted(ear, tmp_path, monkeypatch):
    from livekit.agents import Agent as RealAgent
    from livekit.agents import AgentSession

    example = runpy.run_path(str(SCRIPTS / "examples" / "livekit_agent.py"))
    server = Server()
    room = server.room("agent")
    await room.connect("", "")
    async with running_session() as session:
        avatar, agent_session = livekit.AvatarSession(session), AgentSession()
        await avatar.start(agent_session, room)
        await agent_session.start(RealAgent(instructions="Be kind."))
        hello = write_wav(tmp_path / "hello.wav", beeps(0.3, RATE), RATE)
        async with asyncio.timeout(30):
            await agent_session.say("Hello!", audio=example["sound_of"](str(hello)))
        assert abs(ear.seconds - 0.3) <= 0.001
        long = write_wav(tmp_path / "long.wav", beeps(20, RATE), RATE)
        saying = agent_session.say("Once upon a time", audio=example["sound_of"](str(long)))
        await until(lambda: ear.seconds > 0.5)
        async with asyncio.timeout(30):
            await agent_session.interrupt()
            await saying
        assert saying.interrupted
        heard, seen = ear.seconds, len(ear.pictures)
        await until(lambda: len(ear.pictures) > seen + 25)
        assert ear.seconds == heard
        await agent_session.aclose()
        await avatar.aclose()


async def test_the_example_worker_knows_which_daemons_are_free(monkeypatch):
    example = runpy.run_path(str(SCRIPTS / "examples" / "livekit_agent.py"))
    server = Server()
    async with daemon(server, monkeypatch) as (url, http, _):
        address = url.removesuffix("/api/livekit")
        monkeypatch.setenv("AVATARD", f"{address} http://127.0.0.1:9")
        assert await asyncio.to_thread(example["load"], None) == 0.5
        avatar = await asyncio.to_thread(example["make_avatar"])
        assert avatar._url == url
        async with http.post(url, json=INVITATION):
            assert await asyncio.to_thread(example["load"], None) == 1
    monkeypatch.delenv("AVATARD")
    assert example["load"](SimpleNamespace(active_jobs=[])) == 0
    assert example["load"](SimpleNamespace(active_jobs=["one"])) == 1


def test_an_avatar_needs_a_portrait_that_can_be_read(tmp_path):
    with pytest.raises(Exception, match="cannot be read"):
        livekit.AvatarSession(tmp_path / "nobody.png")


@asynccontextmanager
async def daemon(server: Server, monkeypatch: Any):
    """A daemon whose LiveKit server is `server`; tokens are what the test says."""
    room = server.room("avatard", {"lk.publish_on_behalf": "agent"})
    original = route.LiveKitRoute.__init__

    def made(self: Any, session: Any, make_room: Any = None) -> None:
        original(self, session, lambda: room)

    monkeypatch.setattr(route.LiveKitRoute, "__init__", made)
    async with running_server() as (session, url), aiohttp.ClientSession() as http:
        yield url + "/api/livekit", http, room


INVITATION = {"url": "wss://livekit.example", "token": "a.b.c"}


async def test_a_daemon_joins_speaks_for_the_agent_and_leaves(ear, monkeypatch):
    server = Server()
    async with daemon(server, monkeypatch) as (url, http, room):
        agent_room = server.room("agent")
        await agent_room.connect("", "")
        async with http.post(url, json=INVITATION) as response:
            assert response.status == 201
            joined = await response.json()
        assert joined["room"] == "lobby" and joined["identity"] == "avatard" and joined["agent"] == "agent"
        assert room.options.auto_subscribe is False
        agent = Agent(
            DataStreamAudioOutput(
                agent_room,
                destination_identity="avatard",
                wait_remote_track=rtc.TrackKind.KIND_VIDEO,
                wait_playback_start=True,
            )
        )
        lengths = [0.3, 0.25]
        for seconds in lengths:
            await agent.say(seconds)
        async with asyncio.timeout(30):
            await agent.output.wait_for_playout()
        assert np.allclose([event.playback_position for event in agent.finished], lengths, atol=0.04)
        before = ear.seconds
        await agent.say(10, message_ms=100, end=False)
        await until(lambda: ear.seconds > before + 0.2)
        await agent.interrupt()
        assert agent.finished[-1].interrupted and len(agent.finished) == 3
        assert abs(agent.finished[-1].playback_position - (ear.seconds - before)) <= 0.04
        await agent.say(0.3)
        async with asyncio.timeout(30):
            event = await agent.output.wait_for_playout()
        assert not event.interrupted and abs(event.playback_position - 0.3) <= 0.04
        async with http.post(url, json=INVITATION) as response:
            assert response.status == 409 and (await response.json())["code"] == "busy"
        async with http.delete(url, params={"id": "other"}) as response:
            assert response.status == 404
        async with http.delete(url, params={"id": joined["id"]}) as response:
            assert response.status == 200 and (await response.json())["id"] is None
        assert not room.isconnected()


async def test_a_daemon_leaves_with_its_agent(ear, monkeypatch):
    server = Server()
    async with daemon(server, monkeypatch) as (url, http, room):
        async with http.post(url, json=INVITATION) as response:
            assert response.status == 201  # the agent is not there yet
        agent_room = server.room("agent")
        await agent_room.connect("", "")
        await until(lambda: server.published)
        await agent_room.disconnect()
        await until(lambda: not room.isconnected())

        async def left() -> bool:
            async with http.get(url) as response:
                return (await response.json())["id"] is None

        async with asyncio.timeout(20):
            while not await left():  # noqa: ASYNC110 - what is waited for has no event
                await asyncio.sleep(0.02)


async def test_a_daemon_whose_runner_fails_leaves_the_room(monkeypatch, caplog):
    def fail(_: Any) -> Any:
        raise RuntimeError("no such picture")

    monkeypatch.setattr(livekit, "_video", fail)
    server = Server()
    async with daemon(server, monkeypatch) as (url, http, room):
        agent_room = server.room("agent")
        await agent_room.connect("", "")
        async with http.post(url, json=INVITATION) as response:
            assert response.status == 201
        await until(lambda: not room.isconnected())
        assert "LiveKit room failed" in caplog.text


async def test_a_daemon_waits_for_an_agent_only_so_long(monkeypatch, caplog):
    monkeypatch.setattr(livekit_room, "AGENT_SECONDS", 0.05)
    server = Server()
    async with daemon(server, monkeypatch) as (url, http, room):
        async with http.post(url, json=INVITATION) as response:
            assert response.status == 201
        await until(lambda: not room.isconnected())
        assert "no LiveKit agent came" in caplog.text


async def test_a_server_that_refuses_is_a_bad_gateway(monkeypatch):
    server = Server()
    server.refusal = rtc.ConnectError("invalid token:\n unauthorized")
    async with daemon(server, monkeypatch) as (url, http, _):
        async with http.post(url, json=INVITATION) as response:
            body = await response.json()
        assert response.status == 502 and body["code"] == "livekit"
        assert body["error"] == "cannot join by wss://livekit.example: invalid token: unauthorized"


async def test_a_remote_avatar_is_invited_and_sent_away(ear, monkeypatch):
    server = Server()
    room = server.room("agent")
    await room.connect("", "")
    async with daemon(server, monkeypatch) as (url, http, avatar_room):
        avatar, agent_session = livekit.RemoteAvatarSession(url.removesuffix("/api/livekit")), FakeSession()
        await avatar.start(
            agent_session, room, livekit_url="ws://x", livekit_api_key="key", livekit_api_secret="secret" * 8
        )
        agent = Agent(agent_session.tail)
        await agent.say(0.3)
        async with asyncio.timeout(30):
            event = await agent.output.wait_for_playout()
        assert abs(event.playback_position - 0.3) <= 0.04
        assert avatar_room.isconnected() and avatar.avatar_identity == "avatard"
        await avatar.aclose()
        assert not avatar_room.isconnected() and room.isconnected()


async def test_a_remote_avatar_says_what_is_missing(monkeypatch):
    for name in ("LIVEKIT_URL", "LIVEKIT_API_KEY", "LIVEKIT_API_SECRET"):
        monkeypatch.delenv(name, raising=False)
    room = Server().room("agent")
    with pytest.raises(livekit.LiveKitError, match="expected LIVEKIT_URL"):
        await livekit.RemoteAvatarSession().start(FakeSession(), room)
    nobody = livekit.RemoteAvatarSession("http://127.0.0.1:9")
    keys = {"livekit_url": "ws://x", "livekit_api_key": "key", "livekit_api_secret": "secret" * 8}
    with pytest.raises(livekit.LiveKitError, match=r"no avatard answers at http://127.0.0.1:9/api/livekit"):
        await nobody.start(FakeSession(), room, **keys)
    await nobody.aclose()


def test_the_token_lets_the_avatar_publish_for_the_agent():
    token = livekit.avatar_token("key", "secret" * 8, room="lobby", agent="agent-1", identity="avatard", name="avatar")
    from livekit.api import TokenVerifier

    claims = TokenVerifier("key", "secret" * 8).verify(token)
    assert claims.kind == "agent" and claims.identity == "avatard" and claims.video.room == "lobby"
    assert claims.attributes == {"lk.publish_on_behalf": "agent-1"}


@pytest.mark.skipif("LIVEKIT_URL" not in os.environ, reason="needs LIVEKIT_URL, LIVEKIT_API_KEY, LIVEKIT_API_SECRET")
async def test_a_room_of_a_real_server():
    from livekit import api

    url, key, secret = (os.environ[name] for name in ("LIVEKIT_URL", "LIVEKIT_API_KEY", "LIVEKIT_API_SECRET"))
    name = f"avatard-{os.getpid()}"

    def grant(identity: str, kind: str) -> str:
        token = api.AccessToken(key, secret).with_identity(identity).with_kind(kind)
        return str(token.with_grants(api.VideoGrants(room_join=True, room=name)).to_jwt())

    viewer, room = rtc.Room(), rtc.Room()
    await viewer.connect(url, grant("viewer", "standard"))
    await room.connect(url, grant("agent", "agent"))
    async with running_server() as (_, daemon_url):
        avatar, agent_session = livekit.RemoteAvatarSession(daemon_url), FakeSession()
        await avatar.start(agent_session, room)
        agent = Agent(agent_session.tail)
        for seconds in (0.5, 1.0):
            await agent.say(seconds)
        async with asyncio.timeout(60):
            await agent.output.wait_for_playout()
        assert np.allclose([event.playback_position for event in agent.finished], [0.5, 1.0], atol=0.04)
        await until(lambda: len(viewer.remote_participants["avatard"].track_publications) == 2)
        await agent.say(20, message_ms=100, end=False)
        await asyncio.sleep(2)
        await agent.interrupt()
        assert agent.finished[-1].interrupted and agent.finished[-1].playback_position < 3
        await avatar.aclose()
        await until(lambda: "avatard" not in viewer.remote_participants)
    await room.disconnect()
    await viewer.disconnect()
