import numpy as np
import pytest

from avatard.models.evaluation.reconstruction import CLIP_FRAMES, cut


@pytest.mark.parametrize("count", [1, 15, 16, 17, 30, 48])
def test_windows_keep_every_frame_once(count):
    frames = np.arange(count)
    parts = [frames[seen][kept] for seen, kept in cut(count)]
    assert np.concatenate(parts).tolist() == frames.tolist()
    assert all(len(frames[seen]) == min(count, CLIP_FRAMES) for seen, _ in cut(count))
