"""All that reaches a terminal goes through here, so that a name in it can be read and do nothing else.

    a name (of a file, a class, a recipe, a device)  ->  errors.printable  ->  plain text, never markup

Numbers are never cut off or broken: a table is as wide as it is in a pipe, and where a terminal is narrower
each of its rows becomes a block of lines.
"""

from __future__ import annotations

import io
import json
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
"""Columns that prose is folded to at least."""


def survive() -> None:
    """Lets stdout and stderr print what their encoding lacks, escaped, instead of failing: C locales, ASCII
    pipes. To be called once, before anything is printed."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def say(*lines: object) -> None:
    """Each as one line on stdout, at once."""
    for line in lines:
        print(printable(line))
    sys.stdout.flush()


def say_json(value: Any) -> None:
    """One line on stdout that a program reads."""
    # All that JSON leaves bare of what a terminal acts on is DEL.
    print(json.dumps(value).replace("\x7f", "\\u007f"), flush=True)


def complain(message: object) -> None:
    """One line on stderr that says who speaks."""
    print(f"scaledit: {printable(message)}", file=sys.stderr, flush=True)


def console(*, stderr: bool = False) -> Console:
    """For progress and colours: no text is taken for markup, an emoji's name or something to colour."""
    from rich.console import Console

    return Console(stderr=stderr, markup=False, emoji=False, highlight=False)


def say_on(console: Console, line: object) -> None:
    """One line on a console, above the progress that it shows."""
    from rich.text import Text

    console.print(Text(printable(line)), soft_wrap=True)


def warn(message: object) -> None:
    """One line of a result that is to be seen, on stdout."""
    from rich.text import Text

    console().print(Text.assemble(("warning", "yellow"), f": {printable(message)}"), soft_wrap=True)


def facts(rows: Iterable[tuple[str, object]], width: int) -> None:
    """A label and its value a line. width: of the labels, in columns."""
    columns = _columns()
    for label, value in rows:
        start, text = f"  {printable(label):<{width}}", printable(value)
        for line in _folded(f"{start}{text}", " " * len(start), columns):
            print(line)
    sys.stdout.flush()


def note(text: object) -> None:
    """Prose below a table."""
    for line in _folded(f"  {printable(text)}", "  ", _columns()):
        print(line)
    sys.stdout.flush()


def table(header: Sequence[str], rows: Iterable[Sequence[str]], title: str = "") -> None:
    """A column a name of `header`, the first to the left, the others to the right; on a terminal that is too
    narrow a block of lines a row. Every cell is printed whole."""
    from rich.text import Text

    header, cells = [printable(name) for name in header], [[printable(cell) for cell in row] for row in rows]
    columns, out = _columns(), console()
    widths = [max(_width(row[i]) for row in (header, *cells)) for i in range(len(header))]
    if title:
        print(printable(title))
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
    """A row as lines: its first cell, then name and value of each that is not empty. What does not fit beside
    its name stands below it."""
    lines = [row[0]]
    width = max(map(_width, header[1:]), default=0)
    for name, cell in zip(header[1:], row[1:], strict=True):
        if not cell:
            continue
        start = f"  {name}{' ' * (width - _width(name))}"
        if _width(start) + GAP + _width(cell) <= columns:
            lines.append(f"{start}{' ' * GAP}{cell}")
        else:
            lines += [f"  {name}", f"    {cell}"]
    return lines


def _folded(text: str, indent: str, columns: int | None) -> list[str]:
    """`text` in lines for a terminal, broken between words only; as it is for a pipe."""
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
    """Of the terminal that stdout is; None for a pipe or a file."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def _width(text: str) -> int:
    """Columns that a terminal takes for it."""
    from rich.cells import cell_len

    return cell_len(text)
