"""The mean of trainings."""

import pytest
import torch

from avatard.models import checkpoint
from tests.support.scripts import run_script


@pytest.fixture
def runs(tmp_path):
    for name, value, config in (("one", 1.0, "{}"), ("two", 4.0, "{}"), ("other", 1.0, '{"width": 3}')):
        tensors = {"weight": torch.full((2, 3), value, dtype=torch.float16), "steps": torch.tensor(7)}
        checkpoint.save(tmp_path / name, tensors, {"config": config, "metrics": name, "licence": "MIT"})
    return tmp_path


def test_the_mean_is_of_weights_and_claims_no_metrics(runs):
    out = runs / "mean.safetensors"
    assert run_script("average_weights", runs / "one", runs / "two", "--out", out) == 0
    tensors, metadata = checkpoint.load(out)
    assert tensors["weight"].dtype == torch.float16 and (tensors["weight"] == 2.5).all() and tensors["steps"] == 7
    assert metadata == {"config": "{}", "licence": "MIT", "mean_of": "2"}


@pytest.mark.parametrize(("second", "why"), [("other", "is not of the same network"), ("none", "no weights at")])
def test_what_cannot_be_averaged_is_said_in_one_line(runs, capsys, second, why):
    assert run_script("average_weights", runs / "one", runs / second, "--out", runs / "mean") == 2
    error = capsys.readouterr().err
    assert why in error and error.count("\n") == 1 and not (runs / "mean").exists()
