import shutil

import numpy as np
import pytest

from avatard.models.face.topology import MESH_TO_68
from avatard.models.training.clips import Clip, Entry, read_index, write_index
from tests.models.training.synthesis.test_animate import performance
from tests.support.faces import PORTRAIT, morphable
from tests.support.scripts import run_script


@pytest.fixture
def data(tmp_path):
    """Prepared data with one video of a mouth that opens."""
    act = performance(8)
    faces, pose = morphable().frontal(act.points)
    metadata = {"source": "lrw_ar", "clip": "one", "speaker": "a01", "fps": "25"}
    path = tmp_path / "data" / "lrw_ar" / "one.safetensors"
    Clip.write(path, list(act.frames), act.points, morphable().landmarks(faces), pose, metadata)
    write_index(tmp_path / "data", [Entry("lrw_ar", "one", "a01", 8, "lrw_ar/one.safetensors")])
    return tmp_path / "data"


@pytest.fixture
def portraits(tmp_path):
    folder = tmp_path / "people"
    folder.mkdir()
    shutil.copy(PORTRAIT, folder / "astronaut.jpg")
    return folder


def test_clips_are_made_once_and_are_what_the_index_says(data, portraits):
    arguments = (portraits, "--data", data, "--clips", 2, "--frames", 5)
    assert run_script("animate_portraits", *arguments) == 0
    made = [entry for entry in read_index(data) if entry.source == "factory"]
    assert 1 <= len(made) <= 2 and len(read_index(data)) == 1 + len(made)
    assert all(entry.split == "train" and entry.animated for entry in made) and made[0].speaker.startswith("astronaut-")
    clip = Clip(data / made[0].path)
    assert len(clip) == made[0].frames == 5 and clip.frame(4).shape == (256, 256, 3)
    drawn = clip.pose.project(clip.landmarks + morphable().mean_68)
    np.testing.assert_allclose(drawn, clip.points[:, MESH_TO_68], atol=1e-2)
    written = (data / made[0].path).stat().st_mtime_ns
    assert run_script("animate_portraits", *arguments) == 0
    assert (data / made[0].path).stat().st_mtime_ns == written
    assert [entry for entry in read_index(data) if entry.source == "factory"] == made


def test_without_videos_there_is_one_line(data, portraits, capsys):
    assert run_script("animate_portraits", portraits, "--data", data, "--performers", "nobody") == 2
    assert capsys.readouterr().err == "error: 1 portraits and 0 prepared videos to animate them with\n"
