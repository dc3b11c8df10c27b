"""The parser of a command's arguments, and the layout of its help.

    summary, as in the list of commands
    description, in paragraphs
    examples, which the tests run
    arguments and options
    parts that keys of a recipe can name (commands.parts)

No line of help is wider than 80 columns.
"""

from __future__ import annotations

import argparse
import re
import shlex
import shutil
import textwrap
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from scaledit.errors import UsageError, did_you_mean
from scaledit.values import expanded

WIDTH = 80
"""Columns of help, at most."""


class Example(NamedTuple):
    """A command line that works, with what it does. needs: what it takes that not every machine has, such as
    "ImageNet"; the tests parse such an example and run all others."""

    command: str
    comment: str
    needs: str = ""

    @property
    def words(self) -> list[str]:
        """The arguments after `scaledit`."""
        return shlex.split(self.command)[1:]

    def lines(self) -> list[str]:
        """The comment and the command, as a shell reads them."""
        needs = f" Needs {self.needs}." if self.needs else ""
        return [*wrapped(f"{self.comment}.{needs}", "# ", "# ", WIDTH - 2), *_continued(self.command)]


class Formatter(argparse.RawDescriptionHelpFormatter):
    """argparse's layout in at most 80 columns."""

    def __init__(self, prog: str):
        super().__init__(prog, width=min(WIDTH, shutil.get_terminal_size().columns) - 1)


class Parser(argparse.ArgumentParser):
    """argparse that raises UsageError with the closest option and lets options and arguments mix. more: makes
    the text below the options in --help."""

    more: Callable[[], str] | None = None

    def format_help(self) -> str:
        return f"{super().format_help()}{'' if self.more is None else self.more()}"

    def error(self, message: str) -> NoReturn:
        message = re.sub(r"^argument (\S+): must ", r"\1 must ", message)  # from commands.common.integer
        message = re.sub(r"^argument (\S+): invalid int value: ", r"\1 must be a whole number, got ", message)
        message = re.sub(r"^argument (\S+): invalid float value: ", r"\1 must be a number, got ", message)
        together = r"^argument (\S+): not allowed with argument (\S+)$"
        message = re.sub(together, r"\1 cannot be combined with \2", message)
        raise UsageError(f"{message}; see {self.prog} --help")

    def parse(self, arguments: Sequence[str]) -> argparse.Namespace:
        parsed, unknown = self.parse_known_intermixed_args(arguments)
        if unknown:
            options = [
                option for action in self._actions for option in action.option_strings if option[1] == "-"
            ]
            word = unknown[0].partition("=")[0]
            hint = did_you_mean(word, options) if word.startswith("-") else f"; see {self.prog} --help"
            raise UsageError(f"unknown argument {unknown[0]!r}{hint}")
        for name, value in vars(parsed).items():
            if name not in NOT_PATHS:
                setattr(parsed, name, _expanded(value))
        return parsed

    @property
    def actions(self) -> list[argparse.Action]:
        """The arguments and options that --help shows, in its order."""
        return [action for action in self._actions if action.help is not argparse.SUPPRESS]


NOT_PATHS = ("classes",)
"""Arguments that users fill with names of their own."""


def _expanded(value: Any) -> Any:
    """An argument, or a list of them, with a leading ~ as the home folder: the shell does not expand that of
    --out=~/runs."""
    if isinstance(value, list):
        return [_expanded(item) for item in value]
    return type(value)(expanded(str(value))) if isinstance(value, str | Path) else value


def wrapped(text: str, first: str = "", rest: str = "", width: int = WIDTH) -> list[str]:
    """`text` as lines of help. first, rest: what the first line and the others begin with."""
    return textwrap.wrap(
        text,
        width,
        initial_indent=first,
        subsequent_indent=rest,
        break_long_words=False,
        break_on_hyphens=False,
    )


def layout(summary: str, description: str, examples: Iterable[Example]) -> str:
    """The text above the options."""
    paragraphs = [f"{summary[0].upper()}{summary[1:]}.", *filter(None, description.split("\n\n"))]
    blocks = ["\n".join(wrapped(" ".join(paragraph.split()))) for paragraph in paragraphs]
    shown = ["\n".join(f"  {line}" for line in example.lines()) for example in examples]
    return "\n\n".join([*blocks, *(["examples:\n" + "\n\n".join(shown)] if shown else [])])


def _continued(command: str) -> list[str]:
    """The command on lines that fit, each but the last one ended by a backslash."""
    pieces = re.findall(r"(?:--\S+ )?(?:\"[^\"]*\"|\S+)", command)  # an option stays with its value
    lines = [pieces[0]]
    for piece in pieces[1:]:
        if len(lines[-1]) + 1 + len(piece) <= WIDTH - 4:  # indented, and ended by a backslash
            lines[-1] += f" {piece}"
        else:
            lines.append(f"    {piece}")
    return [f"{line} \\" for line in lines[:-1]] + lines[-1:]
