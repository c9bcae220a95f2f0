import csv
import sys
from dataclasses import replace
from itertools import count

import cv2
import pytest
import torch
from torch import nn

from avatard.models.training.clips import DataError
from avatard.models.training.loop import CsvLog, Stage, Trainer, averaged_model, sheet
from avatard.models.training.recipe import Optimisation
from avatard.models.training.schedule import Clock
from avatard.models.training.state import load_state


class Line(nn.Module):
    """A loss that draws random numbers, as those of the networks do."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, x):
        noise = torch.randn(len(x), 3, device=x.device)
        return {"total": (self.network(x) - x + 0.1 * noise).square().mean()}


def settings(**more):
    return replace(Optimisation(steps=6, batch=4, rate=0.1, warmup=2, precision="no", log=2), **more)


@pytest.fixture(autouse=True)
def without_accelerate(monkeypatch):
    """What the loop must do without; accelerate's state would be shared by all tests of a process."""
    monkeypatch.setitem(sys.modules, "accelerate", None)


def trainer(run, clock=None, **more):
    torch.manual_seed(0)
    network = nn.Linear(3, 3)
    made = Trainer(network, settings(**more), run, stage="line", config="{}", seed=5, device="cpu", clock=clock)
    return made, network


def batches_of(made):
    def batches(step):
        rng = torch.Generator().manual_seed(step)
        return (torch.randn(len(made.numbers(step)), 3, generator=rng),)

    return batches


def train(made, network):
    seen = []

    def validate(averaged, step):
        seen.append(step)
        return {"weight": float(averaged.weight.detach().mean())}

    made.train(Line(network), batches_of(made), validate)
    return seen


def rows(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_resumed_training_is_the_one_that_was_not_stopped(tmp_path):
    whole, network = trainer(tmp_path / "whole")
    assert train(whole, network) == [6]
    part, resumed = trainer(tmp_path / "parts", save=3)
    batches = batches_of(part)

    def stopped(step):
        """After the fourth step, whose state nobody has."""
        if step == 4:
            raise KeyboardInterrupt
        return batches(step)

    with pytest.raises(KeyboardInterrupt):
        part.train(Line(resumed), stopped, lambda averaged, step: {})
    part, resumed = trainer(tmp_path / "parts", save=3)
    assert part.step == 3
    train(part, resumed)
    first, second = (load_state(tmp_path / name / "state.safetensors")[0] for name in ("whole", "parts"))
    for group in ("network", "ema", "optimizer"):
        for key, value in first[group].items():
            assert torch.equal(value, second[group][key]), f"{group}/{key}"


def test_the_budget_of_minutes_ends_training_and_schedule(tmp_path):
    ticks = count()
    clock = Clock(lambda: next(ticks))  # a second passes whenever somebody looks
    made, network = trainer(tmp_path, clock, steps=10**9, minutes=1.0, warmup_share=0.2, log=1, validate_minutes=0.4)
    rates = []
    made._optimizer.register_step_pre_hook(lambda *_: rates.append(made._optimizer.param_groups[0]["lr"]))
    seen = train(made, network)
    assert made.clock.minutes >= 1 and 5 < made.step < 60
    assert rates[0] < 0.05 and max(rates) == pytest.approx(0.1, rel=0.1) and rates[-1] < 0.02
    assert len(seen) >= 2 and seen[-1] == made.step
    assert {"step", "total", "minutes", "examples_s"} <= set(rows(tmp_path / "log.csv")[0])
    again, network = trainer(tmp_path, Clock(lambda: 0.0), steps=10**9, minutes=1.0)
    assert again.progress() >= 1 and train(again, network) == []  # its minutes are over


def test_by_steps_the_rate_warms_up_and_ends_at_its_floor(tmp_path):
    made, network = trainer(tmp_path, steps=10, warmup=4, floor=0.1)
    rates = []
    made._optimizer.register_step_pre_hook(lambda *_: rates.append(made._optimizer.param_groups[0]["lr"]))
    train(made, network)
    assert rates[:4] == pytest.approx([0.025, 0.05, 0.075, 0.1])
    assert rates[4:] == sorted(rates[4:], reverse=True) and rates[-1] < 0.03


def test_a_gradient_that_is_not_finite_changes_nothing(tmp_path):
    made, network = trainer(tmp_path, steps=1)
    before = network.weight.detach().clone()
    made.train(Line(network), lambda step: (torch.full((4, 3), torch.inf),), lambda averaged, step: {})
    assert torch.equal(network.weight, before)


def test_steps_and_processes_share_no_example(tmp_path):
    made, _ = trainer(tmp_path)
    numbers = []
    made.processes.num_processes = 2
    for step in range(3):
        for process in range(2):
            made.processes.process_index = process
            numbers += made.numbers(step)
    assert numbers == list(range(24))


def test_throughput_is_of_whole_steps_and_of_the_network_alone(tmp_path):
    made, network = trainer(tmp_path)
    now, drawn = [0.0], [0]

    def batches(step):
        now[0] += 3.0
        drawn[0] += 1
        return batches_of(made)(step)

    def update(self, *_):
        now[0] += 1.0

    made._optimizer.register_step_post_hook(update)
    whole, alone = Stage(made, Line(network), batches).throughput(lambda: now[0])
    assert whole == pytest.approx(1.0) and alone == pytest.approx(4.0)
    assert not (tmp_path / "state.safetensors").exists()


def test_another_configuration_is_refused(tmp_path):
    train(*trainer(tmp_path))
    with pytest.raises(DataError, match="another configuration"):
        Trainer(nn.Linear(3, 3), settings(), tmp_path, stage="line", config='{"a": 1}', device="cpu")


def test_the_average_follows_quickly_at_first_and_slowly_later():
    network = nn.Linear(1, 1)
    averaged = averaged_model(network, decay=0.9)
    weight = averaged.module.get_parameter("weight")
    averaged.update_parameters(network)

    def follow() -> float:
        """How much of a change of 1 the average takes over."""
        before = weight.clone()
        with torch.no_grad():
            network.weight.copy_(before + 1)
        averaged.update_parameters(network)
        return float((weight - before).detach())

    assert follow() == pytest.approx(9 / 11)
    averaged.n_averaged += 10_000
    assert follow() == pytest.approx(0.1)


def test_rows_are_appended_under_one_header(tmp_path):
    for n in range(2):
        CsvLog(tmp_path / "log.csv").write({"step": n, "loss": 0.5})
    CsvLog(tmp_path / "log.csv").write({"step": 2, "news": 1.0})  # a later version has other columns
    assert rows(tmp_path / "log.csv") == [
        {"step": "0", "loss": "0.5"},
        {"step": "1", "loss": "0.5"},
        {"step": "2", "loss": "nan"},
    ]


def test_a_sheet_has_a_row_of_pictures_per_clip(tmp_path):
    red = torch.tensor([1.0, -1.0, -1.0]).view(1, 3, 1, 1).expand(3, 3, 8, 8)
    sheet(tmp_path / "s.png", [red, -red])
    picture = cv2.imread(str(tmp_path / "s.png"))
    assert picture is not None
    assert picture.shape == (16, 24, 3)
    assert picture[0, 0].tolist() == [0, 0, 255]
    assert picture[15, 23].tolist() == [255, 255, 0]
