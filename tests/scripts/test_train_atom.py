"""The whole way from a data folder to weights that the stream loads, on a tiny configuration."""

import csv
import json
import os
import subprocess
import sys

import pytest
import torch
from accelerate.state import AcceleratorState

from avatard.models import checkpoint
from avatard.models.atom.model import Atom
from tests.support.motion_folder import write_folder
from tests.support.paths import ROOT
from tests.support.scripts import run_script

SIZE = {"audio_frames": 12, "frames": 8, "width": 24, "depth": 1, "rest_depth": 1, "heads": 2}
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "ACCELERATE_USE_CPU": "1"}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Data, and what prepare_motion.py makes of it."""
    root = tmp_path_factory.mktemp("atom")
    write_folder(root / "data", frames=30, lag=2)
    options = ("--window-frames", 12, "--no-speech-tracks", 2)
    assert run_script("prepare_motion", root / "data", root / "prepared", *options) == 0
    return root / "data", root / "prepared"


def arguments(folders, run, steps=2):
    recipe = {f"network.{name}": value for name, value in SIZE.items()} | {"training.batch": 4, "training.steps": steps}
    recipe |= {"training.precision": "no", "training.validate": min(steps, 2), "training.log": 1}
    changes = [part for key, value in recipe.items() for part in ("--set", f"{key}={value}")]
    return [*map(str, folders), str(run), *changes]


def train(folders, run, steps):
    AcceleratorState._reset_state(reset_partial_state=True)
    assert run_script("train_atom", *arguments(folders, run, steps)) == 0


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
    train(folders, tmp_path, 2)
    before, _ = checkpoint.load(tmp_path / "state.safetensors")
    train(folders, tmp_path, 4)
    after, metadata = checkpoint.load(tmp_path / "state.safetensors")
    assert metadata["step"] == "4" and not torch.equal(
        before["network/lip_out.1.bias"], after["network/lip_out.1.bias"]
    )
    rows = list(csv.DictReader((tmp_path / "validation.csv").read_text().splitlines()))
    assert [row["step"] for row in rows] == ["2", "4"] and {"mouth_r", "reported_lip_error_hold"} <= set(rows[0])
    log = list(csv.DictReader((tmp_path / "log.csv").read_text().splitlines()))
    assert [row["step"] for row in log] == ["1", "2", "3", "4"] and {"total", "gradient"} <= set(log[0])
    assert Atom.load(tmp_path / "best.safetensors").config.frames == 8
    described = json.loads(checkpoint.load(tmp_path / "best.safetensors")[1]["metrics"])
    assert -1 <= described["mouth_r"] <= 1


def test_two_processes(folders, tmp_path):
    command = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2"]
    command += ["--num_machines", "1", "--mixed_precision", "no", "--main_process_port", "0"]
    command += [str(ROOT / "scripts/train_atom.py"), *arguments(folders, tmp_path)]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "best.safetensors").exists()


def test_mistakes_are_one_line(folders, tmp_path, capsys):
    assert run_script("train_atom", *arguments(folders, tmp_path), "--recipe", "huge") == 2
    assert run_script("train_atom", *arguments((tmp_path, tmp_path), tmp_path / "run")) == 2
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("error: no recipe 'huge'")
    assert lines[1].startswith("error: ") and "run scripts/prepare_data.py first" in lines[1]


def test_evaluation_writes_every_key(folders, tmp_path):
    train(folders, tmp_path / "run", 1)
    options = ["--json", str(tmp_path / "out.json"), "--plot", str(tmp_path / "out.png"), "--drift-minutes", "0.05"]
    options += ["--weights", str(tmp_path / "run/best.safetensors"), "--hop", "4"]
    assert run_script("evaluate_motion", folders[0], *options) == 0
    report = json.loads((tmp_path / "out.json").read_text())
    assert set(report) == {"overall", "lrw_ar", "lrw_ar/a04"}
    keys = "mouth_r mouth_r_best_lag lag_frames lip_error_percent_iod lip_error_centred jerk_ratio bilabial_closure"
    keys += " wrong_audio_mouth_r"
    for name, figures in report.items():
        assert set(keys.split()) <= set(figures)
        # One network makes a source's motions and a person's speech drifts; a source has neither of its own.
        assert name == "lrw_ar" or {"drift_percent_iod_per_min", "ms_per_hop"} <= set(figures)
        assert set(figures["baselines"]) == {"hold_reference", "hold_neutral", "regressor", "loudness", "ridge"}
    assert (tmp_path / "out.png").stat().st_size > 10_000
