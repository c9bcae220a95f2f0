"""The training loop: optimiser steps, averaged weights, logs, validation, and states from which a run resumes."""

from __future__ import annotations

import csv
import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from torch.optim.swa_utils import AveragedModel
from tqdm import tqdm

from avatard.models import checkpoint
from avatard.models.pixels import to_bytes
from avatard.models.training.clips import DataError
from avatard.models.training.recipe import Optimisation

Losses = dict[str, Tensor]
#: Figures of a network on people that it was not trained on; the second argument is the number of steps done.
Validate = Callable[[nn.Module, int], Mapping[str, float]]


def averaged_model(network: nn.Module, decay: float) -> AveragedModel:
    """An exponential moving average of a network's parameters; `decay` is approached during the first updates."""

    def average(averaged: Tensor, current: Tensor, updates: Tensor | int) -> Tensor:
        return torch.lerp(current, averaged, min(decay, (1 + int(updates)) / (10 + int(updates))))

    return AveragedModel(network, avg_fn=average)


def warmup_cosine(step: int, steps: int, warmup: int, floor: float) -> float:
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


class Trainer:
    """Trains a network in a run folder.

    The folder receives `state.safetensors`, a log and a table of validation figures. A run that finds a state of the
    same stage there resumes it.

    Args:
        network: is trained where its parameters require gradients.
        settings: see there.
        run: the folder; made if it is not there.
        stage: of a training in several stages.
        config: the network's configuration, JSON for the state's metadata.
        prefix: of the names of log and table, `log.csv` and `validation.csv` without one.

    Raises:
        DataError: the state is of another configuration.
    """

    def __init__(
        self, network: nn.Module, settings: Optimisation, run: Path, *, stage: str, config: str, prefix: str = ""
    ) -> None:
        self._network, self._settings, self._run = network, settings, run
        self._metadata = {"stage": stage, "config": config}
        run.mkdir(parents=True, exist_ok=True)
        names = (f"{prefix}.csv", f"{prefix}_validation.csv") if prefix else ("log.csv", "validation.csv")
        self._log, self._scores = (CsvLog(run / name) for name in names)
        self._state = run / "state.safetensors"
        self.accelerator = Accelerator(mixed_precision=settings.precision)
        self.averaged = averaged_model(network, settings.decay)
        self._optimizer = torch.optim.AdamW(
            [parameter for parameter in network.parameters() if parameter.requires_grad],
            lr=settings.rate,
            betas=settings.betas,
            weight_decay=settings.weight_decay,
        )
        self.step = self._resume(stage, config)

    def _resume(self, stage: str, config: str) -> int:
        """The number of steps that were done."""
        if not self._state.exists():
            return 0
        saved, metadata = load_state(self._state)
        if metadata.get("stage", stage) != stage:
            return 0
        if metadata["config"] != config:
            raise DataError(f"{self._state} was trained with another configuration: {metadata['config']}")
        self._network.load_state_dict(saved["network"])
        self.averaged.module.load_state_dict(saved["ema"])
        restore_optimizer(self._optimizer, saved["optimizer"])
        step = int(metadata["step"])
        self.averaged.n_averaged += step
        return step

    @property
    def examples_done(self) -> int:
        """By all processes together."""
        done: int = self.step * self._settings.batch * self.accelerator.num_processes
        return done

    @property
    def examples_left(self) -> int:
        """For all processes together."""
        steps = max(self._settings.steps - self.step, 0)
        left: int = steps * self._settings.batch * self.accelerator.num_processes
        return left

    def train(
        self,
        objective: nn.Module,
        batches: Iterable[tuple[Any, ...]],
        validate: Validate,
        on_validation: Callable[[Mapping[str, float], int], None] = lambda figures, step: None,
    ) -> None:
        """Train until `settings.steps` are done.

        Args:
            objective: the network with its losses, called with each of `batches`; it returns losses by name, of which
                `total` is minimised.
            batches: arguments of `objective`.
            validate: is given the averaged network.
            on_validation: is given what `validate` returned, and the step.
        """
        settings, accelerator = self._settings, self.accelerator
        wrapped, optimizer = accelerator.prepare(objective, self._optimizer)
        schedule = partial(warmup_cosine, steps=settings.steps, warmup=settings.warmup, floor=settings.floor)
        first = self.step
        scheduler = LambdaLR(self._optimizer, lambda done: schedule(first + done))
        sums: dict[str, float] = {}
        began = _cpu_seconds()
        main = accelerator.is_main_process
        bar = tqdm(total=settings.steps, initial=first, unit="step", mininterval=5, disable=None if main else True)
        for arguments in batches:
            losses = wrapped(*arguments)
            accelerator.backward(losses["total"])
            losses["gradient"] = accelerator.clip_grad_norm_(self._network.parameters(), settings.max_gradient_norm)
            if torch.isfinite(losses["gradient"]):
                optimizer.step()
                self.averaged.update_parameters(self._network)
            optimizer.zero_grad()
            scheduler.step()
            self.step += 1
            bar.update()
            for key, value in losses.items():
                sums[key] = sums.get(key, 0.0) + float(value.detach())
            if not main:
                continue
            last = self.step >= settings.steps
            if self.step % settings.log == 0:
                spent_ms = 1000 * (_cpu_seconds() - began) / settings.log
                means = {key: value / settings.log for key, value in sums.items()}
                self._log.write({"step": self.step, **means, "core_ms": spent_ms})
                sums, began = {}, _cpu_seconds()
            if self.step % settings.validate == 0 or last:
                self.averaged.eval()
                figures = validate(self.averaged.module, self.step)
                self._scores.write({"step": self.step, **figures})
                on_validation(figures, self.step)
            if self.step % settings.save == 0 or last:
                self._save()
        bar.close()
        accelerator.wait_for_everyone()
        accelerator.end_training()

    def _save(self) -> None:
        networks = {"network": self._network.state_dict(), "ema": self.averaged.module.state_dict()}
        metadata = self._metadata | {"step": str(self.step)}
        save_state(self._state, networks, {"optimizer": self._optimizer}, metadata)


def _cpu_seconds() -> float:
    """That this process has used."""
    used = os.times()
    return used.user + used.system


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
    strips = [torch.cat(list(row.detach()), dim=-1) for row in rows]
    (picture,) = to_bytes(torch.cat(strips, dim=-2)[None])
    cv2.imwrite(str(path), np.ascontiguousarray(picture[..., ::-1]))
