import csv
import json
from pathlib import Path

import pytest

from avatard.models.mcvdm.mouth_painter import MouthPainter
from tests.support.mouths import write_folder
from tests.support.scripts import run_script


def run(*arguments: object) -> int:
    return run_script("train_mouth_painter", *arguments)


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


def test_a_run_is_resumed_and_exported(tmp_path):
    write_folder(tmp_path / "mouths")
    changes = ("painter.widths=[8,12]", "training.batch=4", "training.twins=1", "training.log=1")
    sizes = [part for change in changes for part in ("--set", change)]
    for minutes in (0.02, 0.04):
        more = ("--set", f"training.minutes={minutes}")
        assert run("train", tmp_path / "mouths", tmp_path / "run", *sizes, *more) == 0
    rows = rows_of(tmp_path / "run" / "log.csv")
    steps = [int(row["step"]) for row in rows]
    assert steps == list(range(1, len(steps) + 1)), "the second call went on where the first had stopped"
    assert float(rows[-1]["minutes"]) >= 0.04
    assert rows[-1]["critic"] != "nan", "the discriminator has joined"
    assert len(rows_of(tmp_path / "run" / "validation.csv")) == 2
    assert list((tmp_path / "run").glob("sheet_*.png"))
    assert run("export", tmp_path / "mouths", tmp_path / "run", "--out", tmp_path / "painter.safetensors") == 0
    assert MouthPainter.load(tmp_path / "painter.safetensors").config.widths == (8, 12)
    assert run("test", tmp_path / "mouths", tmp_path / "run", "--weights", tmp_path / "painter.safetensors") == 0
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
def test_what_is_missing_is_one_line(tmp_path, capsys, stage, said):
    out = tmp_path / "painter.safetensors"
    more = ("--weights", out, "--out", out)
    assert run(stage, tmp_path / "nothing", tmp_path / "run", *more) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and said in error and error.count("\n") == 1
