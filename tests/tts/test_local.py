"""The programs that speak, as far as they are installed, and one that stands in for all that they may do."""

import asyncio
import contextlib
import os
import shutil
import stat
from pathlib import Path

import numpy as np
import pytest

from avatard.tts.local import LocalSynthesizer
from avatard.tts.synthesizer import TtsError, TtsUnavailableError
from tests.support.serving import until


@pytest.fixture
def program(tmp_path: Path, monkeypatch):
    """Puts a shell script in the place of a program."""

    def install(name: str, script: str) -> Path:
        path = tmp_path / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
        monkeypatch.setenv("PATH", f"{path.parent}{os.pathsep}{os.environ['PATH']}")
        return path

    return install


async def spoken(synthesizer: LocalSynthesizer, text: str, voice: str = "") -> tuple[np.ndarray, set[int]]:
    parts, rates = [np.zeros(0, np.float32)], set()
    async for samples, rate_hz in synthesizer.speak(text, voice):
        parts.append(samples)
        rates.add(rate_hz)
    return np.concatenate(parts), rates


@pytest.mark.parametrize(("engine", "rate_hz"), [("espeak-ng", 22_050), ("flite", 16_000)])
@pytest.mark.parametrize("text", ["Hello there.", "--version is no option here."])
async def test_an_installed_program_speaks(engine, rate_hz, text):
    if shutil.which(engine) is None:
        pytest.skip(f"{engine} is not installed (Debian: apt install {engine})")
    samples, rates = await spoken(LocalSynthesizer(engine, ""), text)
    assert rates == {rate_hz}
    assert len(samples) > rate_hz / 3 and np.abs(samples).max() > 0.05


async def test_piper_speaks_by_its_model_at_its_rate(tmp_path, program):
    program("piper", 'echo "$@" > "$(dirname "$0")/arguments"; cat > /dev/null; head -c 4410 /dev/zero')
    model = tmp_path / "voice.onnx"
    with pytest.raises(TtsUnavailableError, match="voice.onnx: there is no such file"):
        LocalSynthesizer(f"piper:{model}", "")
    model.touch()
    with pytest.raises(TtsUnavailableError, match=r"voice.onnx.json: No such file"):
        LocalSynthesizer(f"piper:{model}", "")
    (tmp_path / "voice.onnx.json").write_text("{}")
    with pytest.raises(TtsUnavailableError, match="is damaged"):
        LocalSynthesizer(f"piper:{model}", "")
    (tmp_path / "voice.onnx.json").write_text('{"audio": {"sample_rate": 22050}}')
    samples, rates = await spoken(LocalSynthesizer(f"piper:{model}", "3"), "Hello.")
    assert rates == {22_050} and len(samples) == 2205
    assert (tmp_path / "bin" / "arguments").read_text().split() == [
        "--model",
        str(model),
        "--output-raw",
        "--speaker",
        "3",
    ]


def test_a_program_that_is_not_installed_says_how_to_get_it(monkeypatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(TtsUnavailableError, match=r"flite is not installed \(Debian: apt install flite\)"):
        LocalSynthesizer("flite", "")


@pytest.mark.parametrize(
    ("script", "text"),
    [
        ("echo no such voice >&2; exit 1", "espeak-ng ended with code 1: no such voice"),
        ("printf 'ID3xxxxxxxxx'", "espeak-ng: got an MP3 file"),
        ("kill -9 $$", "ended with code -9"),
    ],
)
async def test_a_program_that_fails_says_why(program, script, text):
    program("espeak-ng", script)
    with pytest.raises(TtsError, match=text):
        await spoken(LocalSynthesizer("espeak-ng", ""), "Hello.")


async def test_a_program_that_hangs_is_stopped(program, monkeypatch):
    monkeypatch.setattr("avatard.tts.local.SILENT_SECONDS", 0.3)
    program("espeak-ng", "exec sleep 60")
    with pytest.raises(TtsError, match="gave nothing for"):
        await spoken(LocalSynthesizer("espeak-ng", ""), "Hello.")


async def test_who_stops_listening_ends_the_program(tmp_path, program):
    program("espeak-ng", 'echo $$ > "$(dirname "$0")/pid"; head -c 20000 /dev/zero; exec sleep 60')
    async with contextlib.aclosing(LocalSynthesizer("espeak-ng", "").speak("Hello.", "")) as sound:
        await anext(sound)
    pid = int((tmp_path / "bin" / "pid").read_text())
    await until(lambda: not Path(f"/proc/{pid}").exists() if Path("/proc").exists() else True)
    listening = asyncio.create_task(spoken(LocalSynthesizer("espeak-ng", ""), "Hello."))
    (tmp_path / "bin" / "pid").unlink()
    await until(lambda: (tmp_path / "bin" / "pid").exists() and (tmp_path / "bin" / "pid").read_text())
    listening.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await listening
    pid = int((tmp_path / "bin" / "pid").read_text())
    await until(lambda: not Path(f"/proc/{pid}").exists() if Path("/proc").exists() else True)
