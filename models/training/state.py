"""States of trainings on disk: weights and optimiser moments, from which a run goes on."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from avatard.models import checkpoint


def save_state(
    path: Path,
    networks: Mapping[str, Mapping[str, Tensor]],
    optimizers: Mapping[str, torch.optim.Optimizer],
    metadata: Mapping[str, str],
) -> None:
    """Write weights and optimiser moments, so that `load_state` can go on."""
    tensors = {f"{name}/{key}": value for name, weights in networks.items() for key, value in weights.items()}
    for name, optimizer in optimizers.items():
        for index, slots in optimizer.state_dict()["state"].items():
            tensors |= {f"{name}/{index}/{slot}": torch.as_tensor(value) for slot, value in slots.items()}
    checkpoint.save(path, tensors, metadata)


def load_state(path: Path) -> tuple[dict[str, dict[str, Tensor]], dict[str, str]]:
    """What `save_state` wrote: tensors by the name of their network or optimiser, and the metadata."""
    tensors, metadata = checkpoint.load(path)
    groups: dict[str, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        name, _, rest = key.partition("/")
        groups.setdefault(name, {})[rest] = value
    return groups, metadata


def restore_optimizer(optimizer: torch.optim.Optimizer, saved: Mapping[str, Tensor]) -> None:
    """Give an optimiser the moments that `save_state` wrote of it."""
    slots: dict[int, dict[str, Tensor]] = {}
    for key, value in saved.items():
        index, _, slot = key.partition("/")
        slots.setdefault(int(index), {})[slot] = value
    optimizer.load_state_dict({"state": slots, "param_groups": optimizer.state_dict()["param_groups"]})
