"""What --help and `scaledit recipes NAME` say about parts: their names, fields, bounds and meaning."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from scaledit.commands.parsing import wrapped
from scaledit.part import FieldDescription, Part, describe, inner_kinds

HEADING = (
    "Parts that keys of a recipe can name, with their fields. Choose a part with section.key=NAME, and set a "
    "field of it with section.key.field=value. MODULE:CLASS names a part of your own."
)


def in_sections(*sections: str) -> str:
    """For --help: the parts that keys of these sections of a recipe can name, with inner parts and fields."""
    from scaledit.config import RunConfig
    from scaledit.config.tables import part_keys

    lines, seen = wrapped(HEADING), {}
    for key, kind in part_keys(RunConfig, sections):
        lines += alternatives(key, kind, seen)
    return "\n".join(["", *lines, ""])


def alternatives(
    key: str, kind: type[Part], seen: dict[Any, str], indent: int = 0, title: str = ""
) -> Iterator[str]:
    """Lines about all parts that `key` can name, and about the parts inside of them. seen: the kinds that
    were described before, and under which key; a kind is described once. title: replaces the first line."""
    space = " " * indent
    if kind in seen:
        if seen[kind] != key:
            yield f"\n{space}{key}: as {seen[kind]}"
        return
    seen[kind] = key
    yield f"{space}{title}" if title else f"\n{space}{key}: the {kind.KIND}"
    for part in describe(kind):
        yield from wrapped(f"{part.name}: {part.summary}", f"{space}  ", f"{space}    ")
        for field in part.fields:
            yield from wrapped(f"{field.name}: {in_words(field)}", f"{space}      ", f"{space}        ")
    for name, inner in inner_kinds(kind).items():
        yield from alternatives(f"{key}.{name}", inner, seen, indent)


def in_words(field: FieldDescription) -> str:
    """The default, the bounds and the meaning of a field."""
    default = field.default and f"default {field.default}"
    return ", ".join(filter(None, [default, field.bounds, field.doc]))
