import csv

import cv2
import pytest
import torch
from torch import nn

from avatard.models.training.loop import (
    CsvLog,
    averaged_model,
    load_state,
    restore_optimizer,
    save_state,
    sheet,
    warmup_cosine,
)


def step(network, optimizer):
    network(torch.ones(2, 3)).square().sum().backward()
    optimizer.step()
    optimizer.zero_grad()


def test_a_run_goes_on_as_if_it_had_not_stopped(tmp_path):
    torch.manual_seed(0)
    network = nn.Linear(3, 3)
    optimizer = torch.optim.AdamW(network.parameters())
    step(network, optimizer)
    save_state(tmp_path / "s", {"network": network.state_dict()}, {"optimizer": optimizer}, {"step": "1"})
    step(network, optimizer)

    saved, metadata = load_state(tmp_path / "s")
    again = nn.Linear(3, 3)
    again.load_state_dict(saved["network"])
    resumed = torch.optim.AdamW(again.parameters())
    restore_optimizer(resumed, saved["optimizer"])
    step(again, resumed)
    assert metadata["step"] == "1"
    torch.testing.assert_close(again.weight, network.weight)


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


def test_the_rate_warms_up_and_decays_to_its_floor():
    rates = [warmup_cosine(n, 1000, warmup=100, floor=0.1) for n in range(1000)]
    assert rates[:100] == sorted(rates[:100])
    assert rates[100:] == sorted(rates[100:], reverse=True)
    assert max(rates) == 1
    assert warmup_cosine(5000, 1000, warmup=100, floor=0.1) == pytest.approx(0.1)


def test_rows_are_appended_under_one_header(tmp_path):
    for n in range(2):
        CsvLog(tmp_path / "log.csv").write({"step": n, "loss": 0.5})
    with (tmp_path / "log.csv").open(newline="") as file:
        assert list(csv.DictReader(file)) == [{"step": "0", "loss": "0.5"}, {"step": "1", "loss": "0.5"}]


def test_a_sheet_has_a_row_of_pictures_per_clip(tmp_path):
    red = torch.tensor([1.0, -1.0, -1.0]).view(1, 3, 1, 1).expand(3, 3, 8, 8)
    sheet(tmp_path / "s.png", [red, -red])
    picture = cv2.imread(str(tmp_path / "s.png"))
    assert picture is not None
    assert picture.shape == (16, 24, 3)
    assert picture[0, 0].tolist() == [0, 0, 255]
    assert picture[15, 23].tolist() == [255, 255, 0]
