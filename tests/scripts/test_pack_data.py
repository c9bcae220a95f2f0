import numpy as np
import pytest
import torch

from avatard.models.face.morphable import MorphableModel
from avatard.models.training.clips import Clip, read_index
from avatard.models.training.mcvdm.dataset import Examples, Sampling
from avatard.models.training.mcvdm.footage import footage_of
from avatard.models.training.packing import LANDMARK_STEPS
from tests.support.prepared import write_prepared
from tests.support.scripts import run_script


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_prepared(tmp_path_factory.mktemp("data"), texture=12.0)


def test_clips_travel_and_train_alike(data, tmp_path, capsys):
    bundle, back = tmp_path / "bundle", tmp_path / "back"
    assert run_script("pack_data", "pack", data, bundle, "--crf", 10, "--part-mib", 0.05) == 0
    assert "4 clips, 41 frames" in capsys.readouterr().out
    assert len(list(bundle.glob("part_*.bin"))) > 1
    assert run_script("pack_data", "unpack", bundle, back) == 0
    assert "4 clips, 41 frames" in capsys.readouterr().out
    for before, after in zip(read_index(data), read_index(back), strict=True):
        assert before == after
        first, second = Clip(data / before.path), Clip(back / after.path)
        assert (np.abs(first.landmarks - second.landmarks) <= 0.501 * LANDMARK_STEPS).all()
        assert np.abs(first.registered - second.registered).max() < 0.04
        error = np.square(first.frames().astype(float) - second.frames()).mean()
        assert 10 * np.log10(255**2 / error) > 34
    mean_68, device = MorphableModel.load().mean_68, torch.device("cpu")
    batches = []
    for source in (data, bundle, back):
        footage = footage_of(source, "train", mean_68, device, resident=True)
        batches.append(Examples(footage, {"lrw_ar": 1}, Sampling(frames=2), seed=3).batch([5]))
    for key in ("rigid", "target", "registered"):
        for other in batches[1:]:
            torch.testing.assert_close(batches[0][key], other[key], atol=0.1, rtol=0)


def test_mistakes_are_one_line(data, tmp_path, capsys):
    bundle = tmp_path / "bundle"
    assert run_script("pack_data", "pack", data, bundle) == 0
    part = bundle / "part_000.bin"
    part.write_bytes(part.read_bytes()[:-5])
    for arguments, message in (
        (("unpack", bundle, tmp_path / "out"), "part_000.bin has"),
        (("unpack", tmp_path, tmp_path / "out"), "has no bundle"),
        (("pack", tmp_path, tmp_path / "out"), "run scripts/prepare_data.py first"),
        (("pack", data, bundle), "give another folder"),
        (("pack", data, tmp_path / "out", "--crf", "99"), "--crf from 0 to 51"),
    ):
        capsys.readouterr()
        assert run_script("pack_data", *arguments) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ") and error.count("\n") == 1 and message in error
