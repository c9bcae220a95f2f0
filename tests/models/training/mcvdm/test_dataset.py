import numpy as np
import pytest
import torch

from avatard.models.face.morphable import MorphableModel
from avatard.models.training.clips import DataError
from avatard.models.training.mcvdm.dataset import Examples, Sampling, validation_examples
from avatard.models.training.mcvdm.footage import footage_of
from tests.support.prepared import level, write_prepared
from tests.support.tiny_mcvdm import frontal

MEAN = MorphableModel.load().mean_68
CPU = torch.device("cpu")
DEVICES = [CPU, *([torch.device("cuda")] if torch.cuda.is_available() else [])]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_prepared(tmp_path_factory.mktemp("data"), texture=12.0)


def examples(folder, sampling=None, mix=None, seed=0, device=CPU, resident=False):
    mix = mix or {"lrw_ar": 1}
    footage = footage_of(folder, "train", MEAN, device, resident=resident, sources=[*mix])
    return Examples(footage, mix, sampling or Sampling(frames=4), seed)


def differences(ours, others):
    """The largest of points, the largest share of bytes that differ by more than one, and the largest of bytes."""
    points, share, most = 0.0, 0.0, 0.0
    for key, value in ours.items():
        gap = (value.cpu().float() - others[key].cpu().float()).abs()
        if value.is_floating_point():
            points = max(points, float(gap.max()))
        else:
            share, most = max(share, float((gap > 1).float().mean())), max(most, float(gap.max()))
    return points, share, most


@pytest.mark.parametrize("device", DEVICES, ids=str)
def test_an_example_is_the_same_alone_in_a_batch_and_on_another_device(folder, device):
    together = examples(folder, device=device, resident=True).batch(range(12))
    one_by_one = examples(folder)
    for n in range(12):
        alone = one_by_one.batch([n])
        points, share, _ = differences(alone, {key: value[n : n + 1] for key, value in together.items()})
        assert points < 1e-3
        assert share < 1e-3  # a JPEG's coefficient may be rounded the other way


def test_another_seed_draws_other_examples(folder):
    first, other = (examples(folder, seed=seed).batch([7])["source"] for seed in (0, 1))
    assert not torch.equal(first, other)


def test_shapes(folder):
    assert {key: tuple(value.shape) for key, value in examples(folder).batch([0, 1]).items()} == {
        "reference": (2, 3, 256, 256),
        "frames": (2, 4, 3, 256, 256),
        "source": (2, 68, 2),
        "rigid": (2, 4, 68, 2),
        "target": (2, 4, 68, 2),
        "registered": (2, 5, 68, 2),
        "regions": (2, 4, 1, 256, 256),
        "shown": (2, 4),
    }


def test_points_are_projected_landmarks_and_the_rigid_ones_keep_the_portraits_expression(folder):
    batch = examples(folder, Sampling(frames=4, augment=False, closed_reference=1, other_clip=0)).batch(range(4))
    expected = frontal().project(MEAN)[:, :2]
    for source, rigid, target in zip(batch["source"], batch["rigid"], batch["target"], strict=True):
        np.testing.assert_allclose(source[:60], expected[:60], atol=1e-3)
        torch.testing.assert_close(rigid, source.expand(4, 68, 2))
        assert target[-1, 66, 1] > source[66, 1]


def test_portraits_are_closed_and_clips_open_as_often_as_asked(folder):
    sampling = Sampling(frames=4, max_step=1, augment=False, closed_reference=1, open_target=1, other_clip=0)
    made = examples(folder, sampling).choose(np.arange(200))
    assert (made.reference % 12).max() <= 2  # the most closed quarter
    assert all(frames.max() % 12 >= 10 for frames in made.frames)  # the widest sixth is among them
    sampling = Sampling(frames=4, closed_reference=0, open_target=0)
    free = examples(folder, sampling).choose(np.arange(2000))
    assert len(np.unique(free.reference)) == len(np.unique(free.frames)) == 24
    assert set(np.unique(np.diff(free.frames % 12))) == {1, 2, 3}


def test_people_and_sources_are_drawn_by_their_shares(folder):
    made = examples(folder, Sampling(frames=2), {"lrw_ar": 3, "factory": 1}).choose(np.arange(4000))
    assert (made.reference >= 24).mean() == pytest.approx(0.25, abs=0.03)
    assert (made.reference < 12).mean() == pytest.approx(0.375, abs=0.03)


def test_only_shown_frames_come_as_pictures(folder):
    batch = examples(folder, Sampling(frames=12, max_step=1, shown=2, tail=4)).batch(range(8))
    assert batch["frames"].shape[1] == batch["regions"].shape[1] == 2
    assert batch["target"].shape[1] == 12
    assert (batch["shown"].diff() > 0).all()
    assert batch["shown"].min() >= 8


def test_short_clips_are_played_to_and_fro_without_the_photograph(folder):
    sampling = Sampling(frames=8, max_step=1, augment=False)
    (frames,) = examples(folder, sampling, {"factory": 1}).choose(np.array([0])).frames
    assert frames.tolist() == [1, 2, 3, 4, 3, 2, 1, 2]


def test_people_kept_aside_are_only_in_the_validation(folder):
    made = validation_examples(folder, MEAN, CPU, clips=10, frames=4, step=3)
    (batch,) = made
    means = batch["frames"].float().mean((0, 2, 3, 4))
    steps = np.diff(means)
    assert batch["reference"].float().mean() == pytest.approx(means[0], abs=2)  # the most closed mouth
    np.testing.assert_allclose(steps, level(3) - level(0), atol=3)


def test_a_source_without_clips_is_named(folder):
    with pytest.raises(DataError, match="no training clips of grid_s1"):
        examples(folder, mix={"lrw_ar": 0.5, "grid_s1": 0.5})
