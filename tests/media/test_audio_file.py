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
