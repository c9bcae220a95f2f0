import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from avatard.media.pcm import PcmDecoder, decode_mulaw, to_pcm16


def test_sixteen_bits_come_back_as_they_were():
    pcm = np.arange(-32768, 32768, 77).astype("<i2")
    decoder = PcmDecoder("s16le", 1)
    np.testing.assert_array_equal(to_pcm16(decoder.push(pcm.tobytes())), pcm)
    assert list(to_pcm16(np.array([2, -2], np.float32))) == [32767, -32768]


def test_two_channels_are_averaged():
    data = np.array([[100, 300], [-2, 2]], "<i2").tobytes()
    np.testing.assert_allclose(PcmDecoder("s16le", 2).push(data), [200 / 32768, 0])


@given(st.sampled_from(["s16le", "f32le", "mulaw"]), st.sampled_from([1, 2]), st.lists(st.integers(1, 40), max_size=30))
def test_messages_may_be_cut_anywhere(encoding, channels, cuts):
    data = np.linspace(-1, 1, 96, dtype="<f4").tobytes() if encoding == "f32le" else bytes(range(192))
    whole = PcmDecoder(encoding, channels).push(data)
    decoder = PcmDecoder(encoding, channels)
    edges = sorted({0, len(data), *(min(int(cut), len(data)) for cut in np.cumsum(cuts))})
    parts = [decoder.push(data[first:end]) for first, end in zip(edges, edges[1:], strict=False)]
    np.testing.assert_array_equal(np.concatenate(parts), whole)


def test_an_odd_byte_is_dropped_at_a_new_beginning():
    decoder = PcmDecoder("s16le", 1)
    assert len(decoder.push(b"abc")) == 1
    decoder.reset()
    np.testing.assert_array_equal(to_pcm16(decoder.push(np.array([7, 8], "<i2").tobytes())), [7, 8])


@pytest.mark.parametrize(
    ("data", "name"), [(b"RIFF....WAVE", "a WAV file"), (b"ID3", "an MP3 file"), (b"OggS", "an Ogg file")]
)
def test_files_are_told_from_samples(data, name):
    with pytest.raises(
        ValueError, match=f"got {name}, expected raw s16le samples: decode it first; it is dropped up to its end mark"
    ):
        PcmDecoder("s16le", 1).push(data)


def test_what_is_no_number_is_refused_and_what_is_too_loud_is_clipped():
    decoder = PcmDecoder("f32le", 1)
    np.testing.assert_array_equal(decoder.push(np.array([3, -0.5, -9], "<f4").tobytes()), [1, -0.5, -1])
    with pytest.raises(ValueError, match="not finite"):
        decoder.push(np.array([0, np.nan], "<f4").tobytes())


def test_mulaw_is_that_of_the_standard():
    """Values of ITU-T G.711, table 2a, in 16 bits: both ends, the middle of a chord, and the two zeros."""
    codes = np.array([0x80, 0x8F, 0xBF, 0xFE, 0xFF, 0x7F, 0x00], np.uint8)
    assert (decode_mulaw(codes) * 32768).tolist() == [32124, 16764, 1980, 8, 0, 0, -32124]
