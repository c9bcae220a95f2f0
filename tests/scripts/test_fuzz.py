"""A short run of scripts/fuzz.py, whose long one takes minutes."""

import json
from pathlib import Path

import pytest

from tests.support.fuzz_targets import targets
from tests.support.fuzzing import Target, fuzz
from tests.support.scripts import run_script


@pytest.mark.parametrize("name", targets(Path()))
async def test_a_parser_accepts_an_input_or_refuses_it_in_one_line(name, tmp_path):
    report = await fuzz(targets(tmp_path)[name], count=250, seed=1)
    assert not report.finds, "\n".join(f"{find.what}: {find.data[:500]!r}" for find in report.finds.values())
    assert report.inputs == 250 and len(report.outcomes) > 2


def fragile(data: bytes) -> str:
    """A parser with a fault that takes three steps to reach."""
    if not data.startswith(b"["):
        raise ValueError("expected [")
    if b"x" not in data:
        raise ValueError("expected x")
    return str(1 // (data.count(b"]") - 2))


async def test_a_fault_is_found_once_and_made_small_and_the_seed_decides():
    target = Target("fragile", [b"[ and so on ]"], fragile, (ValueError,), ("x",))
    report, again = await fuzz(target, 3000, seed=5), await fuzz(target, 3000, seed=5)
    (find,) = report.finds.values()
    assert find.what == "ZeroDivisionError in test_fuzz.py:fragile" and sorted(find.data) == sorted(b"[]]x")
    assert report.outcomes == again.outcomes


async def test_a_refusal_of_two_lines_is_a_find():
    def wordy(data: bytes) -> str:
        raise ValueError("one\ntwo")

    report = await fuzz(Target("wordy", [b"a"], wordy, (ValueError,)), 3, seed=1)
    assert list(report.finds) == ["ValueError: the text is not one line"]


def test_the_script_writes_its_figures(tmp_path, capfd):
    arguments = ["fragment", "zeromq", "--count", "200", "--finds", tmp_path, "--report", tmp_path / "report.json"]
    assert run_script("fuzz", *arguments) == 0
    rows = json.loads((tmp_path / "report.json").read_text())
    assert [(row["parser"], row["inputs"], row["finds"]) for row in rows] == [
        ("fragment", 200, {}),
        ("zeromq", 200, {}),
    ]
    assert run_script("fuzz", "nothing") == 2
    assert "expected of offer, fragment" in capfd.readouterr().err
