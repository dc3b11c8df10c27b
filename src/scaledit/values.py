"""Values that somebody wrote (TOML, JSON, a command line, a call), checked against the types of a dataclass.

    steps: int = field(50, ge=1, doc="of the grid")        the type, the bounds and the meaning stand together

One definition for recipes, overrides, config.json and Python callers. Imports no torch.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import types
from collections.abc import Callable, Mapping
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from scaledit.errors import UsageError, did_you_mean, shown

LARGEST = 1 << 63
"""Whole numbers must fit into 64 bits."""
KINDS = {int: "a whole number", float: "a number", bool: "true or false", str: "a string"}


def field(
    default: Any = dataclasses.MISSING,
    *,
    ge: float | None = None,
    gt: float | None = None,
    le: float | None = None,
    lt: float | None = None,
    doc: str = "",
    none: str = "",
    inner: bool = False,
) -> Any:
    """A field of a part or of a section of a config.

    default: its value where none is given; without one it must be given. ge, gt, le, lt: its bounds (at
    least, above, at most, below); floats must be finite in any case. doc: what it means, with units, as
    --help and docs show it. none: the word that means None in recipes, protocols and on the command line,
    of a field that may be None ("all" channels). inner: it is not the user's to set, in no recipe and no
    protocol (what a part wraps).
    """
    bounds = {
        name: bound for name, bound in (("ge", ge), ("gt", gt), ("le", le), ("lt", lt)) if bound is not None
    }
    metadata = {"bounds": bounds, "doc": doc, "none": none, "inner": inner}
    return dataclasses.field(default=default, metadata=metadata)


SAID = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}
HOLDS: Mapping[str, Callable[[Any, float], bool]] = {
    "ge": lambda value, bound: value >= bound,
    "gt": lambda value, bound: value > bound,
    "le": lambda value, bound: value <= bound,
    "lt": lambda value, bound: value < bound,
}


def own_fields(kind: type) -> list[dataclasses.Field[Any]]:
    """The fields that a user may set: all but the inner ones."""
    return [one for one in dataclasses.fields(kind) if not one.metadata.get("inner")]


@functools.cache
def hints(kind: type) -> dict[str, Any]:
    """{field: type} of what a user may set in a dataclass."""
    every = get_type_hints(kind)
    return {one.name: every[one.name] for one in own_fields(kind)}


def check_bounds(value: Any, where: str = "") -> None:
    """Raises UsageError where a field of the dataclass instance `value` is beyond its bounds, or a float is
    not finite. where: what stands before a field's name in the message, as in "sample.sampler."."""
    for one in own_fields(type(value)):
        held = getattr(value, one.name)
        if not isinstance(held, int | float) or isinstance(held, bool):
            continue
        if isinstance(held, float) and not math.isfinite(held):
            raise UsageError(f"{where}{one.name} must be finite, got {held}")
        for name, bound in one.metadata.get("bounds", {}).items():
            if not HOLDS[name](held, bound):
                raise UsageError(f"{where}{one.name} must be {SAID[name]} {bound:,}, got {held:,}")


def bounds_in_words(one: dataclasses.Field[Any]) -> str:
    """'at least 0, below 1', or ''."""
    return ", ".join(f"{SAID[name]} {bound:,}" for name, bound in one.metadata.get("bounds", {}).items())


def known(word: str, words: Mapping[str, Any] | list[str], what: str) -> None:
    """Raises UsageError naming the nearest of `words` where `word` is none of them."""
    if word not in words:
        raise UsageError(f"unknown {what} {shown(word)}{did_you_mean(word, words)}")


def convert(kind: Any, key: str, value: Any, nested: Callable[[Any, str, Any], Any] | None = None) -> Any:
    """`value` as the type `kind`; ints are taken for floats and lists for tuples, nothing else is converted.

    key: what the value is called in messages. nested: what makes values of types that are not known here
    (parts of a recipe); it is called with (kind, key, value) and returns NotImplemented for those that it
    does not know. Raises UsageError.
    """
    if nested is not None and (made := nested(kind, key, value)) is not NotImplemented:
        return made
    origin = get_origin(kind)
    if origin is Literal:
        return _literal(get_args(kind), key, value)
    if origin in (Union, types.UnionType):
        for option in get_args(kind):
            try:
                return convert(option, key, value, nested)
            except UsageError:
                continue
        raise UsageError(f"{key} cannot be {shown(value)}")
    if origin is tuple:
        items = get_args(kind)
        if items[-1] is Ellipsis:
            items = items[:1] * (len(value) if isinstance(value, list | tuple) else 1)
        if not isinstance(value, list | tuple) or len(value) != len(items):
            raise UsageError(f"{key} must be a list of {len(items)} values, got {shown(value)}")
        return tuple(
            convert(item, f"{key}.{i}", one, nested) if nested else convert(item, key, one)
            for i, (item, one) in enumerate(zip(items, value, strict=True))
        )
    if isinstance(value, int) and not -LARGEST <= value < LARGEST:
        raise UsageError(f"{key} must be a number of at most 64 bits, got {shown(value)}")
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if kind is type(None) and value is None:
        return None
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise UsageError(f"{key} must be {KINDS.get(kind, kind)}, got {shown(value)}")
    if isinstance(value, str) and not is_text(value):
        raise UsageError(f"{key} must be text that a file's name can hold, got {shown(value)}")
    return value


def _literal(options: tuple[Any, ...], key: str, value: Any) -> Any:
    if all(isinstance(option, str) for option in options) and not isinstance(value, Mapping | list):
        value = str(value) if not isinstance(value, int) or abs(value) < LARGEST else shown(value)
    if value not in options:
        raise UsageError(f"{key} is {shown(value)}{did_you_mean(shown(value), map(str, options))}")
    return value


def is_text(value: str) -> bool:
    """Whether it is without NUL, and without halves of characters that are no bytes of a file's name."""
    try:
        value.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return False
    return "\0" not in value
