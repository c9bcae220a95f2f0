import sys

import pytest
import torch
from torch import nn

from avatard.models.training.processes import SingleProcess, start


@pytest.mark.parametrize("native", [True, False])
def test_without_accelerate_there_is_one_process_in_a_format_that_the_processor_has(native, monkeypatch):
    monkeypatch.setitem(sys.modules, "accelerate", None)
    monkeypatch.setattr("avatard.models.precision.has_native_bfloat16", lambda: native)
    processes = start("bf16", "cpu")
    assert isinstance(processes, SingleProcess) and processes.device.type == "cpu"
    network = nn.Linear(2, 2)
    wrapped, optimizer = processes.prepare(network, "optimizer")
    made = wrapped(torch.ones(1, 2))
    assert optimizer == "optimizer"
    assert made.dtype == (torch.bfloat16 if native else torch.float32)
    processes.backward(100 * made.float().sum())
    norm = processes.clip_grad_norm_(network.parameters(), 1.0)
    assert norm > 1
    limited = nn.utils.get_total_norm([p.grad for p in network.parameters() if p.grad is not None])
    assert limited == pytest.approx(1, rel=1e-2)
    assert processes.reduce(norm, "mean") is norm
