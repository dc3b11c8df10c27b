"""Values from TOML, JSON, a command line or a call, checked against the types of a dataclass.

    steps: int = field(50, ge=1, doc="of the grid")        type, bounds and meaning in one place

Recipes, overrides, config.json and Python callers share this definition. Imports no torch.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import os
import types
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from scaledit.errors import UsageError, counted, did_you_mean, shown

LARGEST = 1 << 63
"""Integers must fit into 64 bits."""
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
    path: bool = False,
    added: bool = False,
) -> Any:
    """A field of a part or of a config section.

    default: its value if none is passed; a field without a default is required. ge, gt, le, lt: bounds (at
    least, above, at most, below); floats must be finite in any case. doc: its meaning and unit, shown by
    --help and the documentation. none: the word for None in recipes, protocols and on the command line, such
    as "all" channels. inner: users cannot set it, and no recipe or protocol holds it (what a part wraps).
    added: earlier versions lack it, so it is written only where it differs from its default: old and new
    configs of the same run are then equal.
    """
    bounds = {
        name: bound for name, bound in (("ge", ge), ("gt", gt), ("le", le), ("lt", lt)) if bound is not None
    }
    metadata = {"bounds": bounds, "doc": doc, "none": none, "inner": inner, "path": path, "added": added}
    return dataclasses.field(default=default, metadata=metadata)


BOUND_WORDS = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}
SATISFIES: Mapping[str, Callable[[Any, float], bool]] = {
    "ge": lambda value, bound: value >= bound,
    "gt": lambda value, bound: value > bound,
    "le": lambda value, bound: value <= bound,
    "lt": lambda value, bound: value < bound,
}


def own_fields(kind: type) -> list[dataclasses.Field[Any]]:
    """The fields that a user may set: all but the inner ones."""
    return [item for item in dataclasses.fields(kind) if not item.metadata.get("inner")]


def is_written(item: dataclasses.Field[Any], value: Any) -> bool:
    """Whether configs hold the value of a field; see `added`."""
    return not item.metadata.get("added") or value != item.default


@functools.cache
def hints(kind: type) -> dict[str, Any]:
    """{field: type} of the fields of a dataclass that a user may set."""
    annotations = get_type_hints(kind)
    return {item.name: annotations[item.name] for item in own_fields(kind)}


def check_bounds(instance: Any, where: str = "") -> None:
    """Raises UsageError if a field of the dataclass `instance` is out of its bounds or a float is not finite.
    where: prefix of the field's name in the message, such as "sample.sampler."."""
    for item in own_fields(type(instance)):
        value = getattr(instance, item.name)
        if not isinstance(value, int | float) or isinstance(value, bool):
            continue
        if isinstance(value, float) and not math.isfinite(value):
            raise UsageError(f"{where}{item.name} must be finite, got {value}")
        for name, bound in item.metadata.get("bounds", {}).items():
            if not SATISFIES[name](value, bound):
                raise UsageError(f"{where}{item.name} must be {BOUND_WORDS[name]} {bound:,}, got {value:,}")


def bounds_in_words(item: dataclasses.Field[Any]) -> str:
    """'at least 0, below 1', or ''."""
    return ", ".join(
        f"{BOUND_WORDS[name]} {bound:,}" for name, bound in item.metadata.get("bounds", {}).items()
    )


def expanded(path: str) -> str:
    """A path with a leading ~ or ~user as the home folder that it means; other text as it is."""
    return os.path.expanduser(path) if path.startswith("~") else path


def whole(text: str) -> int:
    """The whole number that a text means, as TOML would write it: 1000, 2_000, 1e3. Raises ValueError if it
    is none."""
    with suppress(ValueError):
        return int(text)
    number = float(text)
    if not number.is_integer():  # also NaN and infinity
        raise ValueError(text)
    return int(number)


def known(word: str, words: Mapping[str, Any] | list[str], what: str) -> None:
    """Raises UsageError with the closest match if `word` is not one of `words`."""
    if word not in words:
        raise UsageError(f"unknown {what} {shown(word)}{did_you_mean(word, words)}")


def convert(kind: Any, key: str, value: Any, nested: Callable[[Any, str, Any], Any] | None = None) -> Any:
    """`value` as the type `kind`. Integers become floats, whole numbers written as floats (1e3) become
    integers, and lists become tuples; nothing else is converted.

    key: the value's name in messages. nested: builds values of other types (the parts of a recipe); it is
    called with (kind, key, value) and returns NotImplemented for types that it does not know. Raises
    UsageError if `value` does not have the type.
    """
    if nested is not None and (built := nested(kind, key, value)) is not NotImplemented:
        return built
    if kind is Any:
        return value
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
        if not isinstance(value, list | tuple):
            raise UsageError(f"{key} must be a list, got {shown(value)}")
        if items[-1] is Ellipsis:
            items = items[:1] * len(value)
        if len(value) != len(items):
            raise UsageError(f"{key} must be a list of {counted(len(items), 'value')}, got {shown(value)}")
        return tuple(
            convert(item, f"{key}.{i}" if nested else key, inner, nested)
            for i, (item, inner) in enumerate(zip(items, value, strict=True))
        )
    if kind is int and isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, int) and not -LARGEST <= value < LARGEST:
        raise UsageError(f"{key} must fit into 64 bits, got {shown(value)}")
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if kind is type(None) and value is None:
        return None
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise UsageError(f"{key} must be {KINDS.get(kind, kind)}, got {shown(value)}")
    if isinstance(value, str) and not is_text(value):
        raise UsageError(f"{key} must be text without zero bytes that UTF-8 can encode, got {shown(value)}")
    return value


def _literal(options: tuple[Any, ...], key: str, value: Any) -> Any:
    if all(isinstance(option, str) for option in options) and not isinstance(value, Mapping | list):
        value = str(value) if not isinstance(value, int) or abs(value) < LARGEST else shown(value)
    if value not in options:
        raise UsageError(f"{key} is {shown(value)}{did_you_mean(shown(value), map(str, options))}")
    return value


def is_text(value: str) -> bool:
    """Whether a file name can hold `value`: it has no NUL and can be encoded as UTF-8."""
    try:
        value.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return False
    return "\0" not in value
