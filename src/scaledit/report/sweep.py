"""The report of a sweep, from its table alone: what was varied, the results by value, and the best.

table  ->  table.csv losses.csv study.json pictures/   figures/*.png   sweep.json   report.html
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from scaledit.callbacks import Progress
from scaledit.data.datasets import attributions
from scaledit.errors import counted
from scaledit.files.atomic import atomic_bytes
from scaledit.report import page
from scaledit.report.figures import sweep as figures
from scaledit.report.page import Card, Sheet
from scaledit.scaling import table as tables
from scaledit.scaling.sweep import LOSS, RULE, Point, Sweep, short, sweep, worded
from scaledit.scaling.table import Table

REPORT, FIGURES, FOUND = "report.html", "figures", "sweep.json"
WIDEST = 320
"""CSS pixels of a grid of samples."""


def write(table: Table, folder: Path, progress: Progress = lambda done, total: None) -> Path:
    """Writes everything into `folder`, and returns the path of the page. progress: over the figures."""
    tables.write(table, folder)
    found = sweep(table)
    plots = figures.all_figures(table, found)
    (folder / FIGURES).mkdir(exist_ok=True)
    for done, (name, plot) in enumerate(plots.items(), 1):
        atomic_bytes(folder / FIGURES / name, page.rendered(plot.figure))
        progress(done, len(plots))
    atomic_bytes(folder / FOUND, (json.dumps(to_json(found), indent=1) + "\n").encode())
    sheets, left_out = _sheets(table, found)
    html = page.render(
        "sweep.html",
        title=table.about.title,
        about=table.about,
        head=_head(table, found),
        verdict=found.verdict(),
        rule=RULE,
        is_judged=found.main is not LOSS,
        header=[*map(short, found.keys), "seeds", *(column.title for column in found.columns), ""],
        rows=[_row(found, point) for point in found.points],
        failures={f"{name} failed": reason for name, reason in table.about.failed.items()},
        figures=plots,
        folder=FIGURES,
        sheets=sheets,
        attributions=attributions(table.about.data_sets) if sheets else (),
        left_out=left_out,
    )
    path = folder / REPORT
    atomic_bytes(path, html.encode())
    return path


def to_json(found: Sweep) -> dict[str, Any]:
    """For programs: every value with its metrics, the best first among `ranked`."""
    return {
        "varied": list(found.keys),
        "decides": found.main.key,
        "verdict": found.verdict(),
        "ranked": [point.title for point in found.ranked()],
        "results": [
            {
                "values": dict(point.values),
                "runs": list(point.runs),
                "metrics": {key: spread._asdict() for key, spread in point.metrics.items()},
                "failed": list(point.failed),
            }
            for point in found.points
        ],
    }


def _head(table: Table, found: Sweep) -> list[Card]:
    about, ranked = table.about, found.ranked()
    runs = sum(len(point.runs) for point in found.points)
    failed = sum(len(point.failed) for point in found.points)
    values = counted(len(found.points), "value" if len(found.keys) == 1 else "combination")
    cards = [Card("Varied", ", ".join(map(short, found.keys)), values)]
    if ranked:
        best = ranked[0].metrics[found.main.key]
        cards.append(Card(f"Best {found.main.title}", best.text(3), ranked[0].title))
    if about.floor is not None:
        cards.append(Card(f"{about.distance} of real images", f"{about.floor:.3g}", "held out"))
    cards.append(Card("Runs", f"{runs:,}", f"{failed} failed" if failed else ""))
    if "hours" in about.made:
        cards.append(Card("Time", f"{about.made['hours']} h", "wall-clock time of all workers"))
    return cards


def _row(found: Sweep, point: Point) -> list[str]:
    cells = [worded(point.values.get(key)) for key in found.keys]
    cells.append(str(max((len(spread.values) for spread in point.metrics.values()), default=0)))
    for column in found.columns:
        spread = point.metrics.get(column.key)
        cells.append("" if spread is None else spread.text(column.digits))
    place = "best" if found.ranked()[:1] == [point] else ""
    place = place or ("not distinguishable from it" if point in found.alike() else "")
    failures = f"{counted(len(point.failed), 'run')} failed" if point.failed else ""
    return [*cells, "; ".join(filter(None, [place, failures]))]


def _sheets(table: Table, found: Sweep) -> tuple[Mapping[str, Sheet], list[str]]:
    """The samples of the first seed of every value, and why some are missing."""
    sheets, left_out = {}, []
    for point in found.points:
        png = table.pictures.get(point.runs[0])
        if png is None:
            left_out.append(f"{point.title} (no samples)")
            continue
        try:
            sheets[point.title] = page.sheet(png, f"samples of {point.title}", WIDEST, enlarged=False)
        except ValueError as error:
            left_out.append(f"{point.title} ({error})")
    return sheets, left_out if sheets else []
