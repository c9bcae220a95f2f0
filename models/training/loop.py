"""What training loops share: a resumable state in safetensors, averaged weights, a CSV log and sheets of pictures."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor, nn

from avatard.models import checkpoint


class Ema:
    """Exponential moving average of a network's weights; `decay` is approached during the first steps."""

    def __init__(self, network: nn.Module, decay: float):
        self.decay = decay
        # Names as in the network's state, which is what is saved.
        self.weights = {key: value.detach().clone() for key, value in network.state_dict().items()}

    @torch.no_grad()
    def update(self, network: nn.Module, step: int) -> None:
        """Follow the network after optimiser step number `step`."""
        decay = min(self.decay, (1 + step) / (10 + step))
        for key, value in network.state_dict().items():
            if value.is_floating_point():
                self.weights[key].lerp_(value, 1 - decay)
            else:
                self.weights[key].copy_(value)


def cosine(step: int, steps: int, warmup: int = 200, floor: float = 0.02) -> float:
    """Factor of the learning rate: linear warm-up, then half a cosine down to `floor`."""
    if step < warmup:
        return (step + 1) / warmup
    progress = min((step - warmup) / max(steps - warmup, 1), 1.0)
    return floor + (1 - floor) * (1 + math.cos(math.pi * progress)) / 2


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


class CsvLog:
    """One row of figures at a time; the columns are those of the first row."""

    def __init__(self, path: Path):
        self.path = path

    def write(self, row: Mapping[str, float]) -> None:
        """Append a row."""
        fresh = not self.path.exists()
        with self.path.open("a", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(row))
            if fresh:
                writer.writeheader()
            writer.writerow({key: f"{value:.6g}" for key, value in row.items()})


def sheet(path: Path, rows: Sequence[Tensor]) -> None:
    """Write pictures as a PNG: each row is `[N, 3, H, W]` in [-1, 1], all of one size."""
    strips = [torch.cat(list(row.detach().float().clamp(-1, 1)), dim=-1) for row in rows]
    picture = ((torch.cat(strips, dim=-2) + 1) * 127.5).round().byte().permute(1, 2, 0).cpu().numpy()
    cv2.imwrite(str(path), np.ascontiguousarray(picture[..., ::-1]))


def parse_mix(text: str) -> dict[str, float]:
    """`"lrw_ar=0.6,factory=0.4"` → shares by source. Raises `ValueError` that names the faulty part."""
    mix = {}
    for part in text.split(","):
        name, _, share = part.partition("=")
        try:
            mix[name.strip()] = float(share)
        except ValueError:
            raise ValueError(f"mix: expected SOURCE=SHARE, got {part!r}") from None
    return mix
