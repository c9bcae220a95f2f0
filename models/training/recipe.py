"""Recipes: a TOML file for each trained network and size under `configs/train/`, read into dataclasses."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, get_type_hints

from avatard.errors import UserError
from avatard.models.training.splits import CONFIGS

Recipe = TypeVar("Recipe")


class RecipeError(UserError):
    """A recipe that cannot be read."""


@dataclass(frozen=True)
class Optimisation:
    """How long and how fast a network is trained."""

    steps: int
    batch: int  # examples a step and process
    rate: float  # learning rate after the warm-up
    warmup: int = 200  # steps in which the rate rises linearly
    floor: float = 0.02  # of the rate, where its half cosine ends
    decay: float = 0.998  # of the averaged weights
    weight_decay: float = 1e-4
    betas: tuple[float, float] = (0.9, 0.99)
    max_gradient_norm: float = 1.0
    precision: Literal["no", "bf16"] = "bf16"
    validate: int = 500  # steps between validations
    log: int = 25  # steps between rows of the log
    save: int = 250  # steps between states
    workers: int = 0  # processes that read data


def load_recipe(kind: type[Recipe], name: str, overrides: Iterable[str] = ()) -> Recipe:
    """Read a recipe.

    Args:
        kind: the dataclass to make.
        name: of a file under `configs/train/`, without its ending, or the path of a TOML file.
        overrides: `table.key=value`, values as in TOML; a word needs no quotes.

    Raises:
        RecipeError: there is no such recipe, or a key is unknown, missing or of a wrong type.
    """
    import msgspec  # `Optimisation` is used on training machines that lack it

    path = Path(name) if name.endswith(".toml") else CONFIGS / f"{name}.toml"
    if not path.is_file():
        shipped = ", ".join(sorted(p.stem for p in CONFIGS.glob("*.toml") if p.stem != "splits"))
        raise RecipeError(f"no recipe {name!r}: give a TOML file or one of {shipped}")
    try:
        tree = tomllib.loads(path.read_text(encoding="utf-8"))
    except tomllib.TOMLDecodeError as error:
        raise RecipeError(f"{path}: {error}") from None
    for override in overrides:
        _set(tree, override)
    _check_keys(kind, tree, "")
    try:
        return msgspec.convert(tree, kind)
    except msgspec.ValidationError as error:
        raise RecipeError(f"{path}: {error}") from None


def _set(tree: dict[str, Any], override: str) -> None:
    """Put the value of `table.key=value` into the tree."""
    name, equals, text = override.partition("=")
    *tables, key = name.strip().split(".")
    if not equals or not key:
        raise RecipeError(f"got {override!r}, expected table.key=value")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text.strip()
    for table in tables:
        tree = tree.setdefault(table, {})
        if not isinstance(tree, dict):
            raise RecipeError(f"{override!r}: {table} is no table")
    tree[key] = value


def _check_keys(kind: Any, tree: Mapping[str, Any], prefix: str) -> None:
    """Raise `RecipeError` for a key that no field of the dataclass has."""
    known, types = {field.name for field in fields(kind)}, get_type_hints(kind)
    for key, value in tree.items():
        if key not in known:
            raise RecipeError(f"no key {prefix}{key}: expected one of {', '.join(sorted(known))}")
        if is_dataclass(types[key]) and isinstance(value, dict):
            _check_keys(types[key], value, f"{prefix}{key}.")
