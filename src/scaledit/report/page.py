"""The pieces of a page: tables, pictures inside the file, figures in one style.

    text  --escaped-->  Html        html("<td>{}</td>", text)  ->  Html        page(title, [Html, ...])

What is no `Html` is text, whoever wrote it, and is escaped when it comes into a page; so a piece that was put
together by an f-string shows its tags to the reader instead of running them.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from string import Template
from typing import TYPE_CHECKING, Any

import numpy as np

from scaledit.errors import printable
from scaledit.evaluation.result import Result, side_by_side

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DARK, LIGHT = "#08519c", "#9ecae1"
LONGEST_TEXT = 100_000
"""Characters of one piece of text; what is longer is cut, and the page says so."""


class Html(str):
    """A piece of a page: made by `html` and `join` of this module, never of somebody's text."""

    __slots__ = ()


def html(template: str, *values: object, **named: object) -> Html:
    """`template`, which is code, with each {} filled: by a piece of a page as it is, by anything else as
    text."""
    return Html(template.format(*map(escaped, values), **{key: escaped(v) for key, v in named.items()}))


def escaped(value: object) -> Html:
    """A piece of a page as it is; anything else as text in it (also in a quoted attribute)."""
    if isinstance(value, Html):
        return value
    text = str(value)
    if len(text) > LONGEST_TEXT:
        text = f"{text[:LONGEST_TEXT]} ... (and {len(text) - LONGEST_TEXT} more characters)"
    # What is no writing, or turns its direction, is shown as its code.
    return Html(escape("".join(c if c in "\n\t" else printable(c) for c in text)))


def join(pieces: Iterable[object], between: str = "") -> Html:
    """Pieces one after the other; what is none is escaped."""
    return Html(between.join(map(escaped, pieces)))


def page(title: str, sections: Sequence[object]) -> str:
    body = join((section for section in sections if section), "\n")
    return Template(PAGE).substitute(title=escaped(title), body=body)


def facts(rows: Mapping[Any, object]) -> Html:
    """Two columns: what, and its value."""
    cells = join(html("<tr><th>{}</th><td>{}</td></tr>", key, value) for key, value in rows.items())
    return html("<table>{}</table>", cells)


def table(header: Sequence[object], rows: Sequence[Sequence[object]]) -> Html:
    head = join(html("<th>{}</th>", cell) for cell in header)
    body = join(html("<tr>{}</tr>", join(html("<td>{}</td>", cell) for cell in row)) for row in rows)
    return html("<table><tr>{}</tr>{}</table>", head, body)


def results(shown: Sequence[Result], real: str | None = None) -> Html:
    """Results side by side, the real images' own figures last if they have some (called `real`), then the
    protocol of the first, and every warning once."""
    header, rows = side_by_side(shown)
    if real is not None:
        rows.append([real, *(_real(shown[0], i) for i in range(len(header) - 1))])
    warnings = dict.fromkeys(str(warning) for result in shown for warning in result.warnings)
    listed = join(html("<li>{}</li>", warning) for warning in warnings)
    return join(
        [
            table(header, rows),
            html("<ul class='small'>{}</ul>", listed) if listed else "",
            html("<details><summary>protocol</summary>{}</details>", facts(shown[0].protocol)),
        ]
    )


def _real(result: Result, column: int) -> str:
    shown = list(result.columns.values())[column]
    value = result.figures[shown.key].real
    return "" if value is None else f"{value:.{shown.digits}g}"


def row(pictures: Mapping[str, bytes], width: int) -> Html:
    """PNGs beside each other, a caption below each."""
    figures = join(
        html("<figure>{}<figcaption>{}</figcaption></figure>", image(png, width, caption), caption)
        for caption, png in pictures.items()
    )
    return html("<div class='row'>{}</div>", figures)


def image(png: bytes, width: int, alt: str) -> Html:
    data = base64.b64encode(png).decode()
    # Put in as it is: it may be longer than any text.
    return html(
        "<img alt='{}' style='width:{}px' src='data:image/png;base64,{}'>", alt, int(width), Html(data)
    )


def left_out(reasons: Iterable[str]) -> Html:
    """A line that says what a page does not show, and why; nothing for none."""
    said = "; ".join(reasons)
    return html("<p class='small'>Left out: {}.</p>", said) if said else Html()


def png(picture: np.ndarray) -> bytes:
    """(H, W, 3) uint8 -> a PNG."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, format="png")
    return buffer.getvalue()


def axes(width: float, height: float, xlabel: str, ylabel: str) -> tuple[Figure, Axes]:
    """An empty plot in inches."""
    from matplotlib.figure import Figure  # 0.5 s to import

    figure = Figure(figsize=(width, height), layout="constrained")
    plot = figure.subplots()
    plot.set_xlabel(xlabel)
    plot.set_ylabel(ylabel)
    plot.spines[["top", "right"]].set_visible(False)
    return figure, plot


def drawn(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=160)
    return buffer.getvalue()


PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>scaledit: $title</title>
<meta name="viewport" content="width=device-width">
<style>
body { font: 16px/1.5 system-ui, sans-serif; max-width: 1080px; margin: 2em auto; padding: 0 1em }
h1, h2 { font-weight: 600; margin: 1.4em 0 .4em } h1 { margin-top: 0 }
table { border-collapse: collapse } th { font-weight: 600 }
th, td { text-align: left; padding: .2em 1.2em .2em 0; vertical-align: top }
.row { display: flex; flex-wrap: wrap; gap: 1em } figure { margin: 0 }
figcaption { font-size: 14px; color: #555 } img { max-width: 100% } .row img { image-rendering: pixelated }
pre { background: #f5f5f5; padding: .8em; overflow-x: auto; font-size: 14px }
details { margin: .6em 0; font-size: 14px } .small { font-size: 14px; color: #555 }
</style></head><body>
<h1>scaledit: $title</h1>
$body
</body></html>
"""
