"""The training of AToM-Net on one device within a budget of minutes, from a bundle.

Everything that a step needs is on the device (`DeviceData`); the schedule follows the clock, so that the training ends
when its minutes do, however fast the device is.
"""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from avatard.models import checkpoint
from avatard.models.atom.model import Atom, AtomConfig
from avatard.models.speech import WhisperFeatures
from avatard.models.training.atom.bundle import Bundle
from avatard.models.training.atom.dataset import set_statistics
from avatard.models.training.atom.device_data import Augmentation, DeviceData
from avatard.models.training.atom.loss import AtomObjective, Corruption, LossWeights

#: Share of the budget after which the weights so far are saved besides the best ones.
EARLY = 0.8


@dataclass(frozen=True)
class Budget:
    """How long and how fast."""

    minutes: float
    batch: int = 512
    rate: float = 1.2e-3
    warmup: float = 0.03  # share of the budget
    floor: float = 0.02  # of the rate, at the end
    decay: float = 0.999  # of the averaged weights
    weight_decay: float = 0.02
    validate_seconds: float = 30.0
    log_steps: int = 100
    most_steps: int = 10**9


@dataclass(frozen=True)
class Variant:
    """What one training tries."""

    network: AtomConfig = field(default_factory=AtomConfig)
    augmentation: Augmentation = field(default_factory=Augmentation)
    loss: LossWeights = field(default_factory=LossWeights)
    corruption: Corruption = field(default_factory=Corruption)
    seed: int = 0


#: Of validation data, a function that gives a network's figures; `score` is what the best weights have most of.
Validation = Callable[[DeviceData], Callable[[Atom], dict[str, float]]]


def train(
    bundle: Bundle,
    variant: Variant,
    budget: Budget,
    run: Path,
    device: torch.device,
    validation: Validation,
    seconds: Callable[[], float],
) -> None:
    """Train until the clock `seconds` shows `budget.minutes`.

    `run` receives `log.csv`, `validation.csv`, `best.safetensors` (averaged weights with the best score on validation
    people), `early.safetensors` at four fifths of the time and `last.safetensors`.
    """
    from avatard.models.training.loop import CsvLog, warmup_cosine

    torch.manual_seed(variant.seed)
    run.mkdir(parents=True, exist_ok=True)
    on_gpu = device.type == "cuda"
    speech = WhisperFeatures.load().to(device)
    data = DeviceData(bundle, "train", device, speech, variant.network.audio_frames)
    figures_of = validation(DeviceData(bundle, "validation", device, speech, variant.network.audio_frames, tracks=1))
    atom = Atom(variant.network)
    set_statistics(atom, data.faces)
    atom = atom.to(device)
    averaged = copy.deepcopy(atom).eval().requires_grad_(False)
    kept: list[Tensor] = list(averaged.parameters())
    current: list[Tensor] = list(atom.parameters())
    objective = AtomObjective(atom, variant.corruption, variant.loss)
    optimizer = torch.optim.AdamW(
        atom.parameters(), lr=budget.rate, betas=(0.9, 0.98), weight_decay=budget.weight_decay, fused=on_gpu
    )
    rng = torch.Generator(device).manual_seed(variant.seed)
    log, scores = CsvLog(run / "log.csv"), CsvLog(run / "validation.csv")
    end = 60 * budget.minutes
    start = last_validation = seconds()
    best, step, early, losses = -math.inf, 0, False, torch.zeros((), device=device)

    def save(name: str, figures: dict[str, float]) -> None:
        described = {"config": variant.network.to_json(), "metrics": json.dumps(figures), "step": str(step)}
        weights = averaged.state_dict()
        checkpoint.save(run / f"{name}.safetensors", {key: value.half() for key, value in weights.items()}, described)

    def validate() -> dict[str, float]:
        nonlocal best
        figures = figures_of(averaged)
        scores.write({"step": step, "seconds": seconds() - start, **figures})
        print(run.name, step, {key: round(value, 3) for key, value in figures.items()}, flush=True)
        if figures["score"] > best:
            best = figures["score"]
            save("best", figures)
        return figures

    atom.train()
    while True:
        now = seconds()
        progress = (now - start) / max(end - start, 1e-3)
        if progress >= 1 or step >= budget.most_steps:
            break
        rate = budget.rate * warmup_cosine(
            int(progress * 10_000), 10_000, max(1, int(budget.warmup * 10_000)), budget.floor
        )
        for group in optimizer.param_groups:
            group["lr"] = rate
        lookahead = 1 + step % variant.network.max_lookahead
        with torch.autocast(device.type, torch.bfloat16, enabled=on_gpu, cache_enabled=False):
            batch = data.batch(budget.batch, variant.network.frames, lookahead, variant.augmentation, rng)
            total = objective(batch, lookahead, rng)["total"]
        optimizer.zero_grad(set_to_none=True)
        total.backward()
        nn.utils.clip_grad_norm_(atom.parameters(), 1.0)
        optimizer.step()
        # As `averaged_model`, in one kernel and without waiting for the device.
        with torch.no_grad():
            torch._foreach_lerp_(kept, current, 1 - min(budget.decay, (1 + step) / (10 + step)))
        step += 1
        losses = losses + total.detach()
        if step % budget.log_steps == 0:
            log.write({"step": step, "seconds": now - start, "loss": float(losses) / budget.log_steps, "rate": rate})
            losses = torch.zeros((), device=device)
        if now - last_validation > budget.validate_seconds:
            last_validation = now
            validate()
        if not early and progress > EARLY:
            early = True
            save("early", {})
    save("last", validate())


def variants(seed: int) -> dict[str, Variant]:
    """Ways to train that `scripts/train_atom_bundle.py` knows by name."""
    network = AtomConfig(dropout=0.3)
    plain = Variant(network, seed=seed)
    longer = LossWeights(windows=((0, 4), (0, 8), (0, 12), (1, 3), (2, 2)))
    mild = Augmentation(tempo=0.3, formants=0.3, filtered=0.2, room=0.1, noisy=0.2)
    return {
        "nano": plain,
        "lively": replace(plain, loss=longer),
        "lively_dropout": replace(plain, network=AtomConfig(dropout=0.45), loss=longer),
        "mild": replace(plain, augmentation=mild),
        "wide": replace(plain, network=AtomConfig(width=288, dropout=0.45), loss=longer),
    }
