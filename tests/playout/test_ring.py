import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from avatard.playout.ring import AudioRing


@given(st.integers(1, 50), st.lists(st.integers(0, 80), max_size=10), st.integers(0, 400), st.integers(0, 60))
def test_every_sample_keeps_its_number(capacity, sizes, first, count):
    ring = AudioRing(capacity, start=7)
    signal = np.arange(1, sum(sizes) + 1, dtype=np.float32)
    position = 0
    for size in sizes:
        ring.append(signal[position : position + size])
        position += size
    assert ring.end == 7 + position
    assert ring.end - ring.start == min(capacity, position)
    expected = [signal[n - 7] if ring.start <= n < ring.end else 0 for n in range(first, first + count)]
    np.testing.assert_array_equal(ring.read(first, count), np.array(expected, np.float32))


def test_what_is_cut_off_is_written_again():
    ring = AudioRing(10)
    ring.append(np.ones(8, np.float32))
    ring.truncate(3)
    ring.append(np.full(2, 5, np.float32))
    np.testing.assert_array_equal(ring.read(0, 8), [1, 1, 1, 5, 5, 0, 0, 0])


def test_no_room_is_an_error():
    with pytest.raises(ValueError, match="capacity is 0 samples, expected at least 1"):
        AudioRing(0)
