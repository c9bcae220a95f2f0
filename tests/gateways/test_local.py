import wave
from pathlib import Path

import numpy as np
import pytest

from avatard.gateways.local import SourceError, file_source, read_file


def tone(path: Path, rate_hz: int = 44100, channels: int = 2) -> Path:
    samples = (np.sin(2 * np.pi * 440 * np.arange(rate_hz) / rate_hz) * 20000).astype("<i2")
    with wave.open(str(path), "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(2)
        file.setframerate(rate_hz)
        file.writeframes(np.repeat(samples, channels).tobytes())
    return path


async def test_a_file_becomes_16_khz_mono(tmp_path):
    chunks = [chunk async for chunk in file_source(tone(tmp_path / "tone.wav"))]
    sound = np.concatenate(chunks)
    assert len(sound) == pytest.approx(16000, abs=2)
    assert int(np.argmax(np.abs(np.fft.rfft(sound[:16000])))) == 440
    assert np.abs(sound).max() == pytest.approx(20000 / 32768, abs=0.02)


def test_a_file_that_is_not_there_is_one_line(tmp_path):
    with pytest.raises(SourceError, match=r"none\.wav cannot be read as sound: No such file") as caught:
        list(read_file(tmp_path / "none.wav"))
    assert "\n" not in str(caught.value)


def test_a_file_that_is_no_sound_is_one_line(tmp_path):
    (tmp_path / "text.wav").write_text("hello")
    with pytest.raises(SourceError, match=r"text\.wav cannot be read as sound"):
        list(read_file(tmp_path / "text.wav"))
