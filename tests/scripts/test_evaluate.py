"""The evaluation scripts from end to end, with tiny untrained networks."""

import json

import av
import cv2
import pytest
import torch

from avatard.models import checkpoint
from avatard.models.atom.model import Atom, AtomConfig
from avatard.models.mcvdm.latent import AutoencoderConfig
from avatard.models.mcvdm.model import Mcvdm, McvdmConfig
from avatard.models.mcvdm.unet import UNetConfig
from tests.support.scripts import run_script, script_names
from tests.support.unseen_folder import FRAMES, write_folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    write_folder(folder)
    torch.manual_seed(0)
    tiny = AutoencoderConfig(width=8, mid=8, small=8)
    Mcvdm(McvdmConfig(tiny, UNetConfig(landmark=8, width=8, multiples=(1, 1), head=8))).save(
        folder / "video.safetensors", {}
    )
    atom = Atom(AtomConfig(width=24, depth=1, rest_depth=1, heads=2))
    checkpoint.save(folder / "motion.safetensors", atom.state_dict(), {"config": atom.config.to_json()})
    return folder


def test_video_on_real_landmarks(folder, tmp_path, capsys):
    out, names = tmp_path / "out.json", script_names("evaluate_video")
    arguments = (folder, "--json", out, "--weights", folder / "video.safetensors", "--no-identity")
    assert run_script("evaluate_video", *arguments, "--pictures", tmp_path / "pictures") == 0
    figures = json.loads(out.read_text())
    assert set(figures) == {"settings", *names["VARIANTS"]}
    assert figures["settings"]["clips"] == 1
    assert figures["plain_decoder"] is None
    for name in ("real", "still", "warp", "reconstruction", "steps_1", "steps_2", "steps_4"):
        assert set(names["KEYS"]) <= set(figures[name])
        assert figures[name]["csim"] is None
    assert figures["real"]["psnr"] is None and figures["real"]["ssim"] == 1
    assert figures["warp"]["psnr"] > figures["still"]["psnr"]
    assert figures["steps_2"]["core_ms_per_frame"] > 0
    assert "| warp |" in capsys.readouterr().out
    assert cv2.imread(str(tmp_path / "pictures" / "overview.png")) is not None
    with av.open(str(next((tmp_path / "pictures").glob("*.mp4")))) as file:
        assert sum(1 for _ in file.decode(video=0)) == FRAMES


def test_end_to_end_is_reproducible(folder, tmp_path):
    arguments = (
        *(folder, "--no-identity", "--video", folder / "video.safetensors"),
        *("--motion", folder / "motion.safetensors", "--markdown", tmp_path / "table.md"),
    )
    results, names = [], script_names("evaluate")
    for name in ("first.json", "second.json"):
        assert run_script("evaluate", *arguments, "--json", tmp_path / name, "--pictures", tmp_path / "pictures") == 0
        results.append((tmp_path / name).read_text())
    assert results[0] == results[1]
    figures = json.loads(results[0])
    assert set(figures) == {"settings", *names["VARIANTS"]}
    assert all(set(figures[name]) == set(names["KEYS"]) for name in names["VARIANTS"])
    assert figures["cross_identity"]["cpbd"] is not None
    assert figures["real"]["mouth_lmd_percent_iod"] < figures["still"]["lmd_percent_iod"] + 5
    assert (tmp_path / "table.md").read_text().startswith("| | real | still |")
    assert cv2.imread(str(tmp_path / "pictures" / "cross_identity.png")) is not None
    overview = cv2.imread(str(tmp_path / "pictures" / "contact_sheet.png"))
    assert overview is not None and overview.shape == (8 * 144, 144, 3), "the portrait and seven variants of one clip"


@pytest.mark.parametrize("script", ["evaluate", "evaluate_video"])
def test_what_cannot_be_measured_is_one_line(script, tmp_path, capsys):
    assert run_script(script, tmp_path, "--json", tmp_path / "out.json", "--no-identity") == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and said.count("\n") == 1 and "prepare_data.py" in said


@pytest.mark.parametrize("option", ["--inception", "--syncnet"])
def test_a_network_that_is_another_is_one_line(folder, tmp_path, capsys, option):
    arguments = (folder, "--json", tmp_path / "out.json", "--no-identity", option, folder / "motion.safetensors")
    assert run_script("evaluate", *arguments) == 2
    assert "it lacks" in capsys.readouterr().err


def test_weights_of_something_else_are_one_line(folder, tmp_path, capsys):
    arguments = (
        folder,
        "--json",
        tmp_path / "out.json",
        "--no-identity",
        "--autoencoder",
        folder / "motion.safetensors",
    )
    assert run_script("evaluate_video", *arguments) == 2
    assert "not an autoencoder" in capsys.readouterr().err


def test_the_trackers_own_noise(folder, capsys):
    assert run_script("measure_tracker", folder, "--clips", 2) == 0
    (figures,) = json.loads(capsys.readouterr().out).values()
    assert figures["clips"] == 1
    assert 0 < figures["noise"] < 3
    assert figures["share"] == pytest.approx(figures["jerk_repeatable"] / figures["jerk"])


def test_a_tracker_is_not_measured_without_clips(tmp_path, capsys):
    assert run_script("measure_tracker", tmp_path) == 2
    assert capsys.readouterr().err.startswith("error: ")
