import numpy as np
import pytest

from avatard.models.training.atom.audio_augmentation import (
    Track,
    among_silence,
    among_speech,
    at_tempo,
    frames_at_tempo,
    no_speech,
)
from avatard.timebase import SAMPLES_PER_FRAME


def test_windows_of_a_track():
    track = Track(np.arange(4 * SAMPLES_PER_FRAME, dtype=np.float32), start=-1)
    window = track.window(end=4, frames=6)  # frames -2..3; the track has -1..2
    assert len(window) == 6 * SAMPLES_PER_FRAME
    assert not window[:SAMPLES_PER_FRAME].any() and not window[5 * SAMPLES_PER_FRAME :].any()
    assert window[SAMPLES_PER_FRAME + 1] == 1
    assert not track.window(end=40, frames=6).any()


def test_tracks_keep_the_clip_in_place():
    rng = np.random.default_rng(0)
    samples = np.sin(np.arange(20 * SAMPLES_PER_FRAME) / 5).astype(np.float32) * 0.1
    before = np.ones(7 * SAMPLES_PER_FRAME + 13, np.float32) * 0.1
    joined = among_speech(samples, before, rng)
    assert joined.start == -7 and len(joined.samples) == 27 * SAMPLES_PER_FRAME
    alone = among_silence(samples, 5, rng)
    clip = alone.window(20, 20)
    assert np.corrcoef(clip, samples)[0, 1] > 0.9
    assert np.abs(alone.window(0, 5)).max() < np.abs(clip).max()
    for _ in range(20):
        assert np.abs(no_speech(10, rng).samples).max() <= 1


@pytest.mark.parametrize("tempo", [0.8, 1.25])
@pytest.mark.parametrize("offset", [-1, 0, 2])
def test_sound_and_picture_stay_together_at_any_tempo(tempo, offset):
    """Something heard in frame 12 is seen in frame 12 - offset, and so it is when played faster or slower."""
    samples, picture = np.zeros(30 * SAMPLES_PER_FRAME, np.float32), np.zeros((30, 68, 3), np.float32)
    samples[12 * SAMPLES_PER_FRAME : 13 * SAMPLES_PER_FRAME] = np.sin(np.arange(SAMPLES_PER_FRAME) / 3)
    picture[12 - offset] = 1

    def middle(signal):
        return float(signal @ np.arange(len(signal)) / signal.sum())

    heard = np.square(at_tempo(samples, tempo).reshape(-1, SAMPLES_PER_FRAME)).mean(axis=1)
    seen = frames_at_tempo(picture, tempo, offset)
    assert len(heard) == len(seen)
    assert middle(seen[:, 40, 1]) + offset == pytest.approx(middle(heard), abs=0.15)
