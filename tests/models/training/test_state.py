import torch
from torch import nn

from avatard.models.training.state import load_state, restore_optimizer, save_state


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
