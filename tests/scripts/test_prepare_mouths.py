import subprocess
import sys

import numpy as np
from PIL import Image

from avatard.models.mcvdm.mouth_window import lip_mask
from avatard.models.training.mouth.dataset import Mouth, read_mouths
from tests.support.faces import on_canvas, portrait, write_video
from tests.support.paths import SCRIPTS
from tests.support.scripts import run_script
from tests.support.tiny_mcvdm import tiny

SCRIPT = SCRIPTS / "prepare_mouths.py"


def test_open_mouths_are_cut_out_and_the_rest_is_counted(tmp_path):
    faces, talk = tmp_path / "faces", tmp_path / "talk"
    faces.mkdir()
    talk.mkdir()
    Image.fromarray(portrait()).resize((600, 600)).save(faces / "ada.png")
    Image.fromarray(on_canvas(200, 200, (40, 40, 0.3))).save(faces / "small.png")
    Image.fromarray(np.full((200, 200, 3), 128, np.uint8)).save(faces / "nobody.png")
    large = np.asarray(Image.fromarray(portrait()).resize((600, 600)))
    write_video(talk / "one.mkv", [np.roll(large, 2 * n, axis=1) for n in range(4)])
    (talk / "speakers.csv").write_text("clip,speaker\none.mkv,ada lovelace\n")

    tiny().save(tmp_path / "tiny.safetensors", {})
    command = [sys.executable, str(SCRIPT), str(faces), str(talk), "--out", str(tmp_path / "out"), "--processes", "1"]
    command += ["--weights", str(tmp_path / "tiny.safetensors")]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert "faces: 1 mouths of 1 people" in ran.stdout
    assert "1 × 0 faces" in ran.stdout and "1 × face too small" in ran.stdout

    (mouth,) = read_mouths(tmp_path / "out" / "faces.safetensors")
    assert mouth.person == "ada" and mouth.picture.shape == (*Mouth.STORED, 3)
    assert np.abs(mouth.lips.mean(axis=0) - (111.5, 79.5)).max() < 0.1
    inside = lip_mask(mouth.lips, *Mouth.STORED, grow=-1.0) > 0.5
    assert mouth.picture[inside].mean() > 100, "she smiles"
    spoken = read_mouths(tmp_path / "out" / "talk.safetensors")
    assert [m.person for m in spoken] == ["ada lovelace"] * 2, "every second frame"
    assert mouth.made is None, "a portrait"
    for m in spoken:
        assert m.made is not None and m.made.shape == m.picture.shape and m.made.std() > 1


def test_portraits_whose_lips_are_apart_are_not_opened(tmp_path):
    faces, talk = tmp_path / "faces", tmp_path / "talk"
    faces.mkdir()
    talk.mkdir()
    large = Image.fromarray(portrait()).resize((600, 600))
    large.save(faces / "ada.png")
    write_video(talk / "grace.mkv", [np.asarray(large)] * 16)
    tiny().save(tmp_path / "tiny.safetensors", {})
    command = [faces, "--out", tmp_path / "out", "--processes", "1", "--motion", talk]
    assert run_script("prepare_mouths", *command) == 2, "nothing opens them"
    ran = subprocess.run(
        [sys.executable, str(SCRIPT), *map(str, command), "--weights", str(tmp_path / "tiny.safetensors")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    assert "faces: 0 mouths of 0 people; left out: 1 × lips apart" in ran.stdout
    assert not list((tmp_path / "out" / "opened").iterdir())
