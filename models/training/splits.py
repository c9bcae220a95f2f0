"""Which people are kept out of training."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Literal, TypeAlias

import msgspec

Split: TypeAlias = Literal["train", "validation", "test"]

#: Recipes and tables of the training.
CONFIGS = Path(__file__).parents[2] / "configs" / "train"


@dataclass(frozen=True)
class SourceRule:
    """How the people of one source are divided, and what its clips are."""

    split: Split | None = None  # of all its people
    validation: frozenset[str] | None = None  # these people, and no others
    animated: bool = False  # clips were made of portraits; frame 0 is the portrait itself


@dataclass(frozen=True)
class SplitTable:
    """`configs/train/splits.toml`."""

    shipped: frozenset[str] = frozenset()  # sources that the shipped weights learned from
    sources: dict[str, SourceRule] = field(default_factory=dict)

    @classmethod
    @cache
    def load(cls) -> SplitTable:
        """Read the table."""
        return msgspec.toml.decode((CONFIGS / "splits.toml").read_bytes(), type=cls)

    def split(self, source: str, speaker: str) -> Split:
        """The split of a person; without a rule an eighth of a source's people, by a hash of their names, validate."""
        rule = self.sources.get(source, SourceRule())
        if rule.split is not None:
            return rule.split
        if rule.validation is not None:
            return "validation" if speaker in rule.validation else "train"
        digest = hashlib.sha1(speaker.encode(), usedforsecurity=False).hexdigest()
        return "validation" if digest[0] < "2" else "train"

    def animated(self, source: str) -> bool:
        """Whether the source's clips were made of portraits."""
        return self.sources.get(source, SourceRule()).animated
