"""A page from its template, and what goes into one: results as a table, pictures, plots in one style.

    render("run.html", title="demo", ...)  ->  one HTML file        values  --escaped by Jinja2-->  text in it

What a page says, and how, is in report/templates. Every value is text, whoever wrote it, and is escaped when
it comes into the page: only the templates' own tags are markup.
"""

from __future__ import annotations

import base64
import functools
import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from scaledit.errors import printable
from scaledit.evaluation.result import Result, side_by_side

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DARK, LIGHT = "#08519c", "#9ecae1"
LONGEST_TEXT = 100_000
"""Characters of one piece of text; what is longer is cut, and the page says so."""


@functools.cache
def templates() -> Environment:
    """Of report/templates: what they show is escaped, a value that is not given is an error."""
    environment = Environment(
        loader=PackageLoader("scaledit.report"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=readable,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["base64"] = lambda png: Markup(base64.b64encode(png).decode())
    return environment


def render(template: str, **values: object) -> str:
    """A page: `template`, a file of report/templates, filled with `values`."""
    return templates().get_template(template).render(values)


def readable(value: object) -> str:
    """What a page shows of a value: what is no writing, or turns its direction, as its code; not more than
    LONGEST_TEXT. What a template has made is left as it is."""
    if isinstance(value, Markup):
        return value
    text = str(value)
    if len(text) > LONGEST_TEXT:
        text = f"{text[:LONGEST_TEXT]} ... (and {len(text) - LONGEST_TEXT} more characters)"
    return "".join(c if c in "\n\t" else printable(c) for c in text)


class Results(NamedTuple):
    """Results side by side: one row each. warnings: of any of them, each once. protocol: of the first."""

    header: list[str]
    rows: list[list[str]]
    warnings: list[str]
    protocol: Mapping[str, Any]


def results(shown: Sequence[Result], real: str | None = None) -> Results:
    """real: the name of a last row, with the real images' own figures, if they have some."""
    header, rows = side_by_side(shown)
    if real is not None:
        rows.append([real, *(_real(shown[0], column) for column in range(len(header) - 1))])
    warnings = dict.fromkeys(str(warning) for result in shown for warning in result.warnings)
    return Results(header, rows, list(warnings), shown[0].protocol)


def _real(result: Result, column: int) -> str:
    shown = list(result.columns.values())[column]
    value = result.metrics[shown.key].real
    return "" if value is None else f"{value:.{shown.digits}g}"


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


def rendered(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=160)
    return buffer.getvalue()
