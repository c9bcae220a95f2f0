"""Figures by variant, as the evaluation scripts write them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

Figures = Mapping[str, float | None]


def write_json(path: Path, settings: Mapping[str, Any], figures: Mapping[str, Figures | None]) -> None:
    """Write `settings` and an object for each variant."""
    path.write_text(json.dumps({"settings": dict(settings), **figures}, indent=2) + "\n")


def complete(figures: Figures, keys: Sequence[str]) -> dict[str, float | None]:
    """All `keys` first, null where there is no figure, then the others."""
    return {key: figures.get(key) for key in dict.fromkeys([*keys, *figures])}


def _cell(value: float | None, digits: int) -> str:
    return "–" if value is None else f"{value:.{digits}g}"


def table(figures: Mapping[str, Figures | None], keys: Sequence[str], digits: int = 4) -> str:
    """Markdown with a row for each variant."""
    lines = ["| variant | " + " | ".join(keys) + " |", "|---" * (len(keys) + 1) + "|"]
    for name, found in figures.items():
        lines.append(f"| {name} | " + " | ".join(_cell((found or {}).get(key), digits) for key in keys) + " |")
    return "\n".join(lines)


def transposed_table(figures: Mapping[str, Figures], keys: Sequence[str], digits: int = 3) -> str:
    """Markdown with a column for each variant."""
    lines = ["| | " + " | ".join(figures) + " |", "|---" * (len(figures) + 1) + "|"]
    for key in keys:
        lines.append(f"| {key} | " + " | ".join(_cell(found.get(key), digits) for found in figures.values()) + " |")
    return "\n".join(lines)
