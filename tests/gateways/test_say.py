"""Texts over HTTP, with a synthesizer that the test holds in its hands."""

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

import aiohttp
import numpy as np
import pytest

from avatard.config import Tts
from avatard.protocols import events
from avatard.tts.synthesizer import TtsError, TtsUnavailableError
from tests.support.paths import ROOT
from tests.support.serving import Screen, beeps, config, running_server, until


class FakeSynthesizer:
    """Says 0.4 s of beeps for each sentence; `hang`, `fail` and `gone` do that, `late` after a sound."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str]] = []
        self.running = self.most = 0
        self.closed = False
        self.go_on = asyncio.Event()

    async def speak(self, text: str, voice: str) -> AsyncGenerator[tuple[np.ndarray, int]]:
        self.asked.append((text, voice))
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            if "gone" in text:
                raise TtsUnavailableError("the endpoint is gone")
            if "hang" not in text or "late" in text:
                yield beeps(0.4, 24_000), 24_000
            if "hang" in text:
                await self.go_on.wait()
            if "fail" in text:
                raise TtsError("it broke")
        finally:
            self.running -= 1

    async def close(self) -> None:
        self.closed = True


class Talk:
    """A server, its synthesizer and all that was told."""

    def __init__(self, session: Any, url: str, http: aiohttp.ClientSession, synthesizer: FakeSynthesizer) -> None:
        self.session, self.url, self.http, self.synthesizer = session, url, http, synthesizer
        self.told: list[events.Event] = []
        session.listen(self.told.append)

    async def say(self, text: Any = None, **body: Any) -> tuple[int, dict[str, Any]]:
        body |= {"text": text} if text is not None else {}
        async with self.http.post(f"{self.url}/api/say", json=body) as response:
            return response.status, await response.json()

    def utterances(self) -> list[tuple[str, str]]:
        return [(event.id, event.state) for event in self.told if isinstance(event, events.Utterance)]

    def ends(self) -> list[events.Utterance]:
        return [event for event in self.told if isinstance(event, events.Utterance) and event.state == "ended"]


@pytest.fixture
async def talk(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    synthesizer = FakeSynthesizer()
    monkeypatch.setattr("avatard.gateways.say.configured_synthesizer", lambda _: synthesizer)
    settings = config(tts=Tts(engine="espeak-ng", max_characters=100))
    async with running_server(settings) as (session, url), aiohttp.ClientSession() as http:
        yield Talk(session, url, http, synthesizer)
    assert synthesizer.closed and not synthesizer.running


async def test_a_text_is_spoken_and_its_sentences_are_told_as_they_begin(talk):
    talk.session.attach(Screen())
    status, answer = await talk.say("This is the first. And this is the second.", voice="nova", id="mine")
    assert (status, answer) == (200, {"id": "mine"})
    await until(talk.ends)
    assert talk.synthesizer.asked == [("This is the first.", "nova"), ("And this is the second.", "nova")]
    (end,) = talk.ends()
    assert end.played_ms == pytest.approx(800, abs=2) and end.interrupted is False
    story = [event for event in talk.told if isinstance(event, events.Utterance | events.Caption)]
    assert [getattr(event, "state", None) or getattr(event, "text", "") for event in story] == [
        "queued", "started", "This is the first.", "And this is the second.", "ended",
    ]  # fmt: skip
    assert [event.at_ms for event in story if isinstance(event, events.Caption)] == [0, pytest.approx(400, abs=2)]
    async with talk.http.get(f"{talk.url}/api/status") as response:
        assert (await response.json())["say"] == {"max_characters": 100}


async def test_texts_are_spoken_one_after_the_other(talk):
    answers = await asyncio.gather(*(talk.say(f"This is text number {k}.", id=str(k)) for k in range(4)))
    assert [status for status, _ in answers] == [200] * 4
    await until(lambda: len(talk.ends()) == 4)
    begun = [name for name, state in talk.utterances() if state == "queued"]
    assert [end.id for end in talk.ends()] == begun
    assert talk.synthesizer.most == 1


@pytest.mark.parametrize(
    ("body", "text"),
    [
        ({}, "missing required field `text`"),
        ({"text": 5}, "Expected `str`, got `int`"),
        ({"text": " \n "}, "the text is empty"),
        ({"text": "a" * 101}, "got 101 characters, expected at most 100"),
        ({"text": "Hello.", "voice": "-w /tmp/file"}, "voice"),
        ({"text": "Hello.", "id": "x" * 65}, "id"),
        ({"text": "Hello.", "speed": 2}, "unknown field `speed`"),
    ],
)
async def test_what_cannot_be_said_is_refused(talk, body, text):
    status, answer = await talk.say(**body)
    assert (status, answer["code"]) == (400, "bad-request")
    assert text in answer["error"] and "\n" not in answer["error"]
    assert not talk.utterances()


async def test_bodies_are_json_and_bounded(talk):
    for body, kind, expected in (("{", "application/json", 400), ("Hello.", "text/plain", 415)):
        async with talk.http.post(f"{talk.url}/api/say", data=body, headers={"Content-Type": kind}) as response:
            assert response.status == expected
    async with talk.http.post(f"{talk.url}/api/say", json={"text": "x" * 300_000}) as response:
        assert response.status == 413


@pytest.mark.parametrize(
    ("text", "status", "code"), [("This will fail.", 200, ""), ("It is gone.", 503, "tts-unavailable")]
)
async def test_a_failure_is_told_and_the_utterance_ends(talk, text, status, code):
    got, answer = await talk.say(text, id="a")
    assert (got, answer.get("code", "")) == (status, code)
    assert answer["id"] == "a"
    await until(talk.ends)
    assert talk.utterances() == [("a", "queued"), ("a", "started"), ("a", "ended")]
    if status == 200:  # it had begun
        (error,) = [event for event in talk.told if isinstance(event, events.Error)]
        assert (error.message, error.code, error.fields) == ("it broke", "tts-failed", {"id": "a"})


async def test_an_interrupt_ends_what_is_made_and_what_waits(talk):
    waiting = [asyncio.create_task(talk.say(f"late and hang {k}", id=str(k))) for k in range(3)]
    await until(lambda: len(talk.utterances()) >= 3 and talk.synthesizer.running)
    async with talk.http.post(f"{talk.url}/api/interrupt") as response:
        assert response.status == 200
    answers = dict(sorted((answer["id"], status) for status, answer in await asyncio.gather(*waiting)))
    assert sorted(answers.values()) == [200, 409, 409]
    await until(lambda: not talk.synthesizer.running)
    assert [end.interrupted for end in talk.ends()] == [True] * 3
    status, _ = await talk.say("This is said afterwards.")
    assert status == 200
    await until(lambda: len(talk.ends()) == 4)
    assert talk.ends()[-1].played_ms == pytest.approx(400, abs=2)
    assert len(talk.synthesizer.asked) == 2


async def test_who_leaves_before_the_first_sound_ends_the_work(talk):
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.5):
            await talk.say("please hang here", id="left")
    await until(lambda: talk.synthesizer.asked and not talk.synthesizer.running)
    await until(talk.ends)
    assert talk.utterances() == [("left", "queued"), ("left", "started"), ("left", "ended")]


async def test_too_many_texts_are_asked_to_wait(talk, monkeypatch):
    monkeypatch.setattr("avatard.gateways.say.MAX_TEXTS", 1)
    first = asyncio.create_task(talk.say("please hang here"))
    await until(lambda: talk.synthesizer.running)
    status, answer = await talk.say("Too much.")
    assert (status, answer["code"]) == (503, "full")
    talk.synthesizer.go_on.set()
    assert (await first)[0] == 200


async def test_without_tts_it_says_what_to_set(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    async with running_server() as (_, url), aiohttp.ClientSession() as http:
        async with http.post(f"{url}/api/say", json={"text": "Hello."}) as response:
            refused, answer = response.status, await response.json()
        async with http.get(f"{url}/api/status") as response:
            assert (await response.json())["say"] is None
    assert (refused, answer["code"]) == (501, "no-tts")
    assert "--tts espeak-ng" in answer["error"] and "--tts-url" in answer["error"]
