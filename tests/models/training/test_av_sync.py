import numpy as np
import pytest

from avatard.models.training.av_sync import SyncClip, energy_after_parting, estimate, with_neighbours


def smooth(signal, width=9):
    return np.convolve(signal, np.hanning(width) / np.hanning(width).sum(), mode="same")


def synthetic_sync(lags, rng, frames=60):
    """Clips whose features tell the opening, heard `lag` frames after it is seen; lags are in eighths of a frame."""
    mixing = rng.normal(size=(2, 12))
    clips = []
    for n, lag in enumerate(lags):
        fine = np.arange(8 * (frames + 20))
        opening = smooth(rng.normal(size=len(fine)), 49)[fine]
        heard = np.stack([100 * opening, 10 * smooth(rng.normal(size=len(fine)), 49)], axis=1)
        seen, sound = (slice(80 - move, 80 - move + 8 * frames, 8) for move in (0, round(8 * lag)))
        clips.append(SyncClip(heard[sound] @ mixing, opening[seen], "anchor" if n < 4 else f"other {lag}"))
    return clips


@pytest.mark.parametrize("moved", [-3.0, -1.0, 0.0, 0.5, 2.0])
def test_clips_that_were_moved_are_found_there(moved):
    lags = [0.0] * 4 + [moved] * 5 + [1.25] * 5
    found = estimate(synthetic_sync(lags, np.random.default_rng(2)), "anchor")
    assert [offset.exact for offset in found] == pytest.approx(lags, abs=0.2)
    assert all(offset.kept for offset in found)


@pytest.mark.parametrize("late_ms", [0, 80])
def test_sound_swells_when_lips_part_if_it_is_in_step(late_ms):
    opening = np.tile([0.0, 0, 0, 0, 0, 0, 0, 0, 0.5, 1, 1, 1, 1, 0.5, 0], 8)
    voiced = np.repeat(opening > 0.2, 640)
    sound = np.random.default_rng(0).normal(size=len(voiced)).astype(np.float32) * (0.001 + 0.3 * voiced)
    found, times = energy_after_parting([opening], [np.roll(sound, 16 * late_ms)])
    assert found == pytest.approx(late_ms, abs=20) and times >= 7
    assert energy_after_parting([np.zeros(40)], [sound[: 40 * 640]])[1] == 0


def test_without_an_anchor_clips_are_taken_to_be_in_step():
    clips = synthetic_sync([0] * 4 + [0] * 8, np.random.default_rng(4))
    found = estimate([SyncClip(clip.features, clip.opening, f"{n % 4}") for n, clip in enumerate(clips)], "nobody")
    assert [offset.frames for offset in found] == [0] * 12
    assert all(offset.kept for offset in found)


def test_sound_of_another_clip_is_dropped():
    rng = np.random.default_rng(3)
    clips = synthetic_sync([0] * 4 + [1] * 8, rng)
    wrong = SyncClip(rng.normal(size=clips[-1].features.shape), clips[-1].opening, "other")
    found = estimate([*clips, wrong], "anchor")
    assert not found[-1].kept and sum(not offset.kept for offset in found) == 1


def test_neighbours_stand_beside_each_frame_and_a_constant():
    features = np.arange(4.0)[:, None]
    assert with_neighbours(features, 1).tolist() == [[0, 0, 1, 1], [0, 1, 2, 1], [1, 2, 3, 1], [2, 3, 3, 1]]
