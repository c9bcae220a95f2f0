import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from avatard.engine.crossfade import blend, fade_in


@given(st.integers(0, 64))
def test_weights_rise_between_zero_and_one_and_sum_to_half(fade):
    weights = fade_in(fade)
    assert len(weights) == fade
    assert all(0 < w < 1 for w in weights)
    assert weights == sorted(weights)
    assert sum(weights) == pytest.approx(fade / 2)


@given(st.integers(1, 12))
def test_what_both_clips_agree_on_is_kept(fade):
    frames = torch.randn(2, fade, 3, 4)
    torch.testing.assert_close(blend(frames, frames.clone(), torch.tensor([fade_in(fade)] * 2)), frames)


def test_the_first_frames_are_the_former_clips_and_the_last_the_latters():
    mixed = blend(torch.zeros(1, 9, 1), torch.ones(1, 9, 1), torch.tensor([fade_in(9)]))[0]
    assert mixed[0] < 0.05
    assert mixed[-1] > 0.95
    assert mixed[4] == pytest.approx(0.5)


def test_clips_that_do_not_overlap_are_refused():
    with pytest.raises(ValueError, match="the same frames"):
        blend(torch.zeros(1, 2, 3), torch.zeros(1, 3, 3), torch.tensor([fade_in(2)]))
