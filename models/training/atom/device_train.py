"""The training of AToM-Net on one device within a budget of minutes, from a bundle.

Everything that a step needs is on the device (`DeviceData`); the schedule follows the clock, so that the training ends
when its minutes do, however fast the device is.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from avatard.models import checkpoint
from avatard.models.atom.model import Atom, AtomConfig
from avatard.models.speech import WhisperFeatures
from avatard.models.training.atom.bundle import Bundle
from avatard.models.training.atom.dataset import set_statistics
from avatard.models.training.atom.device_data import Augmentation, DeviceData
from avatard.models.training.atom.loss import AtomObjective, Corruption, LossWeights
from avatard.models.training.atom.train import score_of
from avatard.models.training.loop import Trainer
from avatard.models.training.recipe import Optimisation
from avatard.models.training.schedule import Clock

#: Share of the budget after which the weights so far are saved besides the best ones.
EARLY = 0.8
#: How fast, on a GPU; `minutes`, `batch` and `steps` are the caller's.
SETTINGS = Optimisation(
    steps=10**9, batch=512, rate=1.2e-3, minutes=8.0, decay=0.999, weight_decay=0.02, betas=(0.9, 0.98),
    validate_minutes=0.5, log=100, save=2000,
)  # fmt: skip


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
    settings: Optimisation,
    run: Path,
    device: str,
    validation: Validation,
    clock: Clock,
) -> None:
    """Train, or resume, until the budget of minutes is over.

    `run` receives `log.csv`, `validation.csv`, `best.safetensors` (averaged weights with the best score on validation
    people), `early.safetensors` at four fifths of the time, `last.safetensors` and the state.
    """
    torch.manual_seed(variant.seed)
    atom = Atom(variant.network)
    trainer = Trainer(
        atom, settings, run, stage="atom", config=variant.network.to_json(), seed=variant.seed, device=device,
        clock=clock,
    )  # fmt: skip
    place = trainer.device
    speech = WhisperFeatures.load().to(place)
    data = DeviceData(bundle, "train", place, speech, variant.network.audio_frames)
    figures_of = validation(DeviceData(bundle, "validation", place, speech, variant.network.audio_frames, tracks=1))
    for network in (atom, trainer.averaged.module):
        assert isinstance(network, Atom)
        if trainer.step == 0:
            set_statistics(network, data.faces)
        network.to(place)
    rng = torch.Generator(place)
    best = score_of(run / "best.safetensors")

    def batches(step: int) -> tuple[Any, ...]:
        lookahead = 1 + step % variant.network.max_lookahead
        rng.manual_seed((variant.seed << 32) + step)
        with torch.autocast(place.type, torch.bfloat16, enabled=settings.precision == "bf16", cache_enabled=False):
            batch = data.batch(settings.batch, variant.network.frames, lookahead, variant.augmentation, rng)
        return batch, lookahead, rng

    def validate(averaged: nn.Module, step: int) -> dict[str, float]:
        assert isinstance(averaged, Atom)
        return figures_of(averaged)

    def keep(figures: Mapping[str, float], step: int) -> None:
        nonlocal best
        print(run.name, step, {key: round(value, 3) for key, value in figures.items()}, flush=True)
        names = ["last"]
        if figures["score"] > best:
            best = figures["score"]
            names.append("best")
        if trainer.progress() > EARLY and not (run / "early.safetensors").exists():
            names.append("early")
        described = {"config": variant.network.to_json(), "metrics": json.dumps(dict(figures)), "step": str(step)}
        weights = {key: value.half() for key, value in trainer.averaged.module.state_dict().items()}
        for name in names:
            checkpoint.save(run / f"{name}.safetensors", weights, described)

    atom.train()
    trainer.train(AtomObjective(atom, variant.corruption, variant.loss), batches, validate, keep)


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
