"""Output to a terminal. Names from elsewhere are escaped, so that they cannot act on the terminal.

    a name (of a file, a class, a recipe, a device)  ->  errors.printable  ->  plain text, never markup

Numbers are never truncated or wrapped: a table has its full width in a pipe, and on a narrower terminal each
of its rows becomes a block of lines.

    say, say_json, facts, note, table, warn    results, on stdout           always printed
    complain, say_on                           errors and warnings, stderr  always printed
    inform, inform_on, progress bars           information                  not printed after quiet()
"""

from __future__ import annotations

import io
import json
import os
import shutil
import sys
import textwrap
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from scaledit.errors import printable

if TYPE_CHECKING:
    from rich.console import Console

GAP = 2
"""Spaces between the columns of a table."""
NARROWEST = 20
"""Columns that prose is wrapped to at least."""
QUIET = "SCALEDIT_QUIET"
"""The environment variable that turns progress and information off if it is 1. Child processes inherit it."""


def quiet() -> None:
    """Turns progress bars and informational lines off for the rest of this process and for its children.
    Results, warnings and errors are still printed."""
    os.environ[QUIET] = "1"


def is_quiet() -> bool:
    """Whether progress and information are turned off, by `quiet` or by the environment."""
    return os.environ.get(QUIET, "0") not in ("", "0")


def survive() -> None:
    """Makes stdout and stderr escape characters that their encoding lacks (C locales, ASCII pipes) instead of
    failing. Call it once, before anything is printed."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def say(*lines: object) -> None:
    """Prints a result, each argument as one line on stdout."""
    for line in lines:
        print(printable(line))
    sys.stdout.flush()


def inform(*lines: object) -> None:
    """Prints information about the work, each argument as one line on stdout; nothing after `quiet`."""
    if not is_quiet():
        say(*lines)


def say_json(value: Any) -> None:
    """Prints one line of JSON on stdout, for programs."""
    # DEL is the only character that a terminal acts on and JSON does not escape.
    print(json.dumps(value).replace("\x7f", "\\u007f"), flush=True)


def complain(message: object) -> None:
    """Prints one line on stderr, prefixed with the program's name."""
    print(f"scaledit: {printable(message)}", file=sys.stderr, flush=True)


def console(*, stderr: bool = False) -> Console:
    """A console for progress and colors that treats all text as plain, without markup or emoji names."""
    from rich.console import Console

    return Console(stderr=stderr, markup=False, emoji=False, highlight=False)


def say_on(console: Console, line: object) -> None:
    """Prints a warning or an error as one line on a console, above its progress bar."""
    from rich.text import Text

    console.print(Text(printable(line)), soft_wrap=True)


def inform_on(console: Console, line: object) -> None:
    """Prints information as one line on a console, above its progress bar; nothing after `quiet`."""
    if not is_quiet():
        say_on(console, line)


def warn(message: object) -> None:
    """Prints a warning on stdout, as part of a result."""
    from rich.text import Text

    console().print(Text.assemble(("warning", "yellow"), f": {printable(message)}"), soft_wrap=True)


def facts(rows: Iterable[tuple[str, object]], width: int) -> None:
    """Prints one line per label and value. width: columns of the labels."""
    columns = _columns()
    for label, value in rows:
        start, text = f"  {printable(label):<{width}}", printable(value)
        for line in _folded(f"{start}{text}", " " * len(start), columns):
            print(line)
    sys.stdout.flush()


def note(text: object) -> None:
    """Prints prose below a table."""
    for line in _folded(f"  {printable(text)}", "  ", _columns()):
        print(line)
    sys.stdout.flush()


def table(header: Sequence[str], rows: Iterable[Sequence[str]], title: str = "") -> None:
    """Prints a table, the first column left-aligned and the others right-aligned. On a terminal that is too
    narrow, each row becomes a block of lines. No cell is truncated."""
    from rich.text import Text

    header, cells = [printable(name) for name in header], [[printable(cell) for cell in row] for row in rows]
    columns, out = _columns(), console()
    widths = [max(_width(row[i]) for row in (header, *cells)) for i in range(len(header))]
    if title:
        for line in _folded(printable(title), "", columns):
            print(line)
    if columns is None or sum(widths) + GAP * (len(widths) - 1) <= columns:
        sys.stdout.flush()
        out.print(Text(_aligned(header, widths), "bold"), soft_wrap=True)
        lines = [_aligned(row, widths) for row in cells]
    else:
        lines = [line for row in cells for line in _block(header, row, columns)]
    for line in lines:
        print(line)
    sys.stdout.flush()


def _aligned(row: Sequence[str], widths: Sequence[int]) -> str:
    space = [" " * (width - _width(cell)) for cell, width in zip(row, widths, strict=True)]
    first = f"{row[0]}{space[0]}"
    rest = (f"{before}{cell}" for before, cell in zip(space[1:], row[1:], strict=True))
    return (" " * GAP).join([first, *rest]).rstrip()


def _block(header: Sequence[str], row: Sequence[str], columns: int) -> list[str]:
    """A row as lines: its first cell, then the name and value of each cell that is not empty. A value that
    does not fit beside its name goes below it, broken between words only."""
    lines = _folded(row[0], "  ", columns)
    width = max(map(_width, header[1:]), default=0)
    for name, cell in zip(header[1:], row[1:], strict=True):
        if not cell:
            continue
        start = f"  {name}{' ' * (width - _width(name))}"
        if _width(start) + GAP + _width(cell) <= columns:
            lines.append(f"{start}{' ' * GAP}{cell}")
        else:
            lines += [f"  {name}", *_folded(f"    {cell}", "    ", columns)]
    return lines


def _folded(text: str, indent: str, columns: int | None) -> list[str]:
    """`text` as lines for a terminal, broken between words only; unchanged for a pipe."""
    if columns is None:
        return [text]
    lines = textwrap.wrap(
        text,
        max(columns, len(indent) + NARROWEST),
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
    )
    return lines or [text]


def _columns() -> int | None:
    """The width of the terminal; None if stdout is a pipe or a file."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def _width(text: str) -> int:
    """The columns that `text` takes on a terminal."""
    from rich.cells import cell_len

    return cell_len(text)
