"""The training of AToM-Net."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from avatard.models import checkpoint
from avatard.models.atom.model import Atom
from avatard.models.training.atom.dataset import MotionClip, MotionData
from avatard.models.training.atom.loss import AtomObjective
from avatard.models.training.atom.recipe import AtomRecipe
from avatard.models.training.loop import Trainer

#: Figures of a network on clips of unseen people; `score` is what the best weights have most of.
ValidateClips = Callable[[Atom, list[MotionClip]], dict[str, float]]
#: Divides clips into those that choose the best weights and those that are reported.
Divide = Callable[[list[MotionClip]], tuple[list[MotionClip], list[MotionClip]]]


def train_atom(
    data: Path, prepared: Path, run: Path, recipe: AtomRecipe, divide: Divide, validate: ValidateClips
) -> None:
    """Train, or resume, until the recipe's steps are done.

    Half of the unseen people choose the weights in `best.safetensors`; figures `reported_…` are of the other half.

    Raises:
        DataError: data or state do not fit.
    """
    torch.manual_seed(recipe.seed)
    training = MotionData(data, prepared, exclude=recipe.exclude)
    choosing, reported = divide(MotionData(data, prepared, split="validation").clips)
    atom = Atom(recipe.network)
    training.set_statistics(atom)
    trainer = Trainer(atom, recipe.training, run, stage="atom", config=recipe.network.to_json(), seed=recipe.seed)
    best_path = run / "best.safetensors"
    best = score_of(best_path)

    def figures_of(averaged: nn.Module, step: int) -> dict[str, float]:
        assert isinstance(averaged, Atom)
        figures = validate(averaged, choosing)
        return figures | {f"reported_{name}": value for name, value in validate(averaged, reported).items()}

    def keep_best(figures: Mapping[str, float], step: int) -> None:
        nonlocal best
        if figures["score"] > best:
            best = figures["score"]
            described = {"config": recipe.network.to_json(), "metrics": json.dumps(dict(figures)), "step": str(step)}
            weights = trainer.averaged.module.state_dict()
            checkpoint.save(best_path, {key: value.half() for key, value in weights.items()}, described)

    def batches(step: int) -> tuple[Any, ...]:
        rng = np.random.default_rng((recipe.seed, step, trainer.processes.process_index))
        noise = torch.Generator().manual_seed(int(rng.integers(2**62)))
        lookahead = int(rng.integers(1, recipe.network.max_lookahead + 1))
        batch = training.batch(recipe.training.batch, recipe.network.frames, lookahead, rng)
        return batch.to(trainer.device), lookahead, noise

    atom.train()
    trainer.train(AtomObjective(atom, recipe.corruption), batches, figures_of, keep_best)


def score_of(path: Path) -> float:
    """The validation score that the best weights reached so far."""
    if not path.exists():
        return -math.inf
    return float(json.loads(checkpoint.load(path)[1]["metrics"])["score"])
