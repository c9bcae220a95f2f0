import numpy as np
import pytest

from avatard.media.audio_file import AudioFileError, read_audio, read_speech
from tests.support.sounds import write_wav


def test_sound_is_decoded_at_its_own_rate_and_at_that_of_the_networks(tmp_path):
    tone = 0.25 * np.sin(2 * np.pi * 440 * np.arange(44_100) / 44_100)
    path = write_wav(tmp_path / "tone.wav", tone, 44_100)
    chunks = list(read_audio(path))
    assert {rate for _, rate in chunks} == {44_100}
    np.testing.assert_allclose(np.concatenate([chunk for chunk, _ in chunks]), tone, atol=1e-4)
    speech = np.concatenate(list(read_speech(path)))
    assert len(speech) == pytest.approx(16_000, abs=2) and speech.dtype == np.float32


def test_what_has_no_sound_is_one_line(tmp_path):
    with pytest.raises(AudioFileError, match=r"none\.wav cannot be read as sound: No such file") as caught:
        list(read_speech(tmp_path / "none.wav"))
    assert "\n" not in str(caught.value)
    (tmp_path / "text.wav").write_text("no sound")
    with pytest.raises(AudioFileError, match=r"text\.wav cannot be read as sound"):
        list(read_speech(tmp_path / "text.wav"))


@pytest.mark.parametrize("channels", [2, 8, 9, 17])
def test_any_number_of_channels_is_mixed(tmp_path, channels):
    tone = 0.25 * np.sin(np.arange(4000))
    path = write_wav(tmp_path / "many.wav", tone, 16_000, channels)
    np.testing.assert_allclose(np.concatenate(list(read_speech(path))), tone, atol=1e-4)


@pytest.mark.parametrize(
    ("at", "value", "said"),
    [
        (24, 4000, "sample rate is 4000 Hz, expected 8,000 to 192,000"),
        (20, 0x7FFF, "its codec is not known here"),
    ],
)
def test_sound_that_nothing_here_can_use_is_one_line(tmp_path, at, value, said):
    path = write_wav(tmp_path / "odd.wav", np.zeros(1000))
    data = bytearray(path.read_bytes())
    data[at : at + 2] = value.to_bytes(2, "little")
    path.write_bytes(data)
    with pytest.raises(AudioFileError, match=said):
        list(read_speech(path))


def test_samples_that_are_no_numbers_are_silent_and_those_too_loud_are_clipped(tmp_path):
    path = write_wav(tmp_path / "odd.wav", np.zeros(2000))
    data = bytearray(path.read_bytes())
    data[20:22], data[32:36] = (3).to_bytes(2, "little"), b"\4\0\x20\0"  # 32-bit floats
    data[44 : 44 + 16] = np.array([np.nan, np.inf, -1e30, 0.5], "<f4").tobytes()
    path.write_bytes(data)
    assert np.concatenate(list(read_speech(path)))[:4].tolist() == [0.0, 1.0, -1.0, 0.5]
