import numpy as np

from avatard.models.training.av_sync import SyncClip, estimate, with_neighbours


def synthetic_sync(lags, rng, frames=40):
    """Clips whose features tell the opening, heard `lag` frames after it is seen."""
    mixing = rng.normal(size=(2, 12))
    clips = []
    for n, lag in enumerate(lags):
        opening = np.convolve(rng.normal(size=frames + 20), np.ones(3) / 3, mode="same")
        heard = np.stack([opening, rng.normal(size=frames + 20)], axis=1) @ mixing
        clips.append(
            SyncClip(heard[10 - lag : 10 - lag + frames], opening[10 : 10 + frames], "anchor" if n < 4 else "other")
        )
    return clips


def test_offsets_are_found():
    rng = np.random.default_rng(2)
    lags = [0] * 4 + [2, 2, 1, 2, 3, 2]
    found = estimate(synthetic_sync(lags, rng), "anchor")
    assert [offset.frames for offset in found] == lags
    assert all(offset.kept for offset in found)


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
