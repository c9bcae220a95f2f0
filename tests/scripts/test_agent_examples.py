"""scripts/examples/say_text.py and agent_speak.py against a running server."""

import asyncio
import sys
import wave
from collections.abc import AsyncGenerator
from typing import Any

import numpy as np
import pytest

from avatard.config import Tts
from avatard.media.pcm import to_pcm16
from tests.support.paths import ROOT, SCRIPTS
from tests.support.serving import beeps, config, running_server


@pytest.fixture(autouse=True)
def engine(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))


async def run_example(name: str, *arguments: str) -> tuple[int | None, str, str]:
    """Its exit code and what it prints, once it has ended by itself."""
    pipe = asyncio.subprocess.PIPE
    command = (sys.executable, "-P", str(SCRIPTS / "examples" / name), *arguments)
    process = await asyncio.create_subprocess_exec(*command, stdout=pipe, stderr=pipe)
    async with asyncio.timeout(60):
        out, err = await process.communicate()
    return process.returncode, out.decode(), err.decode()


class Beeper:
    """A synthesizer."""

    async def speak(self, text: str, voice: str) -> AsyncGenerator[tuple[np.ndarray, int]]:
        yield beeps(0.4), 16_000

    async def close(self) -> None:
        pass


async def test_a_text_is_said_and_its_sentences_are_printed(monkeypatch):
    def beeper(tts: Tts) -> Any:
        return Beeper()

    monkeypatch.setattr("avatard.gateways.say.configured_synthesizer", beeper)
    async with running_server(config(tts=Tts(engine="espeak-ng"))) as (_, url):
        code, out, err = await run_example("say_text.py", "Hello over there. I am an avatar.", url)
    assert code == 0, err
    assert out.splitlines() == ["  0.00 s  Hello over there.", "  0.40 s  I am an avatar."]


async def test_without_text_to_speech_it_says_what_to_set():
    async with running_server() as (_, url):
        code, _, err = await run_example("say_text.py", "Hello.", url)
    assert code == 1 and err.startswith("no-tts: ") and "--tts espeak-ng" in err and len(err.splitlines()) == 1


async def test_a_file_is_spoken_as_an_agent_does(tmp_path):
    path = tmp_path / "hello.wav"
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, 24_000, 0, "NONE", ""))
        file.writeframes(to_pcm16(beeps(0.8, 24_000)).astype("<i2").tobytes())
    async with running_server() as (_, url):
        code, out, err = await run_example("agent_speak.py", str(path), f"{url.replace('http', 'ws', 1)}/ws/agent")
    assert code == 0, err
    assert "'agent.speak_started'" in out and "'played_ms': 800" in out.splitlines()[-1]
