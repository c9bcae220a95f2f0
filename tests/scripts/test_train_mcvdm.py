"""Both training stages of MC-VDM, from a data folder to weights that load, on a tiny configuration."""

import csv
import importlib.util
import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState

from avatard.models import checkpoint
from avatard.models.face.pose import Pose
from avatard.models.mcvdm.model import Mcvdm
from avatard.models.training.clips import Clip, Entry, write_index
from tests.support.paths import SCRIPTS
from tests.support.tiny_mcvdm import frontal

AUTOENCODER = json.dumps({"width": 8, "mid": 8, "small": 8})
UNET = json.dumps({"width": 8, "head": 8, "landmark": 4})


def run(monkeypatch, script, *arguments):
    spec = importlib.util.spec_from_file_location(script, SCRIPTS / f"{script}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(sys, "argv", [script, *map(str, arguments)])
    # accelerate keeps one state a process; other tests of training, in other precisions, run in this one.
    AcceleratorState._reset_state(reset_partial_state=True)
    return module.main()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    rng, rest, entries = np.random.default_rng(0), frontal(), []
    for speaker in ("a01", "b08"):  # b08 is kept out of training
        landmarks = 0.02 * rng.standard_normal((28, 68, 3))
        pose = Pose(*(np.repeat(np.asarray(v)[None], 28, 0) for v in (rest.rotation, rest.scale, rest.translation)))
        path = f"lrw_ar/{speaker}.safetensors"
        pictures = [np.full((256, 256, 3), 9 * n, np.uint8) for n in range(28)]
        Clip.write(folder / path, pictures, np.zeros((28, 468, 3)), landmarks, pose, {"speaker": speaker})
        entries.append(Entry("lrw_ar", speaker, speaker, 28, path))
    write_index(folder, entries)
    return folder


@pytest.fixture(scope="module")
def trunk(tmp_path_factory):
    tensors = {"shift": torch.zeros(1, 3, 1, 1), "scale": torch.ones(1, 3, 1, 1)}
    for level in range(3):
        tensors[f"level{level}.00.weight"] = torch.randn(3, 3, 3, 3)
        tensors[f"level{level}.00.bias"] = torch.zeros(3)
    path = tmp_path_factory.mktemp("trunk") / "vgg.safetensors"
    checkpoint.save(path, tensors, {})
    return path


def rows(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_the_whole_way_to_weights_that_load(folder, trunk, tmp_path, monkeypatch):
    autoencoder, diffusion, mix = tmp_path / "ae", tmp_path / "vd", ["--mix", "lrw_ar=1"]
    first = [folder, autoencoder, *mix, "--perceptual", trunk, "--size", AUTOENCODER, "--batch", 2, "--frames", 2]
    first += ["--log", 2, "--full", 0.5]
    assert run(monkeypatch, "train_autoencoder", *first, "--steps", 2) == 0
    assert run(monkeypatch, "train_autoencoder", *first, "--steps", 4) == 0  # resumes
    state, metadata = checkpoint.load(autoencoder / "state.safetensors")
    assert metadata["step"] == "4"
    assert [row["step"] for row in rows(autoencoder / "log.csv")] == ["2", "4"]
    scores = rows(autoencoder / "validation.csv")[-1]
    assert {"frames_mouth", "zeroed_mouth", "warp_mouth", "still_psnr"} <= set(scores)
    assert (autoencoder / "sheet_000004.png").exists()

    second = [folder, diffusion, *mix, "--size", UNET, "--batch", 2, "--log", 1]
    encoded = ["--autoencoder", autoencoder / "state.safetensors"]
    assert run(monkeypatch, "train_mcvdm", "cache", *second, *encoded, "--examples", 3) == 0
    assert run(monkeypatch, "train_mcvdm", "latents", *second, *encoded, "--steps", 2) == 0
    assert run(monkeypatch, "train_mcvdm", "latents", *second, "--steps", 3) == 0  # resumes
    assert run(monkeypatch, "train_mcvdm", "pixels", *second, "--perceptual", trunk, "--steps", 2, "--shown", 2) == 0
    assert [row["step"] for row in rows(diffusion / "latents.csv")] == ["1", "2", "3"]
    assert {"steps_1_mouth", "steps_2_mouth", "reconstruction_mouth"} <= set(
        rows(diffusion / "pixels_validation.csv")[0]
    )

    weights = tmp_path / "mcvdm.safetensors"
    assert run(monkeypatch, "train_mcvdm", "export", folder, diffusion, "--out", weights, "--note", "a test") == 0
    model = Mcvdm.load(weights)
    assert model.config.autoencoder.width == 8
    encoder = model.autoencoder.state_dict()["encoder.rows"]
    torch.testing.assert_close(encoder, state["ema/encoder.rows"], atol=1e-2, rtol=1e-2)
    assert checkpoint.load(weights)[1]["note"] == "a test"


def test_every_stage_trains_on_two_processes(folder, trunk, tmp_path):
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2"]
    launch += ["--num_machines", "1", "--mixed_precision", "bf16", "--main_process_port", "0"]
    environment = os.environ | {"PYTHONPATH": str(SCRIPTS.parent), "OMP_NUM_THREADS": "1"}
    autoencoder, diffusion = tmp_path / "ae", tmp_path / "vd"
    common = ["--mix", "lrw_ar=1", "--perceptual", trunk, "--batch", 1, "--steps", 2, "--log", 1]

    def started(script, *arguments, launch=launch):
        command = [*launch, str(SCRIPTS / f"{script}.py"), *map(str, arguments)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)
        assert done.returncode == 0, done.stderr

    started("train_autoencoder", folder, autoencoder, *common, "--frames", 2, "--size", AUTOENCODER)
    encoded = ["--autoencoder", autoencoder / "state.safetensors"]
    started("train_mcvdm", "cache", folder, diffusion, *common, *encoded, "--examples", 3, launch=[sys.executable])
    started("train_mcvdm", "latents", folder, diffusion, *common, *encoded, "--size", UNET)
    started("train_mcvdm", "pixels", folder, diffusion, *common, "--shown", 2)
    assert [row["step"] for row in rows(diffusion / "pixels.csv")] == ["1", "2"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["latents", "DATA", "RUN"], "run the stage `cache` first"),
        (["cache", "DATA", "RUN"], "--autoencoder"),
        (["cache", "NONE", "RUN"], "--autoencoder"),
        (["export", "DATA", "RUN"], "--out"),
        (["pixels", "DATA", "RUN"], "run the stage `latents` first"),
    ],
)
def test_what_is_missing_is_named(folder, tmp_path, monkeypatch, capsys, arguments, message):
    places = {"DATA": folder, "RUN": tmp_path / "run", "NONE": tmp_path}
    assert run(monkeypatch, "train_mcvdm", *(places.get(a, a) for a in arguments)) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error


def test_an_unknown_size_or_source_is_one_line(folder, tmp_path, monkeypatch, capsys):
    for more in (["--size", '{"girth": 3}'], ["--mix", "elsewhere=1"], ["--mix", "lrw_ar"]):
        assert run(monkeypatch, "train_autoencoder", folder, tmp_path, *more) == 2
        assert capsys.readouterr().err.count("\n") == 1
