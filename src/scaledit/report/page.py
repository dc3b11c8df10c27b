"""The pieces of a page: tables, pictures inside the file, figures in one style."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Mapping, Sequence
from string import Template
from typing import TYPE_CHECKING

import numpy as np

from scaledit.evaluation.result import Result, side_by_side

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DARK, LIGHT = "#08519c", "#9ecae1"


def page(title: str, sections: Sequence[str]) -> str:
    body = "\n".join(section for section in sections if section)
    return Template(PAGE).substitute(title=html.escape(title), body=body)


def facts(rows: Mapping[str, str]) -> str:
    """Two columns: what, and its value."""
    cells = "".join(f"<tr><th>{key}</th><td>{value}</td></tr>" for key, value in rows.items())
    return f"<table>{cells}</table>"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f"<th>{html.escape(cell)}</th>" for cell in header)
    body = "".join(
        "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in rows
    )
    return f"<table><tr>{head}</tr>{body}</table>"


def results(shown: Sequence[Result], real: str | None = None) -> str:
    """Results side by side, the real images' own figures last if they have some (called `real`), then the
    protocol of the first, and every warning once."""
    header, rows = side_by_side(shown)
    if real is not None:
        rows.append([real, *(_real(shown[0], i) for i in range(len(header) - 1))])
    warnings = dict.fromkeys(warning for result in shown for warning in result.warnings)
    listed = "".join(f"<li>{html.escape(warning)}</li>" for warning in warnings)
    protocol = {key: html.escape(str(value)) for key, value in shown[0].protocol.items()}
    return (
        table(header, rows)
        + (f"<ul class='small'>{listed}</ul>" if listed else "")
        + f"<details><summary>protocol</summary>{facts(protocol)}</details>"
    )


def _real(result: Result, column: int) -> str:
    from scaledit.evaluation.result import TITLES

    key = [key for key in TITLES if key in result.figures][column]
    value = result.figures[key].real
    return "" if value is None else f"{value:.4g}"


def row(pictures: Mapping[str, bytes], width: int) -> str:
    """PNGs beside each other, a caption below each."""
    figures = "".join(
        f"<figure>{image(png, width, caption)}<figcaption>{html.escape(caption)}</figcaption></figure>"
        for caption, png in pictures.items()
    )
    return f"<div class='row'>{figures}</div>"


def image(png: bytes, width: int, alt: str) -> str:
    data = base64.b64encode(png).decode()
    return f"<img alt='{html.escape(alt)}' style='width:{width}px' src='data:image/png;base64,{data}'>"


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
