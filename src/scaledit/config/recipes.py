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
from scaledit.errors import UsageError, did_you_mean, near_path, reading, reason, shown
from scaledit.files.reading import check_depth
from scaledit.part import YOURS
from scaledit.values import expanded

RECIPES = Path(__file__).parent.parent / "recipes"
COMMANDS = {"model": "scaledit train", "autoencoder": "scaledit autoencoder train"}
"""The command for a recipe, by what it trains."""
BESIDES = ("name", "extends", "trains")
"""The keys of a recipe outside its sections."""
LARGEST_TOML = 1 << 20
"""Bytes; recipes and studies have a few thousand."""

Kind = TypeVar("Kind", bound=Config)


def recipe_names(trains: str | None = "model") -> list[str]:
    """The names of scaledit's recipes that train `trains` (a key of COMMANDS); None: of all recipes."""
    names = sorted(path.stem for path in RECIPES.glob("*.toml"))
    return [name for name in names if trains is None or trained_by(name) == trains]


def trained_by(recipe: str) -> str:
    """What a recipe trains, a key of COMMANDS."""
    return _trains(_read(recipe), recipe)


def load(recipe: str, overrides: Iterable[str] = (), kind: type[Kind] = RunConfig) -> Kind:
    """The config of a recipe with `section.key=value` overrides.

    recipe: a name, or the path of a .toml file. overrides: their values are TOML (`train.steps=100`,
    `sample.sampler={name="ddim", eta=0.5}`); bare words are strings. A part named MODULE:CLASS is imported.
    Raises UsageError for an unknown recipe, section, key or part, for a value of the wrong type, and if the
    recipe trains something else than `kind`.
    """
    layers = _read(recipe)
    trains = _trains(layers, recipe)
    if trains != kind.TRAINS:
        raise UsageError(f"{recipe} is a recipe for another command; use {COMMANDS[trains]} {recipe}")
    table: Table = {}
    name: object = Path(recipe).stem
    for layer in layers:
        name = layer.get("name", name)
        sections = {key: value for key, value in layer.items() if key not in BESIDES}
        tables.assign(kind, table, tables.assignments(sections))
    tables.assign(kind, table, (parsed(override, kind) for override in overrides))
    return kind.of(table, name, YOURS)


def changed(config: Kind, overrides: Iterable[str]) -> Kind:
    """`config` with `section.key=value` overrides written by the user. Raises UsageError as `load` does."""
    changes = [parsed(override, type(config)) for override in overrides]
    return _changed(config, changes) if changes else config


def with_values(config: Kind, values: Mapping[str, Any]) -> Kind:
    """`config` with new values of some keys: {"sample.sampler.steps": 20}. Raises UsageError as `load`
    does."""
    return _changed(config, [Assignment(tuple(key.split(".")), value) for key, value in values.items()])


def _changed(config: Kind, changes: Sequence[Assignment]) -> Kind:
    table: Table = {}
    kind = type(config)
    tables.assign(kind, table, tables.assignments(config.sections()))
    tables.assign(kind, table, changes)
    return kind.of(table, config.name, YOURS)


def _trains(layers: Sequence[Mapping[str, Any]], recipe: str) -> str:
    trains = next((layer["trains"] for layer in reversed(layers) if "trains" in layer), "model")
    if not isinstance(trains, str) or trains not in COMMANDS:
        raise UsageError(f"{recipe}: trains is {shown(trains)}{did_you_mean(shown(trains), COMMANDS)}")
    return trains


def _read(recipe: str, extended_by: tuple[str, ...] = ()) -> list[dict[str, Any]]:
    """The tables of a recipe, after those of the recipe that it extends. The path of that recipe is relative
    to the folder of this one."""
    if recipe in extended_by:
        raise UsageError(f"recipes extend each other in a circle: {' -> '.join([*extended_by, recipe])}")
    recipe = expanded(recipe)
    is_path = recipe.endswith(".toml") or "/" in recipe
    path = Path(recipe) if is_path else RECIPES / f"{recipe}.toml"
    if not path.is_file():
        if is_path:
            raise UsageError(f"there is no recipe file {recipe}{near_path(recipe)}")
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
        raise UsageError(f"{path}: extends must be the name or the path of a recipe, got {shown(base)}")
    if base.endswith(".toml") or "/" in base:
        base = str((path.parent / expanded(base)).resolve())
    return [*_read(base, (*extended_by, recipe)), table]


def read_toml(path: Path) -> tuple[dict[str, Any], str]:
    """The tables of a TOML file, and its text. Raises UsageError if it is too large or not valid TOML."""
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


def parsed(override: str, kind: type[Config] = RunConfig) -> Assignment:
    """Parses `section.key=value`. kind: the type of config that it is for. Raises UsageError if it is not of
    that form."""
    key, equals, text = override.partition("=")
    path = tuple(key.split("."))
    if equals and key.isidentifier():
        raise UsageError(tables.without_section(kind, key, text))
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
    """Whether an argument of a command line is `section.key=value` rather than a path."""
    return bool(re.match(r"[a-z_]+(\.\w+)+=", word))


def override(key: str, value: Any) -> str:
    """`section.key=value` with the value written as TOML, the inverse of `parsed`. Raises UsageError if TOML
    cannot express the value."""
    try:
        return f"{key}={toml(value)}"
    except (TypeError, ValueError):  # dates and times; numbers of thousands of digits
        raise UsageError(f"{key} cannot be {shown(value)}") from None


def toml(value: Any) -> str:
    """A plain value as one line of TOML. Raises TypeError or ValueError if that is impossible."""
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{_key(key)} = {toml(inner)}' for key, inner in value.items())}}}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(toml, value))}]"
    # JSON and TOML write strings, numbers and booleans alike, except that TOML has no surrogate pairs.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def _key(key: str) -> str:
    return key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else toml(key)
