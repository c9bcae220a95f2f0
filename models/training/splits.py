"""Which people are kept out of training."""

from __future__ import annotations

import hashlib
import tomllib
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal, TypeAlias

Split: TypeAlias = Literal["train", "validation", "test"]

#: Recipes and tables of the training.
CONFIGS = Path(__file__).parents[2] / "configs" / "train"


@dataclass(frozen=True)
class SourceRule:
    """How the people of one source are divided, and what its clips are."""

    split: Split | None = None  # of all its people
    validation: frozenset[str] | None = None  # these people choose weights; who is in neither list trains
    test: frozenset[str] = frozenset()  # these people are reported and choose nothing
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
        table = tomllib.loads((CONFIGS / "splits.toml").read_text(encoding="utf-8"))
        sources = {name: SourceRule(**_people(rule)) for name, rule in table["sources"].items()}
        return cls(frozenset(table["shipped"]), sources)

    def split(self, source: str, speaker: str) -> Split:
        """The split of a person; without a rule an eighth of a source's people, by a hash of their names, validate."""
        rule = self.sources.get(source, SourceRule())
        if rule.split is not None:
            return rule.split
        if speaker in rule.test:
            return "test"
        if rule.validation is not None:
            return "validation" if speaker in rule.validation else "train"
        digest = hashlib.sha1(speaker.encode(), usedforsecurity=False).hexdigest()
        return "validation" if digest[0] < "2" else "train"

    def animated(self, source: str) -> bool:
        """Whether the source's clips were made of portraits."""
        return self.sources.get(source, SourceRule()).animated


def _people(rule: dict[str, Any]) -> dict[str, Any]:
    """A source's rule with its lists of people as sets. Read without msgspec: training machines lack it."""
    return {key: frozenset(value) if isinstance(value, list) else value for key, value in rule.items()}
