import io
import struct
import wave

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from avatard.media.wav_stream import WavStream

SAMPLES = np.arange(-500, 500, dtype="<i2")


def wav(channels=1, width=2, rate_hz=22_050):
    file = io.BytesIO()
    with wave.open(file, "wb") as writer:
        writer.setparams((channels, width, rate_hz, 0, "NONE", ""))
        writer.writeframes(SAMPLES.repeat(channels).tobytes())
    return file.getvalue()


def decode(data, cuts=()):
    stream = WavStream(24_000)
    edges = [0, *sorted(cuts), len(data)]
    parts = [stream.push(data[a:b]) for a, b in zip(edges, edges[1:], strict=False)]
    return stream.rate_hz, np.concatenate(parts)


@given(st.lists(st.integers(0, 300), max_size=6), st.sampled_from([1, 2]))
def test_a_wav_file_cut_anywhere_is_decoded_at_its_own_rate(cuts, channels):
    rate_hz, samples = decode(wav(channels), cuts)
    assert rate_hz == 22_050
    np.testing.assert_array_equal(samples, SAMPLES / np.float32(32768))


def test_what_is_no_wav_file_is_raw():
    rate_hz, samples = decode(SAMPLES.tobytes(), [1, 7])
    assert rate_hz == 24_000
    np.testing.assert_array_equal(samples, SAMPLES / np.float32(32768))


@pytest.mark.parametrize("length", [0, 0x7FFFF000, 0xFFFFFFFF])
def test_a_length_that_is_not_known_yet_is_all_that_follows(length):
    data = wav()
    at = data.index(b"data") + 4
    assert len(decode(data[:at] + struct.pack("<I", length) + data[at + 4 :])[1]) == len(SAMPLES)


def test_what_follows_the_samples_is_no_sound():
    assert len(decode(wav() + b"LIST\4\0\0\0abcd")[1]) == len(SAMPLES)


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (wav(width=1), "expected 16-bit PCM"),
        (wav(channels=4), "4 channels"),
        (b"ID3" + bytes(100), "got an MP3 file"),
        (b"RIFF" + bytes(8) + b"junk" + struct.pack("<I", 1 << 20), "without samples"),
    ],
)
def test_other_files_are_refused(data, text):
    with pytest.raises(ValueError, match=text):
        decode(data)
