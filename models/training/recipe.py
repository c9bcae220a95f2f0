"""Recipes: a TOML file for each trained network and size under `configs/train/`, read into dataclasses."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable
from dataclasses import MISSING, dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from avatard.errors import UserError
from avatard.models.training.splits import CONFIGS

Recipe = TypeVar("Recipe")


class RecipeError(UserError):
    """A recipe that cannot be read."""


@dataclass(frozen=True)
class Optimisation:
    """How long and how fast a network is trained."""

    steps: int  # at most, where there are minutes
    batch: int  # examples a step and process
    rate: float  # learning rate after the warm-up
    minutes: float = 0.0  # of the clock, of all calls together, with reading and validation; 0 for as long as it takes
    warmup: int = 200  # steps in which the rate rises linearly
    warmup_share: float = 0.03  # the same of the minutes, where there are some
    floor: float = 0.02  # of the rate, where its half cosine ends
    decay: float = 0.998  # of the averaged weights
    weight_decay: float = 1e-4
    betas: tuple[float, float] = (0.9, 0.99)
    max_gradient_norm: float = 1.0
    precision: Literal["no", "bf16"] = "bf16"
    validate: int = 500  # steps between validations
    validate_minutes: float = 0.0  # the same by the clock, where there are minutes
    log: int = 25  # steps between rows of the log
    save: int = 250  # steps between states


def load_recipe(kind: type[Recipe], name: str, overrides: Iterable[str] = ()) -> Recipe:
    """Read a recipe.

    Args:
        kind: the dataclass to make.
        name: of a file under `configs/train/`, without its ending, or the path of a TOML file.
        overrides: `table.key=value`, values as in TOML; a word needs no quotes.

    Raises:
        RecipeError: there is no such recipe, or a key is unknown, missing or of a wrong type.
    """
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
    try:
        made: Recipe = _converted(kind, tree, "")
    except _Misfit as misfit:
        raise RecipeError(f"{path}: {misfit}") from None
    return made


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


class _Misfit(ValueError):
    """A value of another type than its field's; the text says where."""


def _converted(kind: Any, value: Any, name: str) -> Any:
    """A TOML value as a dataclass or as what its fields hold. Raises `RecipeError` for unknown keys, else `_Misfit`.

    By hand: the machines that train have few packages.
    """
    origin, arguments = get_origin(kind), get_args(kind)
    if is_dataclass(kind) and isinstance(value, dict):
        prefix, types = f"{name}." if name else "", get_type_hints(kind)
        known = {field.name: field for field in fields(kind)}
        for key in value:
            if key not in known:
                raise RecipeError(f"no key {prefix}{key}: expected one of {', '.join(sorted(known))}")
        for key, field in known.items():
            if key not in value and field.default is MISSING and field.default_factory is MISSING:
                raise _Misfit(f"{prefix}{key} is missing")
        found = {key: _converted(types[key], entry, f"{prefix}{key}") for key, entry in value.items()}
        return kind(**found)  # type: ignore[operator]
    if origin is Literal and value in arguments:
        return value
    if origin is tuple and isinstance(value, list):
        kinds = arguments[:1] * len(value) if arguments[-1] is Ellipsis else arguments
        if len(kinds) == len(value):
            return tuple(_converted(k, v, f"{name}[{n}]") for n, (k, v) in enumerate(zip(kinds, value, strict=True)))
    if origin is dict and isinstance(value, dict):
        return {key: _converted(arguments[1], entry, f"{name}.{key}") for key, entry in value.items()}
    if kind is float and type(value) is int:
        return float(value)
    if isinstance(kind, type) and type(value) is kind:
        return value
    raise _Misfit(f"{name} is {value!r}, expected {_described(kind)}")


def _described(kind: Any) -> str:
    """A type for people."""
    if get_origin(kind) is Literal:
        return "one of " + ", ".join(map(repr, get_args(kind)))
    return "a table" if is_dataclass(kind) else kind.__name__ if get_origin(kind) is None else str(kind)
