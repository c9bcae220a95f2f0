"""Both training stages of MC-VDM, from a data folder to weights that load, on a tiny configuration."""

import csv
import os
import subprocess
import sys

import pytest
import torch
from accelerate.state import AcceleratorState

from avatard.models import checkpoint
from avatard.models.mcvdm.model import Mcvdm
from tests.support.paths import SCRIPTS
from tests.support.perceptual import write_trunk
from tests.support.prepared import write_prepared
from tests.support.scripts import run_script

#: Changes of the recipe that make a tiny network and few steps.
TINY = {
    "mix": "{lrw_ar=1}",
    **{f"autoencoder.{name}": 8 for name in ("width", "mid", "small")},
    **{"unet.width": 8, "unet.head": 8, "unet.landmark": 4},
    **{"examples": 3, "autoencoder_stage.frames": 2, "pixel_stage.shown": 2},
    **{f"{stage}.batch": 2 for stage in ("autoencoder_stage.training", "latent_stage", "pixel_stage.training")},
    **{f"{stage}.log": 1 for stage in ("autoencoder_stage.training", "latent_stage", "pixel_stage.training")},
}


STAGES = ("autoencoder_stage__training", "latent_stage", "pixel_stage__training")


def changes(**more: object) -> list[str]:
    """Options that change the recipe; keys of `more` have double underscores for dots."""
    recipe = TINY | {name.replace("__", "."): value for name, value in more.items()}
    return [part for key, value in recipe.items() for part in ("--set", f"{key}={value}")]


def run(script, *arguments):
    # accelerate keeps one state a process; other tests of training, in other precisions, run in this one.
    AcceleratorState._reset_state(reset_partial_state=True)
    return run_script(script, *arguments)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    clips = [("lrw_ar", speaker, speaker, 28) for speaker in ("a01", "b08")]
    return write_prepared(tmp_path_factory.mktemp("data"), clips, texture=10.0)


@pytest.fixture(scope="module")
def trunk(tmp_path_factory):
    return write_trunk(tmp_path_factory.mktemp("trunk") / "vgg.safetensors")


def rows(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_the_whole_way_to_weights_that_load(folder, trunk, tmp_path):
    autoencoder, diffusion = tmp_path / "ae", tmp_path / "vd"
    for steps in (2, 4):  # the second call resumes
        stage = changes(autoencoder_stage__training__steps=steps, autoencoder_stage__training__log=2)
        stage += ["--set", "autoencoder_stage.whole_share=0.5"]
        assert run("train_mcvdm", "autoencoder", folder, autoencoder, "--perceptual", trunk, *stage) == 0
    state, metadata = checkpoint.load(autoencoder / "state.safetensors")
    assert metadata["step"] == "4"
    assert [row["step"] for row in rows(autoencoder / "log.csv")] == ["2", "4"]
    scores = rows(autoencoder / "validation.csv")[-1]
    assert {"frames_mouth", "zeroed_mouth", "warp_mouth", "still_psnr"} <= set(scores)
    assert (autoencoder / "sheet_000004.png").exists()

    encoded = ["--autoencoder", autoencoder / "state.safetensors"]
    assert run("train_mcvdm", "cache", folder, diffusion, *encoded, *changes()) == 0
    assert run("train_mcvdm", "latents", folder, diffusion, *encoded, *changes(latent_stage__steps=2)) == 0
    assert run("train_mcvdm", "latents", folder, diffusion, *changes(latent_stage__steps=3)) == 0  # resumes
    pixels = changes(pixel_stage__training__steps=2)
    assert run("train_mcvdm", "pixels", folder, diffusion, "--perceptual", trunk, *pixels) == 0
    assert [row["step"] for row in rows(diffusion / "latents.csv")] == ["1", "2", "3"]
    assert {"steps_1_mouth", "steps_2_mouth", "reconstruction_mouth"} <= set(
        rows(diffusion / "pixels_validation.csv")[0]
    )

    weights = tmp_path / "mcvdm.safetensors"
    assert run("train_mcvdm", "export", folder, diffusion, "--out", weights, "--note", "a test") == 0
    model = Mcvdm.load(weights)
    assert model.config.autoencoder.width == 8
    encoder = model.autoencoder.state_dict()["encoder.rows"]
    torch.testing.assert_close(encoder, state["ema/encoder.rows"], atol=1e-2, rtol=1e-2)
    assert checkpoint.load(weights)[1]["note"] == "a test"


def test_one_command_from_clips_to_weights_and_on_where_it_stopped(folder, trunk, tmp_path, capsys):
    weights, few = tmp_path / "mine.safetensors", {f"{stage}__steps": 2 for stage in STAGES}
    command = ["all", folder, tmp_path / "run", "--perceptual", trunk, "--out", weights]
    for steps in (2, 3):
        few["pixel_stage__training__steps"] = steps
        more = ["--set", "window=face", "--set", "resident=true"]
        assert run("train_mcvdm", *command, *changes(**few), *more) == 0
        assert Mcvdm.load(weights).config.autoencoder.width == 8
        assert checkpoint.load(weights)[1]["step"] == str(steps)
    assert [row["step"] for row in rows(tmp_path / "run" / "latents.csv")] == ["1", "2"]  # not trained again
    assert [row["step"] for row in rows(tmp_path / "run" / "pixels.csv")] == ["1", "2", "3"]
    assert {"examples_s", "minutes"} <= set(rows(tmp_path / "run" / "pixels.csv")[0])
    assert f"wrote {weights}" in capsys.readouterr().out


def test_minutes_end_a_stage_and_its_speed_can_be_measured(folder, tmp_path, capsys, monkeypatch):
    for steps in ("WARM", "TIMED"):
        monkeypatch.setattr(f"avatard.models.training.loop.{steps}", 1)
    assert run("train_mcvdm", "autoencoder", folder, tmp_path, "--minutes", 1e-6, *changes()) == 0
    assert checkpoint.load(tmp_path / "state.safetensors")[1]["step"] == "1"
    assert run("train_mcvdm", "autoencoder", folder, tmp_path / "new", "--measure", *changes()) == 0
    assert "examples/s" in capsys.readouterr().out.splitlines()[-1]
    assert not (tmp_path / "new" / "state.safetensors").exists()


def test_every_stage_trains_on_two_processes(folder, trunk, tmp_path):
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2"]
    launch += ["--num_machines", "1", "--mixed_precision", "bf16", "--main_process_port", "0"]
    environment = os.environ | {"PYTHONPATH": str(SCRIPTS.parent), "OMP_NUM_THREADS": "1"}
    autoencoder, diffusion = tmp_path / "ae", tmp_path / "vd"
    few = {f"{stage}__steps": 2 for stage in STAGES}
    common = ["--perceptual", trunk, *changes(**few)]

    def started(script, *arguments):
        command = [*launch, str(SCRIPTS / f"{script}.py"), *map(str, arguments)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)
        assert done.returncode == 0, done.stderr

    started("train_mcvdm", "autoencoder", folder, autoencoder, *common)
    encoded = ["--autoencoder", autoencoder / "state.safetensors"]
    assert run("train_mcvdm", "cache", folder, diffusion, *common, *encoded) == 0
    started("train_mcvdm", "latents", folder, diffusion, *common, *encoded)
    started("train_mcvdm", "pixels", folder, diffusion, *common)
    assert [row["step"] for row in rows(diffusion / "pixels.csv")] == ["1", "2"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["latents", "DATA", "RUN"], "run the stage `cache` first"),
        (["cache", "DATA", "RUN"], "--autoencoder"),
        (["cache", "NONE", "RUN"], "--autoencoder"),
        (["export", "DATA", "RUN"], "--out"),
        (["all", "DATA", "RUN"], "--out"),
        (["all", "DATA", "RUN", "--measure"], "give the stage autoencoder, latents or pixels"),
        (["pixels", "DATA", "RUN", "--minutes", "-1"], "--minutes"),
        pytest.param(
            ["autoencoder", "DATA", "RUN", "--device", "cuda"],
            "'cuda'",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is one"),
        ),
        (["pixels", "DATA", "RUN"], "run the stage `latents` first"),
    ],
)
def test_what_is_missing_is_named(folder, tmp_path, capsys, arguments, message):
    places = {"DATA": folder, "RUN": tmp_path / "run", "NONE": tmp_path}
    assert run("train_mcvdm", *(places.get(a, a) for a in arguments)) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error


def test_an_unknown_key_or_source_is_one_line(folder, tmp_path, capsys):
    for more in ("autoencoder.girth=3", "mix={elsewhere=1}", "mix"):
        assert run("train_mcvdm", "autoencoder", folder, tmp_path, "--set", more) == 2
        assert capsys.readouterr().err.count("\n") == 1
