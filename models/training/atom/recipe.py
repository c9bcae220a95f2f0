"""What a recipe of AToM-Net holds."""

from __future__ import annotations

from dataclasses import dataclass, field

from avatard.models.atom.model import AtomConfig
from avatard.models.training.atom.loss import Corruption
from avatard.models.training.recipe import Optimisation


@dataclass(frozen=True)
class AtomRecipe:
    """`configs/train/atom_*.toml`."""

    network: AtomConfig
    training: Optimisation
    corruption: Corruption = field(default_factory=Corruption)
    exclude: str = ""  # a source to leave out of the training
    seed: int = 0
