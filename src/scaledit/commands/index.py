"""All commands by name, in the groups in which `scaledit --help` lists them.

COMMANDS        {name: module}
parser(name)    the parser of a command
describe(name)  the same as data, for the documentation
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from types import ModuleType
from typing import NamedTuple

from scaledit.commands import (
    autoencoder,
    compare,
    completion,
    convert,
    data,
    encode,
    evaluate,
    generate,
    models,
    new,
    paper,
    plan,
    recipes,
    reference,
    sample,
    study,
    sweep,
    train,
)
from scaledit.commands.parsing import Example, Formatter, Parser, layout

GROUPS: Mapping[str, Mapping[str, ModuleType]] = {
    "Train": {"new": new, "recipes": recipes, "train": train, "autoencoder": autoencoder},
    "Sample": {"sample": sample, "generate": generate},
    "Evaluate": {"evaluate": evaluate, "sweep": sweep, "compare": compare, "reference": reference},
    "Data": {"data": data, "encode": encode},
    "Plan and study": {"plan": plan, "models": models, "paper": paper, "study": study},
    "Convert": {"convert": convert},
    "Shell": {"completion": completion},
}
COMMANDS: Mapping[str, ModuleType] = {
    name: command for commands in GROUPS.values() for name, command in commands.items()
}


def parser(name: str) -> Parser:
    """The parser of a command, built without importing what the command needs to run."""
    command = COMMANDS[name]
    made = Parser(
        prog=f"scaledit {name}",
        description=layout(command.SUMMARY, command.DESCRIPTION, command.EXAMPLES),
        allow_abbrev=False,
        formatter_class=Formatter,
    )
    command.arguments(made)
    made.more = getattr(command, "more", None)
    return made


class ArgumentHelp(NamedTuple):
    """An argument (without flags) or an option. metavar: "" for an option that takes no value. default: "" if
    there is none; texts of help name defaults, too, in words. choices: empty if any value is accepted."""

    flags: tuple[str, ...]
    metavar: str
    default: str
    choices: tuple[str, ...]
    required: bool
    help: str


class CommandHelp(NamedTuple):
    """All that --help says about a command, except for parts."""

    name: str
    group: str
    summary: str
    description: str
    usage: str
    examples: tuple[Example, ...]
    arguments: tuple[ArgumentHelp, ...]
    options: tuple[ArgumentHelp, ...]


def describe(name: str) -> CommandHelp:
    """The help of a command as data."""
    command, made = COMMANDS[name], parser(name)
    described = [_described(action) for action in made.actions]
    return CommandHelp(
        name,
        next(group for group, commands in GROUPS.items() if name in commands),
        command.SUMMARY,
        command.DESCRIPTION,
        made.format_usage(),
        command.EXAMPLES,
        tuple(one for one in described if not one.flags),
        tuple(one for one in described if one.flags),
    )


def _described(action: argparse.Action) -> ArgumentHelp:
    choices = tuple(map(str, action.choices or ()))
    metavar = action.metavar or (
        "" if action.nargs == 0 else f"{{{','.join(choices)}}}" if choices else action.dest.upper()
    )
    default = (
        ""
        if action.default in (None, False, "", argparse.SUPPRESS) or action.default == []
        else str(action.default)
    )
    return ArgumentHelp(
        tuple(action.option_strings),
        metavar if isinstance(metavar, str) else " ".join(metavar),
        default,
        choices,
        action.required,
        action.help or "",
    )
