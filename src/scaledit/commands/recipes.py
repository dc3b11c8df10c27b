"""scaledit recipes: the recipes that come with scaledit, and every key of one."""

from __future__ import annotations

import argparse
import dataclasses
import inspect
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scaledit import terminal
from scaledit.commands import common, parts
from scaledit.commands.parsing import Example, wrapped

if TYPE_CHECKING:
    from scaledit.config.keys import Key

SUMMARY = "list the recipes, or explain every key of one"
DESCRIPTION = """A recipe is a TOML file with the settings of a training run, in sections. Without RECIPE,
all recipes are listed. With RECIPE, each key is listed with its value, its default and what values it can
have."""
EXAMPLES = (
    Example("scaledit recipes", "List the recipes"),
    Example("scaledit recipes digits", "List every key of one"),
    Example("scaledit recipes digits sample.sampler=ddim", "Show what a change would do"),
    Example("scaledit recipes digits --json", "Print the same as JSON"),
)


def arguments(parser: argparse.ArgumentParser) -> None:
    common.recipe(parser, optional=True)
    common.output(parser)


def run(args: argparse.Namespace) -> None:
    if args.recipe is None:
        _list(args)
    else:
        _explain(args)


def _list(args: argparse.Namespace) -> None:
    from scaledit.config import recipe_names, trained_by

    rows = [
        {"name": name, "trains": trained_by(name), "summary": _header(name)[0]} for name in recipe_names(None)
    ]
    if args.json:
        terminal.say_json(rows)
        return
    terminal.say(*(f"{row['name']:<34}{row['summary']}" for row in rows))
    terminal.inform("", "`scaledit recipes RECIPE` lists every key of one.")


def _explain(args: argparse.Namespace) -> None:
    config, command = _loaded(args.recipe, args.overrides)
    header = _header(args.recipe)
    sections = [_Section(name, getattr(config, name)) for name in _names(type(config))]
    if args.json:
        about = {"name": config.name, "trains": type(config).TRAINS, "summary": header[0], "command": command}
        terminal.say_json({**about, "sections": [section.to_json() for section in sections]})
        return
    for line in [f"{config.name}: {header[0]}", *header[1:]]:
        terminal.say(*(wrapped(line, "", " " * 13) or [""]))
    seen: dict[Any, str] = {}
    for section in sections:
        terminal.say(*section.lines(seen))
    pointer = f"To change a key: {command} {args.recipe} section.key=value, such as train.steps=100."
    terminal.inform("", *wrapped(pointer))


def _loaded(recipe: str, overrides: list[str]) -> tuple[Any, str]:
    """The config of a recipe of either kind, and the command that trains it."""
    from scaledit import config as configs
    from scaledit.autoencoders.config import AutoencoderRun

    kinds = {kind.TRAINS: kind for kind in (configs.RunConfig, AutoencoderRun)}
    trains = configs.trained_by(recipe)
    return configs.load(recipe, overrides, kinds[trains]), configs.COMMANDS[trains]


def _header(recipe: str) -> list[str]:
    """The comment that opens a recipe, line by line; its first line is a summary. [""] if there is none."""
    from scaledit.config import RECIPES

    path = Path(recipe) if recipe.endswith(".toml") or "/" in recipe else RECIPES / f"{recipe}.toml"
    comment = re.match(r"(#.*\n)*", path.read_text(encoding="utf-8"))
    assert comment is not None  # the pattern matches nothing, too
    lines = [line.removeprefix("#").removeprefix(" ") for line in comment[0].splitlines()]
    return re.sub(r"\n +", " ", "\n".join(lines)).split("\n")  # an indented line continues the previous one


def _names(kind: type) -> list[str]:
    from scaledit.config.tables import section_types

    return list(section_types(kind))


def _json(key: Key, value: Any) -> dict[str, Any]:
    from scaledit.config.keys import NONE
    from scaledit.part import describe, plain

    described = None if key.kind is None else [dataclasses.asdict(part) for part in describe(key.kind)]
    for part in described or ():
        part["fields"] = [field._asdict() for field in part["fields"]]
    required = key.default is NONE
    return {
        "key": key.name,
        "value": value,
        "default": None if required else plain(key.default),
        "required": required,
        "bounds": key.bounds,
        "choices": list(key.choices),
        "doc": key.doc,
        "parts": described,
    }


def _lines(key: Key, value: Any, seen: dict[Any, str]) -> Iterator[str]:
    """A key with its value, and below it what it means and accepts."""
    from scaledit.config.keys import NONE
    from scaledit.part import plain

    yield from wrapped(f"{key.name} = {_shown(value)}", "  ", "      ")
    usual = key.default is NONE or value == plain(key.default)
    default = None if usual else f"default {_shown(plain(key.default))}"
    choices = f"one of {', '.join(key.choices)}" if key.choices else ""
    about = "; ".join(filter(None, [key.doc, default, key.bounds, choices]))
    yield from wrapped(about, "      ", "      ")
    if key.kind is not None:
        title = f"the {key.kind.KIND} is one of these:"
        for line in parts.alternatives(key.key, key.kind, seen, 6, title):
            yield line.lstrip("\n")


@dataclasses.dataclass(frozen=True)
class _Section:
    name: str
    values: Any

    @property
    def doc(self) -> str:
        return " ".join((inspect.getdoc(type(self.values)) or "").split("\n\n")[0].split())

    def keys(self) -> Iterator[tuple[Key, Any]]:
        """Each key with its value, which is plain."""
        from scaledit.config.keys import fields
        from scaledit.part import plain

        for key in fields(self.name, type(self.values)):
            yield key, plain(getattr(self.values, key.name))

    def to_json(self) -> dict[str, Any]:
        return {"name": self.name, "doc": self.doc, "keys": [_json(key, value) for key, value in self.keys()]}

    def lines(self, seen: dict[Any, str]) -> Iterator[str]:
        yield ""
        yield from wrapped(f"[{self.name}] {self.doc}", "", "  ")
        for key, value in self.keys():
            yield from _lines(key, value, seen)


def _shown(value: Any) -> str:
    """A plain value as a recipe writes it."""
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{key} = {_shown(inner)}' for key, inner in value.items())}}}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_shown, value))}]"
    return json.dumps(value)
