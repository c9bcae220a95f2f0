"""The whole way from a data folder to weights that the stream loads, on a tiny configuration."""

import csv
import importlib.util
import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from avatard.models import checkpoint
from avatard.models.atom.model import Atom, AtomConfig
from avatard.models.face.topology import MOUTH, inner_lip_heights
from avatard.models.training.atom.dataset import Batch
from avatard.models.training.atom.loss import Recipe, liveliness_loss, motion_loss, prefix_lengths, training_loss
from tests.support.motion_folder import write_folder
from tests.support.paths import ROOT

SIZE = {"audio_frames": 12, "frames": 8, "width": 24, "depth": 1, "rest_depth": 1, "heads": 2}
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "ACCELERATE_USE_CPU": "1"}


def script(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Data, and what prepare_motion.py makes of it."""
    root = tmp_path_factory.mktemp("atom")
    write_folder(root / "data", frames=30, lag=2)
    prepare = script("prepare_motion")
    prepare.NO_SPEECH_TRACKS, prepare.NO_SPEECH_FRAMES = 2, 16
    prepare.main(root / "data", root / "prepared", window_frames=12, hubert="", anchor="grid_s1/grid_s1")
    return root / "data", root / "prepared"


def arguments(folders, run, *more):
    return [*map(str, folders), str(run), "--size", json.dumps(SIZE), "--batch", "4", "--precision", "no", *more]


def train(folders, run, *more):
    assert script("train_atom").main(arguments(folders, run, *more)) == 0


def test_prepared_files(folders):
    _, prepared = folders
    report = json.loads((prepared / "offsets.json").read_text())
    assert report["histogram"]["grid_s1"]["offset_frames"] == {"0": 3}
    assert report["histogram"]["lrw_ar"]["clips"] == 4
    assert all(clip["frames"] == 2 for name, clip in report["clips"].items() if name.startswith("lrw_ar"))
    features, _ = checkpoint.load(prepared / "features/lrw_ar/a04_0.safetensors")
    assert features["speech"].shape[1:] == (12, 768) and "silence" not in features and "voice" not in features
    features, metadata = checkpoint.load(prepared / "features/lrw_ar/a05_0.safetensors")
    assert features["voice"].shape[1:] == (12, 768) and 0.8 <= float(metadata["tempo"]) <= 1.25


def test_training_resumes_and_its_weights_load(folders, tmp_path):
    train(folders, tmp_path, "--steps", "2", "--validate", "2")
    before, _ = checkpoint.load(tmp_path / "state.safetensors")
    train(folders, tmp_path, "--steps", "4", "--validate", "2")
    after, metadata = checkpoint.load(tmp_path / "state.safetensors")
    assert metadata["step"] == "4" and not torch.equal(before["atom/lip_out.1.bias"], after["atom/lip_out.1.bias"])
    rows = list(csv.DictReader((tmp_path / "log.csv").read_text().splitlines()))
    assert [row["step"] for row in rows] == ["2", "4"] and {"loss", "mouth_r", "lip_error_hold"} <= set(rows[0])
    assert Atom.load(tmp_path / "best.safetensors").config.frames == 8
    described = json.loads(checkpoint.load(tmp_path / "best.safetensors")[1]["metrics"])
    assert -1 <= described["mouth_r"] <= 1


def test_two_processes(folders, tmp_path):
    command = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2"]
    command += ["--num_machines", "1", "--mixed_precision", "no", "--main_process_port", "0"]
    command += [str(ROOT / "scripts/train_atom.py"), *arguments(folders, tmp_path, "--steps", "2", "--validate", "2")]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "best.safetensors").exists()


def test_mistakes_are_one_line(folders, tmp_path, capsys):
    main = script("train_atom").main
    assert main([*arguments(folders, tmp_path), "--size", "huge"]) == 1
    assert main(arguments((tmp_path, tmp_path), tmp_path / "run")) == 1
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("error: --size: expected nano, paper or a JSON object")
    assert lines[1].startswith("error: ") and "run scripts/prepare_data.py first" in lines[1]


def test_evaluation_writes_every_key(folders, tmp_path):
    train(folders, tmp_path / "run", "--steps", "1", "--validate", "1")
    options = ["--json", str(tmp_path / "out.json"), "--plot", str(tmp_path / "out.png"), "--drift-minutes", "0.05"]
    options += ["--weights", str(tmp_path / "run/best.safetensors"), "--steps", "1"]
    assert script("evaluate_motion").main([str(folders[0]), *options]) == 0
    report = json.loads((tmp_path / "out.json").read_text())
    assert set(report) == {"overall", "lrw_ar/a04"}
    keys = "mouth_r mouth_r_best_lag lag_frames lip_error_percent_iod lip_error_centred jerk_ratio bilabial_closure"
    keys += " drift_percent_iod_per_min wrong_audio_mouth_r ms_per_hop"
    for figures in report.values():
        assert set(keys.split()) <= set(figures)
        assert set(figures["baselines"]) == {"hold_reference", "hold_neutral", "regressor", "loudness", "ridge"}
    assert (tmp_path / "out.png").stat().st_size > 10_000


NEVER = torch.tensor(False)


def test_loss_ignores_given_and_unknown_frames():
    target = torch.randn(1, 6, 68, 3)
    predicted = torch.tensor([[0.0, 0, 1, 1, 1, 1]])
    known = torch.tensor([[1.0, 1, 1, 1, 0, 0]])
    made = target.clone()
    made[:, :2] += 5
    made[:, 5] += 5
    assert motion_loss(made, target, predicted, known, NEVER) == 0
    made[:, 3] += 0.1
    assert motion_loss(made, target, predicted, known, NEVER) > 0


def test_a_jump_at_the_end_of_the_prefix_costs():
    """The velocity term also looks from the last given to the first predicted frame."""
    target, known = torch.zeros(1, 6, 68, 3), torch.ones(1, 6)
    moved = torch.full_like(target, 0.1)
    whole = motion_loss(moved, target, torch.ones(1, 6), known, NEVER)
    after_prefix = motion_loss(moved, target, torch.tensor([[0.0, 0, 0, 1, 1, 1]]), known, NEVER)
    assert after_prefix > whole * 1.2


def test_still_lips_cost_more_than_lips_that_move_the_other_way():
    frames, here = torch.arange(12) % 2 * 0.2, torch.ones(1, 12)
    target = torch.zeros(1, 12, 68, 3)
    target[..., MOUTH, 1] = frames[None, :, None]
    assert liveliness_loss(0.2 - target, target, here) == pytest.approx(0, abs=1e-6)
    assert liveliness_loss(torch.full_like(target, 0.1), target, here) > 0.01
    here[:, 1::3] = 0  # no window is known as a whole
    assert liveliness_loss(torch.full_like(target, 0.1), target, here) == 0


def test_openings_are_the_lips_distances():
    face = torch.zeros(1, 1, 68, 3)
    face[..., 65:68, 1] = 0.2
    assert inner_lip_heights(face).flatten().tolist() == pytest.approx([0.2] * 3)


def test_an_open_mouth_that_should_be_shut_costs_more():
    target, ones = torch.zeros(1, 6, 68, 3), torch.ones(1, 6)
    made = target.clone()
    made[..., 65:68, 1] += 0.1
    assert motion_loss(made, target, ones, ones, ones) > 1.2 * motion_loss(made, target, ones, ones, NEVER)


class Recorder(torch.nn.Module):
    """A network that keeps what it was asked."""

    def __init__(self, atom):
        super().__init__()
        self.atom, self.asked = atom, []

    def forward(self, x, clean, *rest):
        self.asked.append((x, clean))
        return self.atom(x, clean, *rest)


def test_the_prefix_is_the_networks_own_motion():
    """An untrained network keeps the face at rest, so the prefix rests however far the real mouth is."""
    atom = Atom(AtomConfig(6, audio_frames=12, frames=8, width=24, depth=1, rest_depth=1, heads=2))
    face = torch.zeros(16, 2, 68, 3)
    batch = Batch(torch.randn(16, 12, 6), torch.full((16, 8, 68, 3), 9.0), torch.ones(16, 8), face, face)
    model, calm = Recorder(atom), Recipe(jitter=0, drift=0, serving_share=1)
    training_loss(model, atom, batch, 2, calm, torch.Generator().manual_seed(0)).backward()
    ((x, clean),) = model.asked
    assert clean[:, :4].all() and not clean[:, 4:].any()
    assert not x[:, :4].any() and x[:, 4:].any()


def test_prefix_lengths_follow_the_recipe():
    lengths = prefix_lengths(4000, 20, Recipe(), torch.Generator().manual_seed(0)).numpy()
    assert np.mean(lengths == 16) == pytest.approx(0.6 + 0.25 / 17, abs=0.03)
    assert np.mean(lengths == 0) == pytest.approx(0.15 + 0.25 / 17, abs=0.03)
    assert lengths.min() == 0 and lengths.max() == 16
