"""Pages rendered from templates, and their parts: results as a table, pictures, plots in one style.

    render("run.html", title="demo", ...)  ->  one HTML file        values  --escaped by Jinja2-->  text in it

The text of the pages is in report/templates. All values are escaped as text, whatever their source: only the
templates' own tags are markup.
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
"""Characters of one value; longer text is cut, and the page says so."""


@functools.cache
def templates() -> Environment:
    """The templates of report/templates, which escape all values; a missing value is an error."""
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
    """Renders `template`, a file of report/templates, with `values`."""
    return templates().get_template(template).render(values)


def readable(value: object) -> str:
    """A value as a page shows it: control characters and those that turn the direction of writing as their
    codes, and at most LONGEST_TEXT characters. Markup is left as it is."""
    if isinstance(value, Markup):
        return value
    text = str(value)
    if len(text) > LONGEST_TEXT:
        text = f"{text[:LONGEST_TEXT]} ... (and {len(text) - LONGEST_TEXT} more characters)"
    return "".join(c if c in "\n\t" else printable(c) for c in text)


class Results(NamedTuple):
    """Results side by side, one row each. warnings: of all results, without duplicates. protocol: of the
    first."""

    header: list[str]
    rows: list[list[str]]
    warnings: list[str]
    protocol: Mapping[str, Any]


def results(results: Sequence[Result], real: str | None = None) -> Results:
    """real: the name of an additional last row with the metrics of real images, if known."""
    header, rows = side_by_side(results)
    if real is not None:
        columns = results[0].columns.values()
        values = [(results[0].metrics[column.key].real, column.digits) for column in columns]
        rows.append([real, *("" if value is None else f"{value:.{digits}g}" for value, digits in values)])
    warnings = dict.fromkeys(str(warning) for result in results for warning in result.warnings)
    return Results(header, rows, list(warnings), results[0].protocol)


def png(picture: np.ndarray) -> bytes:
    """(H, W, 3) uint8 -> a PNG."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, format="png")
    return buffer.getvalue()


def axes(width: float, height: float, xlabel: str, ylabel: str) -> tuple[Figure, Axes]:
    """An empty plot; width and height in inches."""
    from matplotlib.figure import Figure  # 0.5 s to import

    figure = Figure(figsize=(width, height), layout="constrained")
    plot = figure.subplots()
    plot.set_xlabel(xlabel)
    plot.set_ylabel(ylabel)
    plot.spines[["top", "right"]].set_visible(False)
    return figure, plot


def rendered(figure: Figure, dpi: int = 160) -> bytes:
    """The PNG of a plot."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi)
    return buffer.getvalue()
