import csv
import json
import subprocess
import sys
from pathlib import Path

import pytest

from avatard.models.mcvdm.mouth_painter import MouthPainter
from tests.support.mouths import write_folder
from tests.support.paths import SCRIPTS

SCRIPT = SCRIPTS / "train_mouth_painter.py"


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(SCRIPT), *map(str, arguments)], capture_output=True, text=True, check=False
    )


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


def test_a_run_is_resumed_and_exported(tmp_path):
    write_folder(tmp_path / "mouths")
    changes = ("painter.widths=[8,12]", "training.batch=4", "training.twins=1", "training.log=1")
    sizes = [part for change in changes for part in ("--set", change)]
    for minutes in (0.02, 0.04):
        more = ("--set", f"training.minutes={minutes}")
        ran = run("train", tmp_path / "mouths", tmp_path / "run", *sizes, *more)
        assert ran.returncode == 0, ran.stderr
    rows = rows_of(tmp_path / "run" / "log.csv")
    steps = [int(row["step"]) for row in rows]
    assert steps == list(range(1, len(steps) + 1)), "the second call went on where the first had stopped"
    assert float(rows[-1]["minutes"]) >= 0.04
    assert rows[-1]["critic"] != "nan", "the discriminator has joined"
    assert len(rows_of(tmp_path / "run" / "validation.csv")) == 2
    assert list((tmp_path / "run").glob("sheet_*.png"))
    ran = run("export", tmp_path / "mouths", tmp_path / "run", "--out", tmp_path / "painter.safetensors")
    assert ran.returncode == 0, ran.stderr
    assert MouthPainter.load(tmp_path / "painter.safetensors").config.widths == (8, 12)
    ran = run("test", tmp_path / "mouths", tmp_path / "run", "--weights", tmp_path / "painter.safetensors")
    assert ran.returncode == 0, ran.stderr
    figures = json.loads((tmp_path / "run" / "test.json").read_text())
    assert figures["speech_full_l1"] > 0 and figures["core_ms"] > 0
    assert (tmp_path / "run" / "test.png").exists()


@pytest.mark.parametrize(
    ("stage", "said"),
    [
        ("train", "scripts/prepare_mouths.py"),
        ("export", "run the stage `train` first"),
        ("test", "no weights at"),
    ],
)
def test_what_is_missing_is_one_line(tmp_path, stage, said):
    out = tmp_path / "painter.safetensors"
    more = ("--weights", out, "--out", out)
    ran = run(stage, tmp_path / "nothing", tmp_path / "run", *more)
    assert ran.returncode == 2
    assert ran.stderr.startswith("error: ") and said in ran.stderr and ran.stderr.count("\n") == 1
