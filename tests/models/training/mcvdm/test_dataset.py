import numpy as np
import pytest
import torch

from avatard.models.face.morphable import MorphableModel
from avatard.models.face.pose import Pose
from avatard.models.training.clips import Clip, DataError, Entry, read_index, write_index
from avatard.models.training.mcvdm.dataset import Examples, Sampling, augment, validation_examples
from avatard.models.training.splits import Split
from tests.support.tiny_mcvdm import frontal

MODEL = MorphableModel.load()
MEAN = MODEL.mean_68


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two people to train on, one kept aside, and an animated portrait; mouths open more with every frame."""
    folder = tmp_path_factory.mktemp("data")
    entries = []
    rest = frontal()
    for source, clip, speaker, frames in [
        ("lrw_ar", "1", "a01", 12),
        ("lrw_ar", "2", "a02", 12),
        ("lrw_ar", "3", "b08", 12),
        ("factory", "4", "somebody", 5),
    ]:
        landmarks = np.zeros((frames, 68, 3), np.float32)
        landmarks[:, 65:68, 1] = np.linspace(0, 0.3, frames)[:, None]
        pose = Pose(*(np.repeat(np.asarray(v)[None], frames, 0) for v in (rest.rotation, rest.scale, rest.translation)))
        pictures = [np.full((256, 256, 3), 10 + 8 * n, np.uint8) for n in range(frames)]
        path = f"{source}/{clip}.safetensors"
        Clip.write(folder / path, pictures, np.zeros((frames, 468, 3)), landmarks, pose, {"speaker": speaker})
        split: Split = "validation" if speaker == "b08" else "train"
        entries.append(Entry(source, clip, speaker, frames, path, split, animated=source == "factory"))
    write_index(folder, entries)
    return folder


def examples(folder, sampling=None, mix=None, **options):
    entries = [e for e in read_index(folder) if e.split == "train"]
    sampling = sampling or Sampling(frames=4)
    return Examples(folder, entries, mix or {"lrw_ar": 1}, MEAN, sampling, length=20, **options)


def test_an_example_is_a_function_of_seed_and_number(folder):
    first, again, resumed = examples(folder)[7], examples(folder)[7], examples(folder, start=5)[2]
    for key in first:
        assert torch.equal(first[key], again[key])
        assert torch.equal(first[key], resumed[key])
    other = examples(folder, seed=1)[7]
    assert not torch.equal(first["source"], other["source"])


def test_shapes(folder):
    example = examples(folder)[0]
    assert {key: tuple(value.shape) for key, value in example.items()} == {
        "reference": (3, 256, 256),
        "frames": (4, 3, 256, 256),
        "source": (68, 2),
        "rigid": (4, 68, 2),
        "target": (4, 68, 2),
        "registered": (5, 68, 2),
        "regions": (4, 1, 256, 256),
        "shown": (4,),
    }


def test_points_are_projected_landmarks_and_the_rigid_ones_keep_the_portraits_expression(folder):
    example = examples(folder, Sampling(frames=4, augment=False, closed_reference=1, other_clip=0))[3]
    expected = frontal().project(MEAN)[:, :2]
    np.testing.assert_allclose(example["source"][:60], expected[:60], atol=1e-3)
    torch.testing.assert_close(example["rigid"], example["source"].expand(4, 68, 2))
    assert (example["target"][:, 66, 1] >= example["source"][66, 1]).all()


def test_only_shown_frames_come_as_pictures(folder):
    example = examples(folder, Sampling(frames=12, max_step=1, shown=2, tail=4))[0]
    assert example["frames"].shape[0] == example["regions"].shape[0] == 2
    assert example["target"].shape[0] == 12
    assert example["shown"].tolist() == sorted(example["shown"].tolist())
    assert example["shown"].min() >= 8


def test_short_clips_are_played_to_and_fro_without_the_photograph(folder):
    sampling = Sampling(frames=8, max_step=1, augment=False)
    frames = examples(folder, sampling, {"factory": 1})[0]["frames"][:, 0, 0, 0]
    levels = [round((int(v) - 10) / 8) for v in frames]
    assert levels == [1, 2, 3, 4, 3, 2, 1, 2]


def test_people_kept_aside_are_only_in_the_validation(folder):
    entries = read_index(folder)
    made = validation_examples(folder, entries, MEAN, clips=10, frames=4, step=3)
    assert len(made) == 1
    assert made[0]["reference"][0, 0, 0] == pytest.approx(10, abs=2)  # the most closed mouth


def test_a_source_without_clips_is_named(folder):
    with pytest.raises(DataError, match="no training clips of grid_s1"):
        examples(folder, mix={"lrw_ar": 0.5, "grid_s1": 0.5})


def test_points_follow_their_picture_through_every_augmentation():
    rng = np.random.default_rng(0)
    for _ in range(20):
        picture, point = np.zeros((256, 256, 3), np.uint8), rng.uniform(90, 166, 2).round()
        picture[int(point[1]) - 3 : int(point[1]) + 4, int(point[0]) - 3 : int(point[0]) + 4] = 255
        (moved,), points = augment(rng, [picture], np.array([[point]]))
        bright = moved.astype(float).sum(-1)
        bright = np.where(bright > (bright.max() + bright.min()) / 2, 1.0, 0.0)
        y, x = (np.average(axis, weights=bright) for axis in np.mgrid[:256, :256])
        np.testing.assert_allclose(points[0, 0], [x, y], atol=1.5)
