"""Checks of numbers, shared by recipes, the command line and Python callers. Nothing is rounded, and values
that Python merely accepts as numbers are refused (True as 1, 1.5 as 1, 2^64 as 0)."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from typing import Any

from scaledit.errors import UsageError

MOST_DIGITS = 6
"""Of a side in pixels."""
SEEDS = range(-(1 << 63), 1 << 64)
"""64 bits, signed or unsigned: torch's range of seeds. -1 and 2^64 - 1 are the same seed."""


def integer(value: Any, name: str, lowest: int | None = None, highest: int | None = None) -> int:
    """`value`, an integer of Python, numpy or torch, as an int. Raises UsageError with `name` for a bool, for
    a float (even 1.0), for anything else that is not an integer, and out of the inclusive bounds."""
    try:
        if isinstance(value, bool) or "bool" in str(getattr(value, "dtype", "")):
            raise TypeError
        number = operator.index(value)
    except TypeError:
        raise UsageError(f"{name} must be a whole number, got {value!r}") from None
    if lowest is not None and number < lowest:
        raise UsageError(f"{name} must be at least {lowest}, got {number}")
    if highest is not None and number > highest:
        raise UsageError(f"{name} must be at most {highest:,}, got {number:,}")
    return number


def seed(value: Any, name: str = "seed") -> int:
    """A seed as an int. Raises UsageError if it is not an integer of 64 bits."""
    number = integer(value, name)
    if number not in SEEDS:
        raise UsageError(f"{name} must fit into 64 bits, from -2^63 to 2^64 - 1; got {number}")
    return number


def finite(value: Any, name: str) -> float:
    """`value` as a finite float. Raises UsageError for a bool, nan, inf and anything that is not a number."""
    try:
        if isinstance(value, bool | str):
            raise TypeError
        number = float(value)
    except (TypeError, ValueError):
        raise UsageError(f"{name} must be a number, got {value!r}") from None
    except OverflowError:  # an int of more than 308 digits
        number = math.inf
    if not math.isfinite(number):
        raise UsageError(f"{name} must be finite, got {number}")
    return number


def image_sizes(words: Sequence[Any], key: str) -> tuple[tuple[int, int], ...]:
    """["24x24", "32x48"] -> heights and widths. Raises UsageError for anything else, and for a size that is
    there twice. key: what lists them, for messages."""
    sizes: list[tuple[int, int]] = []
    for word in words:
        sides = word.lower().split("x") if isinstance(word, str) else []
        if len(sides) != 2 or not all(s.isascii() and s.isdecimal() and len(s) <= MOST_DIGITS for s in sides):
            raise UsageError(
                f'{key} must list sizes such as "32x48" (height x width in pixels), got {word!r}'
            )
        size = int(sides[0]), int(sides[1])
        if not min(size):
            raise UsageError(f"{key} has the size {word}, but both sides must be at least 1")
        if size in sizes:
            raise UsageError(f"{key} has the size {word} twice")
        sizes.append(size)
    return tuple(sizes)


def size_in_words(size: tuple[int, int]) -> str:
    """(32, 48) -> "32x48", height x width, as recipes and the command line write it."""
    return f"{size[0]}x{size[1]}"


def size(count: float) -> str:
    """Bytes for people: 12.3 GB."""
    units = ("bytes", "kB", "MB", "GB", "TB", "PB", "EB")
    power = 0
    while count >= 1000 and power < len(units) - 1:
        count, power = count / 1000, power + 1
    return f"{count:.0f} {units[0]}" if power == 0 else f"{count:,.3g} {units[power]}"


def fits(need: int, have: int, what: str, of: str, fix: str) -> None:
    """Raises UsageError if `need` bytes exceed `have`. what: what takes the bytes. of: where they are, as in
    "of this machine's memory". fix: what to do."""
    if need > have:
        raise UsageError(f"{what} would take {size(need)}, more than the {size(have)} {of}; {fix}")
