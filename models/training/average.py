"""The mean of weights that were trained from the same ones: often better on new people than any of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from avatard.models import checkpoint
from avatard.models.checkpoint import CheckpointError


def average(paths: Sequence[Path], out: Path) -> None:
    """Write the mean of these files. The metadata are the first one's without its metrics, which are not the mean's.

    Raises:
        CheckpointError: a file cannot be read, or they are not of one network.
    """
    (first, metadata), *others = [checkpoint.load(path.absolute()) for path in paths]
    for path, (tensors, other) in zip(paths[1:], others, strict=True):
        if other.get("config") != metadata.get("config") or tensors.keys() != first.keys():
            raise CheckpointError(f"{path} is not of the same network as {paths[0]}")
    networks = [first, *(tensors for tensors, _ in others)]
    mean = {
        name: torch.stack([network[name].double() for network in networks]).mean(0).to(tensor.dtype)
        for name, tensor in first.items()
    }
    kept = {key: value for key, value in metadata.items() if key != "metrics"}
    checkpoint.save(out, mean, kept | {"mean_of": str(len(paths))})
