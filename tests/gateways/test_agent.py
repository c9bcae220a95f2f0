"""The WebSocket that is shaped like LiveAvatar's."""

import asyncio
import base64
import random
from collections import Counter
from typing import Any

import aiohttp
import numpy as np
import pytest

from avatard.media.pcm import to_pcm16
from tests.support.paths import ROOT
from tests.support.serving import Screen, beeps, running_server, until

RATE_HZ = 24_000


@pytest.fixture(autouse=True)
def engine(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))


@pytest.fixture
async def agent():
    """A session, its screen and a connection."""
    async with running_server() as (session, url), aiohttp.ClientSession() as http:
        screen = Screen()
        session.attach(screen)
        async with http.ws_connect(f"{url}/ws/agent") as socket:
            yield session, screen, socket


def speak(data: bytes, event_id: str = "") -> dict[str, str]:
    return {"type": "agent.speak", "event_id": event_id, "audio": base64.b64encode(data).decode()}


async def read(socket: Any, enough: Any) -> list[dict[str, Any]]:
    """Messages until `enough` says so of the last one."""
    seen: list[dict[str, Any]] = []
    async with asyncio.timeout(30):
        while not seen or not enough(seen[-1]):
            seen.append(await socket.receive_json())
    return seen


def of(kind: str) -> Any:
    return lambda message: message["type"] == kind


def states(messages: list[dict[str, Any]]) -> list[str]:
    return [message["state"] for message in messages if message["type"] == "session.state_updated"]


async def test_an_agent_speaks_and_is_told(agent):
    _, screen, socket = agent
    seen = await read(socket, lambda message: message.get("state") == "idle")
    assert states(seen) == ["connected", "idle"]
    voice = to_pcm16(beeps(0.8, RATE_HZ)).tobytes()
    for start in range(0, len(voice), 4801):  # samples cut in two; ids of messages, not of the utterance
        await socket.send_json(speak(voice[start : start + 4801], "answer-1" if start == 0 else f"chunk-{start}"))
    await socket.send_json({"type": "agent.speak_end", "event_id": "end-1"})
    seen = await read(socket, of("agent.speak_ended"))
    started, ended = (next(m for m in seen if m["type"] == f"agent.speak_{kind}") for kind in ("started", "ended"))
    assert started["event_id"] == ended["event_id"] == "answer-1"
    assert ended["played_ms"] == 800 and ended["dropped_ms"] == 0
    seen += await read(socket, lambda message: message.get("state") == "idle")
    assert states(seen) == ["speaking", "idle"]
    assert np.abs(screen.sound).max() < 0.4  # no sample was cut in two


async def test_listening_is_a_state_and_keep_alive_is_nothing(agent):
    _, _, socket = agent
    for kind in ("agent.start_listening", "agent.start_listening", "session.keep_alive", "agent.stop_listening"):
        await socket.send_json({"type": kind, "event_id": "x"})
    await socket.send_json({"type": "agent.speak_end"})  # an empty utterance ends, too
    seen = await read(socket, of("agent.speak_ended"))
    assert states(seen) == ["connected", "idle", "listening", "idle"]
    assert not [message for message in seen if message["type"] == "error"]


@pytest.mark.parametrize(
    ("message", "text"),
    [
        ("{", "expected JSON"),
        ("[]", "expected a JSON object"),
        (b"\0\0", "got a binary message, expected"),
        ({"type": "agent.dance"}, "expected a type of agent.speak, agent.speak_end, agent.interrupt"),
        ({"audio": ""}, "`type`"),
        ({"type": "agent.speak"}, "missing required field `audio`"),
        ({"type": "agent.speak", "audio": 5}, "Expected `str`, got `int`"),
        ({"type": "agent.speak", "audio": "no base64!"}, "expected base64 of 16-bit mono samples at 24,000 Hz"),
        ({"type": "agent.speak", "audio": "A" * 1_400_001}, "length <= 1400000"),
        ({"type": "agent.speak", "audio": base64.b64encode(b"RIFF....WAVE").decode()}, "got a WAV file"),
        ({"type": "agent.speak", "audio": "", "event_id": "x" * 65}, "length <= 64"),
        ('{"type": "session.keep_alive", "event_id": "\\ud800"}', "expected JSON"),
        ('{"type": "x", "event_id": ' + "[" * 900 + "]" * 900 + "}", "expected a type of"),
    ],
)
async def test_what_cannot_be_read_is_an_error_and_not_the_end(agent, message, text):
    _, _, socket = agent
    if isinstance(message, bytes):
        await socket.send_bytes(message)
    else:
        await (socket.send_str(message) if isinstance(message, str) else socket.send_json(message))
    error = (await read(socket, of("error")))[-1]
    assert error["code"] == "bad-message" and text in error["message"] and "\n" not in error["message"]
    await socket.send_json(speak(to_pcm16(beeps(0.2, RATE_HZ)).tobytes(), "next"))
    await socket.send_json({"type": "agent.speak_end"})
    assert (await read(socket, of("agent.speak_ended")))[-1]["played_ms"] == 200


async def test_others_utterances_are_not_told_as_ones_own(agent):
    session, _, socket = agent
    other = session.open_speaker()
    other.begin("answer-1")
    other.push_audio(beeps(0.4), 16_000)
    other.flush()
    seen = await read(socket, lambda message: message.get("state") == "speaking")
    await socket.send_json(speak(to_pcm16(beeps(0.2, RATE_HZ)).tobytes(), "mine"))
    await socket.send_json({"type": "agent.speak_end"})
    seen += await read(socket, of("agent.speak_ended"))
    assert [m["event_id"] for m in seen if m["type"].startswith("agent.")] == ["mine", "mine"]


async def test_an_interrupt_by_somebody_else_drops_the_rest(agent):
    session, _, socket = agent
    voice = to_pcm16(beeps(2, RATE_HZ)).tobytes()
    await socket.send_json(speak(voice, "long"))
    await read(socket, of("agent.speak_started"))
    session.interrupt()
    await socket.send_json(speak(voice))
    await socket.send_json({"type": "agent.speak_end"})
    assert (await read(socket, of("agent.speak_interrupted")))[-1]["event_id"] == "long"
    await socket.send_json(speak(voice[:9600], "next"))
    await socket.send_json({"type": "agent.speak_end"})
    assert (await read(socket, of("agent.speak_ended")))[-1]["event_id"] == "next"


def steady(entry: Any) -> bool:
    """Whether all of the frame is of one utterance, and not of its edges."""
    return bool(entry.samples.max() > 0.01 and np.ptp(entry.samples) < 0.002)


async def test_twenty_utterances_in_bursts_end_once_each_and_nothing_is_heard_after_an_interrupt(agent):
    session, screen, socket = agent
    rng = random.Random(5)
    interrupted = set(rng.sample(range(19), 5))
    told, cuts = list[dict[str, Any]](), dict[int, int]()
    ends = ("agent.speak_ended", "agent.speak_interrupted")

    async def listen() -> None:
        while sum(message["type"] in ends for message in told) < 20:
            told.append(await socket.receive_json())

    listening = asyncio.create_task(listen())
    for number in range(20):
        # Each has a loudness of its own, so that the sound tells whose it is.
        voice = np.full(RATE_HZ * (2 if number in interrupted else 1) // 5, 0.02 * (number + 1), np.float32)
        data, step = to_pcm16(voice).tobytes(), rng.choice((10, 20, 40, 100)) * RATE_HZ // 1000 * 2
        for start in range(0, len(data), step):
            await socket.send_json(speak(data[start : start + step], str(number)))
        if number in interrupted:
            if rng.random() < 0.6:
                await until(lambda n=number: any(m.get("event_id") == str(n) for m in told))
            await socket.send_json({"type": "agent.interrupt"})
            await until(lambda n=number: any(m["type"] == ends[1] and m["event_id"] == str(n) for m in told))
            cuts[number] = len(screen.entries)  # by then the frame that ramps down was played
        else:
            await socket.send_json({"type": "agent.speak_end"})
    async with asyncio.timeout(60):
        await listening
    for number in range(20):
        mine = Counter(m["type"] for m in told if m.get("event_id") == str(number))
        assert mine["agent.speak_started"] == 1
        assert mine[ends[0]] + mine[ends[1]] == 1
    for message in told:
        if message["type"] == ends[0]:
            assert message["dropped_ms"] == 0 and message["played_ms"] == 200
        elif message["type"] == ends[1]:
            assert message["played_ms"] + message["dropped_ms"] == pytest.approx(
                400 if int(message["event_id"]) in interrupted else 200, abs=1
            )
    for number, cut in cuts.items():
        levels = [round(float(entry.samples.mean()) / 0.02) for entry in screen.entries[cut + 1 :] if steady(entry)]
        assert levels and min(levels) > number + 1
