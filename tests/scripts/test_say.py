"""scripts/examples/say.py, which the README shows, against a running server."""

import asyncio
import inspect
import runpy
import sys
import wave
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
import pytest

from avatard.media.pcm import to_pcm16
from tests.support.paths import ROOT, SCRIPTS
from tests.support.serving import beeps, running_server

EXAMPLE = SCRIPTS / "examples" / "say.py"


@pytest.fixture(autouse=True)
def engine(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))


def say_wav(folder: Path, seconds: float, channels: int) -> Path:
    path = folder / "hello.wav"
    with wave.open(str(path), "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(2)
        file.setframerate(24_000)
        file.writeframes(to_pcm16(np.repeat(beeps(seconds, 24_000), channels)).astype("<i2").tobytes())
    return path


async def run_example(path: Path, url: str, code: int = 0) -> list[str]:
    """The lines it prints, once it has ended by itself with this exit code."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-P", str(EXAMPLE), str(path), f"{url.replace('http', 'ws', 1)}/ws/audio"),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(60):
        out, err = await process.communicate()
    assert process.returncode == code, err.decode()
    return (err if code else out).decode().splitlines()


@pytest.mark.parametrize(("seconds", "channels"), [(1.0, 1), (0.4, 2), (0.0, 1)], ids=["mono", "stereo", "empty"])
async def test_it_ends_when_its_own_utterance_was_heard(tmp_path, seconds, channels):
    async with running_server() as (_, url):
        lines = await run_example(say_wav(tmp_path, seconds, channels), url)
    told = [line for line in lines if line.startswith("utterance ")]
    assert [next(state for state in ("queued", "started", "ended") if state in line) for line in told] == [
        "queued",
        "started",
        "ended",
    ]
    assert f"'played_ms': {round(1000 * seconds)}" in lines[-1] and "'interrupted': False" in lines[-1]


@pytest.mark.parametrize(("content", "said"), [(b"words, no sound", "not start with RIFF"), (b"", "the file is empty")])
async def test_what_is_no_wav_file_is_one_line(tmp_path, content, said):
    path = tmp_path / "hello.wav"
    path.write_bytes(content)
    async with running_server() as (_, url):
        lines = await run_example(path, url, code=1)
    assert len(lines) == 1 and lines[0].startswith("say.py: ") and said in lines[0]


async def test_it_ignores_other_speakers_and_stays_on_errors_that_are_not_fatal(tmp_path):
    async with running_server() as (_, url), aiohttp.ClientSession() as http:
        async with http.ws_connect(f"{url}/ws/audio") as other:
            await other.send_json({"sample_rate": 16_000})
            await other.send_bytes(to_pcm16(beeps(0.4)).tobytes())
            await other.send_json({"type": "end_of_utterance"})
            lines = await run_example(say_wav(tmp_path, 0.4, 1), url)
            # Its hello is refused: an error that is not fatal, and an utterance that ends empty.
            refused = tmp_path / "slow.wav"
            with wave.open(str(refused), "wb") as file:
                file.setparams((1, 2, 4_000, 0, "NONE", ""))
                file.writeframes(bytes(800))
            refused_lines = await run_example(refused, url)
    assert lines[-1].startswith("utterance ") and "'played_ms': 400" in lines[-1]
    assert any(line.startswith("error ") and "'fatal': False" in line for line in refused_lines)
    assert "'ended'" in refused_lines[-1]


def test_the_readme_shows_these_lines():
    example: dict[str, Any] = runpy.run_path(str(EXAMPLE))
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    shown = readme.split("```python\n")[1].split("```")[0]
    assert inspect.getsource(example["say"]) in shown
    assert len(inspect.getsource(example["say"]).splitlines()) <= 17
