"""The mean of trainings."""

import sys

import pytest
import torch

from avatard.models import checkpoint
from tests.support.paths import SCRIPTS

sys.path.insert(0, str(SCRIPTS))

import average_weights


def run(monkeypatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["average_weights", *map(str, arguments)])
    return average_weights.main()


@pytest.fixture
def runs(tmp_path):
    for name, value, config in (("one", 1.0, "{}"), ("two", 4.0, "{}"), ("other", 1.0, '{"width": 3}')):
        tensors = {"weight": torch.full((2, 3), value, dtype=torch.float16), "steps": torch.tensor(7)}
        checkpoint.save(tmp_path / name, tensors, {"config": config, "metrics": name, "licence": "MIT"})
    return tmp_path


def test_the_mean_is_of_weights_and_claims_no_metrics(runs, monkeypatch):
    out = runs / "mean.safetensors"
    assert run(monkeypatch, runs / "one", runs / "two", "--out", out) == 0
    tensors, metadata = checkpoint.load(out)
    assert tensors["weight"].dtype == torch.float16 and (tensors["weight"] == 2.5).all() and tensors["steps"] == 7
    assert metadata == {"config": "{}", "licence": "MIT", "mean_of": "2"}


@pytest.mark.parametrize(("second", "why"), [("other", "is not of the same network"), ("none", "no weights at")])
def test_what_cannot_be_averaged_is_said_in_one_line(runs, monkeypatch, capsys, second, why):
    assert run(monkeypatch, runs / "one", runs / second, "--out", runs / "mean") == 2
    error = capsys.readouterr().err
    assert why in error and error.count("\n") == 1 and not (runs / "mean").exists()
