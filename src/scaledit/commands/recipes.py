"""scaledit recipes: the recipes that come with scaledit, and every key of one."""

from __future__ import annotations

import argparse
import dataclasses
import inspect
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin

from scaledit import terminal
from scaledit.commands import common, parts
from scaledit.commands.parsing import Example, wrapped

if TYPE_CHECKING:
    from scaledit.part import Part

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
    terminal.say("", *wrapped(pointer))


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
    return re.sub(r"\n +", " ", "\n".join(lines)).split("\n")  # an indented line continues the one before


def _names(kind: type) -> list[str]:
    from scaledit.config.tables import section_types

    return list(section_types(kind))


@dataclasses.dataclass(frozen=True)
class _Key:
    """A key of a section. value, default: plain; default is None if the key has none. kind: of its parts."""

    key: str
    value: Any
    default: Any
    required: bool
    bounds: str
    choices: tuple[str, ...]
    doc: str
    kind: type[Part] | None

    def to_json(self) -> dict[str, Any]:
        from scaledit.part import describe

        values = dataclasses.asdict(self)
        kind = values.pop("kind")
        described = None if kind is None else [dataclasses.asdict(part) for part in describe(kind)]
        for part in described or ():
            part["fields"] = [field._asdict() for field in part["fields"]]
        return {**values, "choices": list(self.choices), "parts": described}

    def lines(self, seen: dict[Any, str], section: str) -> Iterator[str]:
        yield from wrapped(f"{self.key} = {_shown(self.value)}", "  ", "      ")
        default = None if self.required or self.value == self.default else f"default {_shown(self.default)}"
        choices = f"one of {', '.join(self.choices)}" if self.choices else ""
        about = "; ".join(filter(None, [self.doc, default, self.bounds, choices]))
        yield from wrapped(about, "      ", "      ")
        if self.kind is not None:
            key, title = f"{section}.{self.key}", f"the {self.kind.KIND} is one of these:"
            for line in parts.alternatives(key, self.kind, seen, 6, title):
                yield line.lstrip("\n")


@dataclasses.dataclass(frozen=True)
class _Section:
    name: str
    values: Any

    @property
    def doc(self) -> str:
        return " ".join((inspect.getdoc(type(self.values)) or "").split("\n\n")[0].split())

    def keys(self) -> list[_Key]:
        from scaledit.config.tables import parts_kind
        from scaledit.part import part_kind, plain
        from scaledit.values import bounds_in_words, hints, own_fields

        types, found = hints(type(self.values)), []
        for item in own_fields(type(self.values)):
            if isinstance(item.default_factory, type) and issubclass(item.default_factory, Mapping):
                continue  # [data]'s fields of a set of the user's own
            kind = types[item.name]
            required = item.default is dataclasses.MISSING
            found.append(
                _Key(
                    item.name,
                    plain(getattr(self.values, item.name)),
                    None if required else plain(item.default),
                    required,
                    bounds_in_words(item),
                    get_args(kind) if get_origin(kind) is Literal else (),
                    item.metadata.get("doc", ""),
                    part_kind(kind) or parts_kind(kind),
                )
            )
        return found

    def to_json(self) -> dict[str, Any]:
        return {"name": self.name, "doc": self.doc, "keys": [key.to_json() for key in self.keys()]}

    def lines(self, seen: dict[Any, str]) -> Iterator[str]:
        yield ""
        yield from wrapped(f"[{self.name}] {self.doc}", "", "  ")
        for key in self.keys():
            yield from key.lines(seen, self.name)


def _shown(value: Any) -> str:
    """A plain value as a recipe writes it."""
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{key} = {_shown(inner)}' for key, inner in value.items())}}}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_shown, value))}]"
    return json.dumps(value)
