"""The training loop: optimiser steps, averaged weights, logs, validation, and states from which a run resumes.

Needs torch, numpy, OpenCV and safetensors; accelerate, where it is installed, adds other processes. Nothing in a step
waits for the device, so that a GPU is never idle.
"""

from __future__ import annotations

import csv
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from avatard.models.pixels import to_bytes
from avatard.models.training.clips import DataError
from avatard.models.training.processes import Processes, start
from avatard.models.training.recipe import Optimisation
from avatard.models.training.schedule import Clock, warmup_cosine
from avatard.models.training.state import load_state, restore_optimizer, save_state

Losses = dict[str, Tensor]
#: The objective's arguments of a step, a function of its number alone: a resumed run sees what it would have seen.
Batches = Callable[[int], tuple[Any, ...]]
#: Figures of a network on people that it was not trained on; the second argument is the number of steps done.
Validate = Callable[[nn.Module, int], Mapping[str, float]]

#: Steps that `Trainer.throughput` takes before it looks at the clock, and while it does.
WARM, TIMED = 3, 20


def averaged_model(network: nn.Module, decay: float) -> AveragedModel:
    """An exponential moving average of a network's parameters; `decay` is approached during the first updates."""

    def average(averaged: Any, current: Any, _: Tensor | int) -> None:
        updates = int(model.n_averaged)  # on the host: the argument may be on a device that is busy
        torch._foreach_lerp_(averaged, current, 1 - min(decay, (1 + updates) / (10 + updates)))

    model = AveragedModel(network, multi_avg_fn=average)
    return model


class Trainer:
    """Trains a network in a run folder.

    The folder receives `state.safetensors`, a log and a table of validation figures. A run that finds a state of the
    same stage there resumes it.

    Args:
        network: is trained where its parameters require gradients; goes to the device.
        settings: see there.
        run: the folder; made if it is not there.
        stage: of a training in several stages.
        config: the network's configuration, JSON for the state's metadata.
        prefix: of the names of log and table, `log.csv` and `validation.csv` without one.
        seed: of torch's random numbers, which are seeded anew at each step.
        device: see `processes.start`.
        clock: of the stage; `settings.minutes` need one.

    Raises:
        DataError: the state is of another configuration.
        UserError: there is no such device.
    """

    def __init__(
        self,
        network: nn.Module,
        settings: Optimisation,
        run: Path,
        *,
        stage: str,
        config: str,
        prefix: str = "",
        seed: int = 0,
        device: str = "auto",
        clock: Clock | None = None,
    ) -> None:
        self._network, self._settings, self._run, self._seed = network, settings, run, seed
        self.stage, self._metadata = stage, {"stage": stage, "config": config}
        run.mkdir(parents=True, exist_ok=True)
        names = (f"{prefix}.csv", f"{prefix}_validation.csv") if prefix else ("log.csv", "validation.csv")
        self._log, self._scores = (CsvLog(run / name) for name in names)
        self._state = run / "state.safetensors"
        self.clock = clock or Clock()
        if settings.minutes and not self.clock.runs:
            raise ValueError("minutes without a clock")
        self.processes: Processes = start(settings.precision, device)
        network.to(self.device)
        self.averaged = averaged_model(network, settings.decay)
        self._trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
        self._optimizer = torch.optim.AdamW(
            self._trained,
            lr=settings.rate,
            betas=settings.betas,
            weight_decay=settings.weight_decay,
            fused=self.device.type == "cuda",
        )
        self.step = self._resume(stage, config)
        self._validated, self._validated_step = self.clock.minutes, self.step

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return self.processes.device

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
        self.clock.before = float(metadata.get("minutes", 0.0))
        return step

    def numbers(self, step: int) -> range:
        """The examples of a step, which no other step or process has."""
        batch, processes = self._settings.batch, self.processes.num_processes
        first = (step * processes + self.processes.process_index) * batch
        return range(first, first + batch)

    def progress(self) -> float:
        """From 0 to 1: by the clock where there is a budget of minutes, by steps otherwise."""
        settings = self._settings
        done = self.step / settings.steps if settings.steps else 1.0
        if not settings.minutes:
            return done
        spent = self.clock.minutes / settings.minutes
        if self.processes.num_processes > 1:  # all of them must stop at the same step
            spent = float(self.processes.reduce(torch.tensor(spent, device=self.device), "mean"))
        return max(spent, done)

    def _rate(self, progress: float) -> float:
        """The learning rate. By steps it rises from the first one on, and the warm-up is theirs."""
        settings = self._settings
        share = settings.warmup_share if settings.minutes else settings.warmup / max(settings.steps, 1)
        if not settings.minutes and progress < share:
            progress += 1 / settings.steps
        return settings.rate * warmup_cosine(progress, share, settings.floor)

    def train(
        self,
        objective: nn.Module,
        batches: Batches,
        validate: Validate,
        on_validation: Callable[[Mapping[str, float], int], None] = lambda figures, step: None,
    ) -> None:
        """Train until `settings.steps` are done or `settings.minutes` are over.

        Args:
            objective: the network with its losses, called with each of `batches`; it returns losses by name, of which
                `total` is minimised.
            batches: arguments of `objective`.
            validate: is given the averaged network.
            on_validation: is given what `validate` returned, and the step.
        """
        settings, processes = self._settings, self.processes
        wrapped, optimizer = processes.prepare(objective, self._optimizer)
        sums: dict[str, Tensor] = {}
        first, used, began = self.step, _cpu_seconds(), self.clock.minutes
        while (progress := self.progress()) < 1 or self.step == 0:  # the next stage needs something to begin with
            losses = self._update(wrapped, optimizer, batches, self._rate(progress))
            self.step += 1
            if not processes.is_main_process:
                continue
            for key, value in losses.items():
                sums[key] = sums[key] + value if key in sums else value
            if self.step % settings.log == 0:
                row = {key: float(value) / settings.log for key, value in sums.items()}  # waits for the device
                row["core_ms"] = 1000 * (_cpu_seconds() - used) / settings.log
                if self.clock.runs:
                    examples = settings.log * settings.batch * processes.num_processes
                    seconds = max(60 * (self.clock.minutes - began), 1e-9)
                    row |= {"minutes": self.clock.minutes, "examples_s": examples / seconds}
                self._log.write({"step": self.step, **row})
                self._report(row)
                sums, used, began = {}, _cpu_seconds(), self.clock.minutes
            if self._due():
                self._validate(validate, on_validation)
                used, began = _cpu_seconds(), self.clock.minutes
            if self.step % settings.save == 0:
                self._save()
        if processes.is_main_process and self.step > first:
            if self._validated_step < self.step:
                self._validate(validate, on_validation)
            self._save()
        processes.wait_for_everyone()
        processes.end_training()

    def _update(self, wrapped: Any, optimizer: Any, batches: Batches, rate: float) -> Losses:
        """One step; its losses, detached."""
        processes, settings = self.processes, self._settings
        torch.manual_seed(_mixed(self._seed, self.step, processes.process_index))
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        losses: Losses = dict(wrapped(*batches(self.step)))
        processes.backward(losses["total"])
        losses["gradient"] = processes.clip_grad_norm_(self._trained, settings.max_gradient_norm)
        finite = torch.isfinite(losses["gradient"])
        if self.device.type == "cuda":
            # The fused kernel looks by itself, as for gradient scaling; asking here would wait for the device.
            self._optimizer.found_inf = (~finite).float()  # type: ignore[attr-defined]
            optimizer.step()
        elif finite:
            optimizer.step()
        self.averaged.update_parameters(self._network)
        optimizer.zero_grad()
        return {key: value.detach() for key, value in losses.items()}

    def _due(self) -> bool:
        """Whether it is time for a validation."""
        settings = self._settings
        if settings.minutes and settings.validate_minutes:
            return self.clock.minutes - self._validated >= settings.validate_minutes
        return self.step % settings.validate == 0

    def _validate(self, validate: Validate, on_validation: Callable[[Mapping[str, float], int], None]) -> None:
        self._validated, self._validated_step = self.clock.minutes, self.step
        self.averaged.eval()
        figures = validate(self.averaged.module, self.step)
        self._scores.write({"step": self.step, **figures})
        on_validation(figures, self.step)

    def _report(self, row: Mapping[str, float]) -> None:
        """One line for who watches."""
        settings = self._settings
        over = f"{self.clock.minutes:.1f} of {settings.minutes:g} min" if settings.minutes else f"of {settings.steps}"
        speed = f", {row['examples_s']:,.1f} examples/s" if "examples_s" in row else ""
        name = f"{self._run.name} {self.stage}"
        print(f"{name}: step {self.step} {over}, loss {row['total']:.4g}{speed}", flush=True)

    def _save(self) -> None:
        networks = {"network": self._network.state_dict(), "ema": self.averaged.module.state_dict()}
        metadata = self._metadata | {"step": str(self.step), "minutes": f"{self.clock.minutes:.4f}"}
        save_state(self._state, networks, {"optimizer": self._optimizer}, metadata)

    def throughput(self, objective: nn.Module, batches: Batches, seconds: Callable[[], float]) -> tuple[float, float]:
        """Examples a second with their making, and of steps on one batch that is there: the device's own limit.

        The network learns meanwhile, but nothing is written.
        """
        wrapped, optimizer = self.processes.prepare(objective, self._optimizer)
        first = batches(self.step)

        def speed(of: Batches) -> float:
            began = 0.0
            for n in range(WARM + TIMED):
                losses = self._update(wrapped, optimizer, of, 1e-3 * self._settings.rate)
                self.step += 1
                if n in (WARM - 1, WARM + TIMED - 1):
                    float(losses["total"])  # waits for the device
                if n == WARM - 1:
                    began = seconds()
            examples = TIMED * self._settings.batch * self.processes.num_processes
            return examples / max(seconds() - began, 1e-9)

        return speed(batches), speed(lambda step: first)


@dataclass(frozen=True)
class Stage:
    """What a training takes its steps with."""

    trainer: Trainer
    objective: nn.Module
    batches: Batches

    def throughput(self, seconds: Callable[[], float]) -> tuple[float, float]:
        """See `Trainer.throughput`."""
        return self.trainer.throughput(self.objective, self.batches, seconds)


def _mixed(*numbers: int) -> int:
    """A seed of 63 bits that differs wherever one of the numbers does."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> np.uint64(1))


def _cpu_seconds() -> float:
    """That this process has used."""
    used = os.times()
    return used.user + used.system


class CsvLog:
    """One row of figures at a time; the columns are those of the first row."""

    def __init__(self, path: Path):
        self.path = path

    def write(self, row: Mapping[str, float]) -> None:
        """Append a row; what has no column in a log that an earlier call began is left out."""
        columns = list(row)
        fresh = not self.path.exists()
        if not fresh:
            with self.path.open(newline="", encoding="utf-8") as file:
                columns = next(csv.reader(file), columns)
        with self.path.open("a", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, columns, restval=f"{math.nan}", extrasaction="ignore")
            if fresh:
                writer.writeheader()
            writer.writerow({key: f"{value:.6g}" for key, value in row.items()})


def sheet(path: Path, rows: Sequence[Tensor]) -> None:
    """Write pictures as a PNG: each row is `[N, 3, H, W]` in [-1, 1], all of one size."""
    strips = [torch.cat(list(row.detach()), dim=-1) for row in rows]
    (picture,) = to_bytes(torch.cat(strips, dim=-2)[None])
    cv2.imwrite(str(path), np.ascontiguousarray(picture[..., ::-1]))
