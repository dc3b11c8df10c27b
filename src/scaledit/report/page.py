"""Pages rendered from templates, and their parts: headline numbers, results as a table, images, charts.

    render("run.html", title="demo", ...)  ->  one HTML file        values  --escaped by Jinja2-->  text in it

The text of the pages and their style sheet are in report/templates. All values are escaped as text, whatever
their source: only the templates' own tags are markup. A page needs no other file, no script and no network.
"""

from __future__ import annotations

import base64
import functools
import io
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from scaledit.errors import printable
from scaledit.evaluation.result import Result, side_by_side
from scaledit.part import in_words

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, FAINT, DARK, LIGHT, REAL = "#000000", "#d5dae0", "#08519c", "#9ecae1", "#6e6e6e"
"""Colors of charts: text and axes, grid lines, lines in the foreground and behind them, real images."""
LINES = {
    "#0b61a4": "#66b5ff",
    "#c24e00": "#ff9d57",
    "#00795a": "#4fd3a8",
    "#8b3fa0": "#d59be8",
    "#7d6300": "#e3c14d",
    "#5b646e": "#b9c1ca",
}
"""Colors that tell several lines of one chart apart, on a light page and on a dark one."""
IN_THE_DARK = {INK: "#e6e9ec", FAINT: "#3a424a", DARK: "#7cc0ff", LIGHT: "#33556f", REAL: "#a5adb6", **LINES}
"""What these colors become on a dark page."""
CHART_FONT = 9.5
"""Points."""
PNG_DPI = 240
"""Dots per inch of figures, two per CSS pixel of `figures.style`."""
CSS_DPI = 96
LONGEST_NAME = 60
"""Characters of a class name beside a grid; longer names are cut."""
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
    environment.filters |= {"plain": plain, "unbroken": unbroken}
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
    return "".join(c if c in "\n\t\u00a0" else printable(c) for c in text)


def plain(value: object) -> object:
    """The value of a protocol in words: parts as `in_words`, yes and no, none; text and markup unchanged."""
    if value is None or isinstance(value, bool):
        return {None: "none", True: "yes", False: "no"}[value]
    return in_words(value) if isinstance(value, list | tuple | Mapping) else value


def unbroken(text: str) -> str:
    """`text` without line breaks inside "95 %" and before an interval: "(95 %: 0.1 to 0.2)"."""
    return re.sub(r"\(95 %:[^()]*\)|\d %", lambda found: found[0].replace(" ", "\u00a0"), text)


class Card(NamedTuple):
    """A headline number."""

    name: str
    value: str
    note: str = ""


class Sheet(NamedTuple):
    """A grid of images. width, height: in CSS pixels. enlarged: whether its pixels are meant to be seen."""

    png: bytes
    width: int
    height: int
    alt: str
    enlarged: bool


def sheet(png: bytes, alt: str, widest: int, enlarged: bool) -> Sheet:
    """A grid at its own size, or `widest` CSS pixels wide if that is less. Raises ValueError if `png` is
    not an image."""
    from PIL import Image

    try:
        width, height = Image.open(io.BytesIO(png)).size
    except Exception as error:  # Pillow raises many types for damaged bytes
        raise ValueError("it cannot be read as an image") from error
    shown = min(width, widest)
    return Sheet(png, shown, max(1, round(height * shown / width)), alt, enlarged)


def row_names(names: Sequence[object]) -> list[str]:
    """The names beside the rows of a grid, long ones cut."""
    return [str(name) if len(str(name)) <= LONGEST_NAME else f"{str(name)[:LONGEST_NAME]}…" for name in names]


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


class Chart(NamedTuple):
    """A plot as an SVG that follows the color scheme of the reader. width, height: in CSS pixels."""

    svg: bytes
    width: int
    height: int
    alt: str


def axes(width: float, height: float, xlabel: str, ylabel: str) -> tuple[Figure, Axes]:
    """An empty plot; width and height in inches."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure  # 0.5 s to import

    with rc_context({"font.size": CHART_FONT, "text.parse_math": False}):
        figure = Figure(figsize=(width, height), layout="constrained")
        plot = figure.subplots()
        plot.set_xlabel(readable(xlabel))
        plot.set_ylabel(readable(ylabel))
        plot.spines[["top", "right"]].set_visible(False)
        plot.grid(axis="y", color=FAINT, linewidth=0.8)
        plot.set_axisbelow(True)
    return figure, plot


def chart(figure: Figure, alt: str) -> Chart:
    """The chart of a plot. Its text is text, in the reader's font."""
    from matplotlib import rc_context

    buffer = io.StringIO()
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "scaledit"}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    svg = buffer.getvalue()
    for i, color in enumerate(IN_THE_DARK):
        svg = svg.replace(color, f"var(--c{i})")
    light = "".join(f"--c{i}: {color};" for i, color in enumerate(IN_THE_DARK))
    dark = "".join(f"--c{i}: {color};" for i, color in enumerate(IN_THE_DARK.values()))
    style = (
        f"svg {{{light}}} text {{font-family: system-ui, sans-serif !important; fill: var(--c0)}}"
        f"@media (prefers-color-scheme: dark) {{svg {{{dark}}}}}"
    )
    svg = svg.replace("</style>", f"{style}</style>", 1)
    width, height = (round(side * CSS_DPI) for side in figure.get_size_inches())
    return Chart(svg.encode(), width, height, alt)


def rendered(figure: Figure, dpi: int = PNG_DPI) -> bytes:
    """The PNG of a figure, with a palette of 256 colors, a third of the size of one without."""
    from PIL import Image

    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi)
    picture = Image.open(buffer).convert("RGB")
    buffer = io.BytesIO()
    picture.quantize(256, Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE).save(
        buffer, "png", optimize=True
    )
    return buffer.getvalue()
