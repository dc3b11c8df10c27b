"""Recipes: TOML files that may extend each other, and `section.key=value` over them.

recipe (TOML, may extend another)  +  section.key=value overrides  ->  RunConfig
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from scaledit.config import tables
from scaledit.config.runs import Config, RunConfig
from scaledit.config.tables import Assignment, Table
from scaledit.errors import UsageError, did_you_mean, reading, reason, shown
from scaledit.files.reading import check_depth
from scaledit.part import YOURS

RECIPES = Path(__file__).parent.parent / "recipes"
COMMANDS = {"model": "scaledit train", "autoencoder": "scaledit autoencoder train"}
"""What to call with a recipe, by what it trains."""
BESIDES = ("name", "extends", "trains")
"""What a recipe says outside of its sections."""
LARGEST_TOML = 1 << 20
"""Bytes; recipes and studies have a few thousand."""

Kind = TypeVar("Kind", bound=Config)


def recipe_names(trains: str | None = "model") -> list[str]:
    """The recipes that come with scaledit and train such a thing; all of them for None."""
    names = sorted(path.stem for path in RECIPES.glob("*.toml"))
    return [name for name in names if trains is None or trained_by(name) == trains]


def trained_by(recipe: str) -> str:
    """What a recipe trains: a key of COMMANDS."""
    return _trains(_read(recipe), recipe)


def load(recipe: str, overrides: Iterable[str] = (), kind: type[Kind] = RunConfig) -> Kind:
    """The config of a recipe, by name or by path of a .toml file, with `section.key=value` overrides.

    Values are TOML (`train.steps=100`, `sample.sampler={name="ddim", eta=0.5}`); bare words are taken as
    strings. Parts may be named MODULE:CLASS, which is imported. Raises UsageError for an unknown recipe,
    section, key or part, for values of the wrong kind, and for a recipe that trains something else.
    """
    layers = _read(recipe)
    trains = _trains(layers, recipe)
    if trains != kind.TRAINS:
        raise UsageError(f"{recipe} is a recipe of another kind; use {COMMANDS[trains]} {recipe}")
    table: Table = {}
    name: object = Path(recipe).stem
    for layer in layers:
        name = layer.get("name", name)
        sections = {key: value for key, value in layer.items() if key not in BESIDES}
        tables.assign(kind, table, tables.assignments(sections))
    tables.assign(kind, table, map(parsed, overrides))
    return kind.of(table, name, YOURS)


def changed(config: Kind, overrides: Iterable[str]) -> Kind:
    """`config` with `section.key=value` overrides of the user's own. Raises UsageError, as `load`."""
    made = [parsed(override) for override in overrides]
    return _changed(config, made) if made else config


def with_values(config: Kind, values: Mapping[str, Any]) -> Kind:
    """`config` with other values of some keys: {"sample.sampler.steps": 20}. Raises UsageError."""
    return _changed(config, [Assignment(tuple(key.split(".")), value) for key, value in values.items()])


def _changed(config: Kind, made: Sequence[Assignment]) -> Kind:
    table: Table = {}
    kind = type(config)
    tables.assign(kind, table, tables.assignments(config.sections()))
    tables.assign(kind, table, made)
    return kind.of(table, config.name, YOURS)


def _trains(layers: Sequence[Mapping[str, Any]], recipe: str) -> str:
    trains = next((layer["trains"] for layer in reversed(layers) if "trains" in layer), "model")
    if not isinstance(trains, str) or trains not in COMMANDS:
        raise UsageError(f"{recipe}: trains is {shown(trains)}{did_you_mean(shown(trains), COMMANDS)}")
    return trains


def _read(recipe: str, extended_by: tuple[str, ...] = ()) -> list[dict[str, Any]]:
    """A recipe as tables, after those of the recipe that it extends. A path it extends is relative to its own
    folder."""
    if recipe in extended_by:
        raise UsageError(f"recipes extend each other in a circle: {' -> '.join([*extended_by, recipe])}")
    is_path = recipe.endswith(".toml") or "/" in recipe
    path = Path(recipe) if is_path else RECIPES / f"{recipe}.toml"
    if not path.is_file():
        if is_path:
            raise UsageError(f"no recipe file {recipe}")
        raise UsageError(f"unknown recipe {recipe!r}{did_you_mean(recipe, recipe_names(None))}")
    table, _ = read_toml(path)
    for section, values in table.items():
        if section not in BESIDES and not isinstance(values, Mapping):
            named = shown(section)[1:-1]
            raise UsageError(f"{path}: {named} must be a section, [{named}] with keys below it")
    base = table.pop("extends", None)
    if base is None:
        return [table]
    if not isinstance(base, str):
        raise UsageError(f"{path}: extends must be a recipe's name or path, got {shown(base)}")
    if base.endswith(".toml") or "/" in base:
        base = str((path.parent / base).resolve())
    return [*_read(base, (*extended_by, recipe)), table]


def read_toml(path: Path) -> tuple[dict[str, Any], str]:
    """The tables of a TOML file, and its text. Raises UsageError."""
    with reading(path, "TOML", error=UsageError):
        if path.stat().st_size > LARGEST_TOML:
            raise ValueError(f"it has {path.stat().st_size / 1e6:.0f} MB")
        try:
            text = path.read_text(encoding="utf-8")
            table = tomllib.loads(text)
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise UsageError(f"{path} is not valid TOML: {error}") from None
        check_depth(table)
    return table, text


def parsed(override: str) -> Assignment:
    """`section.key=value`. Raises UsageError."""
    key, equals, text = override.partition("=")
    path = tuple(key.split("."))
    if not equals or len(path) < 2 or not all(path):
        raise UsageError(f"an override is section.key=value, as in train.steps=100; got {override!r}")
    if "\n" in text or any(name != name.strip() for name in path):
        raise UsageError(f"an override is section.key=value without spaces or line breaks; got {override!r}")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
        check_depth(value)
    except tomllib.TOMLDecodeError:
        value = text
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{key} cannot be {shown(text)}: {reason(error)}") from None
    return Assignment(path, value)


def is_override(word: str) -> bool:
    """Whether a word of a command line is meant as `section.key=value`, beside words that are paths."""
    return bool(re.match(r"[a-z_]+(\.\w+)+=", word))


def override(key: str, value: Any) -> str:
    """`section.key=value` as `parsed` reads it back: the value as TOML has it. Raises UsageError for what
    TOML cannot say."""
    try:
        return f"{key}={toml(value)}"
    except (TypeError, ValueError):  # dates and times; numbers of thousands of digits
        raise UsageError(f"{key} cannot be {shown(value)}") from None


def toml(value: Any) -> str:
    """A plain value on one line of TOML. Raises TypeError, ValueError."""
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{json.dumps(key)} = {toml(inner)}' for key, inner in value.items())}}}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(toml, value))}]"
    return json.dumps(value)  # strings, numbers and booleans are written alike
