"""Choices as a config, and as a recipe whose comments are their reasons.

choices, overrides --config--> RunConfig          choices, header --text--> TOML

[train]
steps = 2400  # 0.152 s each, measured on this machine
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TypeVar

from scaledit.config import Config
from scaledit.config.recipes import parsed, toml
from scaledit.config.tables import Assignment, Table, assign, section_types
from scaledit.errors import printable
from scaledit.newrun.rules import Choice
from scaledit.part import YOURS, plain

Kind = TypeVar("Kind", bound=Config)
LINE = 110
"""Characters of a line with its comment; a longer comment is on the line above."""
GIVEN = "given on the command line"


def config(kind: type[Kind], name: str, choices: Iterable[Choice]) -> Kind:
    """The config that these choices make. Raises UsageError if it is not valid."""
    return kind.of(_table(kind, choices), name, YOURS)


def given(kind: type[Config], overrides: Sequence[str]) -> dict[str, Choice]:
    """The keys that section.key=value on the command line set, by key. Raises UsageError as `load` does."""
    return {one.key: one for one in _choices(_table(kind, (), overrides), GIVEN)}


def overridden(kind: type[Config], choices: Sequence[Choice], overrides: Sequence[str]) -> tuple[Choice, ...]:
    """`choices` with the values of section.key=value; sample.sampler.steps=5 changes a field of the sampler
    that was chosen."""
    changed = given(kind, overrides)
    final = {one.key: one for one in _choices(_table(kind, choices, overrides), GIVEN)}
    chosen = {one.key: one for one in choices}
    return tuple((chosen | {key: final[key] for key in changed}).values())


def _table(kind: type[Config], choices: Iterable[Choice], overrides: Sequence[str] = ()) -> Table:
    table: Table = {}
    assign(kind, table, (Assignment(tuple(one.key.split(".")), one.value) for one in choices))
    assign(kind, table, (parsed(override, kind) for override in overrides))
    return table


def _choices(table: Table, why: str) -> list[Choice]:
    return [
        Choice(f"{section}.{key}", plain(value), why)
        for section, values in table.items()
        for key, value in values.items()
    ]


def text(
    kind: type[Config], choices: Sequence[Choice], header: Iterable[str], before: Iterable[str] = ()
) -> str:
    """The recipe. header: lines of the comment at its top. before: lines of TOML above the sections."""
    lines = [f"# {printable(line)}".rstrip() for line in header]
    lines += ["", *before] if before else []
    for section in sorted(section_types(kind), key=lambda section: section != "data"):
        own = [one for one in choices if one.key.partition(".")[0] == section]
        if own:
            lines += ["", f"[{section}]"]
        for one in own:
            assignment, why = f"{one.key.partition('.')[2]} = {toml(one.value)}", printable(one.why)
            line = f"{assignment}  # {why}"
            lines += [line] if len(line) <= LINE else [f"# {why}", assignment]
    return "\n".join(lines) + "\n"
