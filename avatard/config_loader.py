"""Reading the configuration: flag over environment over file over default, and where each value came from.

A profile stands for the keys that it presets, with the priority of the place where it is set: `--profile quality`
overrides a `hop_frames` of the file, and `--set stream.hop_frames=4` overrides `--profile quality`.
"""

import difflib
import json
import reprlib
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple, get_args

import msgspec
from msgspec import inspect

from avatard.config import PROFILES, Config
from avatard.errors import UserError

ENVIRONMENT_PREFIX = "AVATARD_"
MAX_MESSAGE = 800  # characters


class ConfigError(UserError):
    """The configuration cannot be used. The message names the key, the value and what is allowed."""

    def __init__(self, message: str) -> None:
        text = "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in message[: MAX_MESSAGE + 1])
        super().__init__(text if len(text) <= MAX_MESSAGE else f"{text[:MAX_MESSAGE]}...")


class Key(NamedTuple):
    """One key of the configuration, as its Struct declares it."""

    type: Any
    allowed: str
    description: str
    secret: bool


class Setting(NamedTuple):
    """A value and its source: a file, an environment variable, a flag, or `default`."""

    value: Any
    source: str


@dataclass(frozen=True)
class Settings:
    """The effective configuration and the source of each value, by `section.key`."""

    config: Config
    settings: Mapping[str, Setting]

    @property
    def secrets(self) -> tuple[str, ...]:
        """Values that must not be printed or logged."""
        values = [self.settings[path].value for path, key in keys().items() if key.secret]
        return tuple(text for value in values for text in (value if isinstance(value, tuple) else (value,)) if text)

    def toml(self) -> Iterator[str]:
        """The lines of a file that gives the same configuration again, each value with its source.

        Secrets are left out.
        """
        section = ""
        for path, (value, source) in self.settings.items():
            table, name = path.split(".")
            if table != section:
                yield from [""] * bool(section) + [f"[{table}]"]
                section = table
            if keys()[path].secret and value:
                yield f"# {name} is set, and not shown  # {source}"
            else:
                yield f"{name} = {_toml(value)}  # {source}: {keys()[path].description}"


def configs_dir() -> Path:
    """The folder of the configurations that ship with avatard."""
    return Path(__file__).parent / "configs"


@cache
def keys() -> dict[str, Key]:
    """Every key of the configuration by its path `section.key`, in the order of the Structs."""
    found = {}
    for section in msgspec.structs.fields(Config):
        for field in msgspec.structs.fields(section.type):
            info = inspect.type_info(field.type)
            assert isinstance(info, inspect.Metadata)
            description = (info.extra_json_schema or {})["description"]
            secret = bool((info.extra or {}).get("secret"))
            allowed = (info.extra or {}).get("allowed") or _allowed(info.type)
            found[f"{section.name}.{field.name}"] = Key(field.type, allowed, description, secret)
    return found


def load(
    config: str | Path = "nano",
    overrides: Iterable[str] = (),
    flags: Mapping[str, object] | None = None,
    environ: Mapping[str, str] | None = None,
) -> Settings:
    """Build the configuration.

    Args:
        config: the name of a shipped configuration, or a TOML file; a key it does not set keeps its default.
        overrides: `section.key=value` strings of `--set`; the last of the same key wins.
        flags: values of a verb's own flags by `section.key`; `None` is a flag that was not given. They win over
            `overrides`.
        environ: the environment; `AVATARD_SECTION__KEY` sets `section.key`.

    Raises:
        ConfigError: a key is unknown, of a wrong type or out of range.
    """
    settings = {path: Setting(default, "default") for path, default in _defaults()}
    for layer in (_file(config), _environment(environ or {}), _command_line(overrides, flags or {})):
        profile = layer.get("stream.profile")
        if profile is not None:
            source = f"{profile.source}, profile {profile.value}"
            settings |= {f"stream.{key}": Setting(value, source) for key, value in PROFILES[profile.value].items()}
        settings |= layer
    sections: dict[str, dict[str, Any]] = {}
    for path, setting in settings.items():
        section, name = path.split(".")
        sections.setdefault(section, {})[name] = setting.value
    try:
        built = Config(**{field.name: field.type(**sections[field.name]) for field in msgspec.structs.fields(Config)})
    except ValueError as error:
        raise ConfigError(str(error)) from None
    return Settings(built, settings)


def _defaults() -> Iterator[tuple[str, object]]:
    config = Config()
    for path in keys():
        section, name = path.split(".")
        yield path, getattr(getattr(config, section), name)


def _file(config: str | Path) -> dict[str, Setting]:
    shipped = sorted(path.stem for path in configs_dir().glob("*.toml"))
    path = configs_dir() / f"{config}.toml" if config in shipped else Path(config)
    source = path.name if config in shipped else str(path)
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(
            f"no configuration {str(config)!r}: give a TOML file or one of {', '.join(shipped)}"
        ) from None
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot read the configuration {str(config)!r}: {error}") from None
    except RecursionError:
        raise ConfigError(f"cannot read the configuration {str(config)!r}: it is nested too deeply") from None
    settings = {}
    for section, table in tables.items():
        if section not in _sections():
            first = f"{section}.{next(iter(table))}" if isinstance(table, dict) and table else section
            raise ConfigError(f"{_unknown(first)} ({source})")
        if not isinstance(table, dict):
            raise ConfigError(f"{section} = {_shown(table)} ({source}): expected a table [{section}]")
        for name, value in table.items():
            settings[f"{section}.{name}"] = _setting(f"{section}.{name}", value, source)
    return settings


def _environment(environ: Mapping[str, str]) -> dict[str, Setting]:
    settings = {}
    for variable in sorted(environ):
        if variable.startswith(ENVIRONMENT_PREFIX):
            path = variable.removeprefix(ENVIRONMENT_PREFIX).lower().replace("__", ".", 1)
            settings[path] = _setting(path, environ[variable], f"environment {variable}", text=True)
    return settings


def _command_line(overrides: Iterable[str], flags: Mapping[str, object]) -> dict[str, Setting]:
    settings = {}
    for override in overrides:
        path, equals, text = override.partition("=")
        if not equals:
            raise ConfigError(f"--set {override}: expected section.key=value")
        settings[path.strip()] = _setting(path.strip(), text, "command line", text=True)
    for path, value in flags.items():
        if value is not None:
            settings[path] = _setting(path, value, "command line", text=isinstance(value, str))
    return settings


def _setting(path: str, value: object, source: str, text: bool = False) -> Setting:
    """One checked value; `text`: from a place that has only strings, where commas separate the items of lists."""
    key = keys().get(path)
    if key is None:
        raise ConfigError(f"{_unknown(path)} ({source})")
    if text and get_args(get_args(key.type)[0])[1:] == (...,):
        value = [item.strip() for item in str(value).split(",") if item.strip()]
    try:
        return Setting(msgspec.convert(value, key.type, strict=not text), source)
    except msgspec.ValidationError:
        got = "(secret)" if key.secret else _shown(value)
        raise ConfigError(f"{path} = {got} ({source}): expected {key.allowed}") from None


def _shown(value: object) -> str:
    """A value in a message: not all of it where it is long, or nested deeply."""
    short = reprlib.Repr()
    short.maxstring = short.maxother = short.maxlong = 200
    return short.repr(value)


def _sections() -> list[str]:
    return [field.name for field in msgspec.structs.fields(Config)]


def _unknown(path: str) -> str:
    section, dot, _ = path.partition(".")
    close = difflib.get_close_matches(path, [*keys(), *([] if dot else _sections())], n=1, cutoff=0.7)
    if close:
        return f"{path}: unknown {'key' if '.' in close[0] else 'section'}; did you mean {close[0]}?"
    if section in _sections():
        siblings = [known.partition(".")[2] for known in keys() if known.startswith(f"{section}.")]
        return f"{path}: unknown key; [{section}] has {', '.join(siblings)}"
    return f"{path}: unknown section; there are {', '.join(_sections())}"


def _allowed(info: inspect.Type) -> str:
    """The allowed values of a key, in words."""
    match info:
        case inspect.LiteralType():
            return f"one of {', '.join(map(str, info.values))}"
        case inspect.BoolType():
            return "true or false"
        case inspect.IntType() | inspect.FloatType():
            noun = "a whole number" if isinstance(info, inspect.IntType) else "a number"
            limits = [
                f"{words} {limit:,}"
                for words, limit in (("above", info.gt), ("from", info.ge), ("below", info.lt), ("up to", info.le))
                if limit is not None
            ]
            return " ".join([noun, *limits])
        case inspect.VarTupleType():
            return "a list of texts"
        case inspect.StrType():
            return "a text that is not empty" if info.min_length else "a text"
        case _:
            raise TypeError(f"a configuration key cannot be of type {info}")


def _toml(value: Any) -> str:
    match value:
        case bool():
            return str(value).lower()
        case tuple():
            return f"[{', '.join(map(_toml, value))}]"
        case str():
            return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
        case _:
            return repr(value)
