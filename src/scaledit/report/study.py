"""The report of a study, from its table alone: figures, fits, verdicts, and one page with all of them.

table  ->  table.csv losses.csv study.json pictures/   figures/*.png   fits.json   verdicts.json   report.html
"""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from markupsafe import Markup

from scaledit.callbacks import Progress
from scaledit.errors import counted
from scaledit.evaluation.metric import columns
from scaledit.files.atomic import atomic_bytes
from scaledit.report import page
from scaledit.report.figures import Fit, Plot, all_figures
from scaledit.report.page import Card
from scaledit.scaling import comparable, paper, printed_table
from scaledit.scaling import table as tables
from scaledit.scaling.findings import Findings, findings
from scaledit.scaling.fits import Correlation, PowerLaw
from scaledit.scaling.frontier import Point
from scaledit.scaling.plan import prefixed, scientific
from scaledit.scaling.table import FINAL, Row, Table
from scaledit.scaling.verdicts import Verdict, to_json, verdicts

REPORT, FIGURES, FITS, VERDICTS = "report.html", "figures", "fits.json", "verdicts.json"
COLORS = {"holds": "good", "does not hold": "bad", "undecided": "open", "not measured": "none"}
"""Classes of the style sheet by outcome."""


def write(table: Table, folder: Path, progress: Progress = lambda done, total: None) -> Path:
    """Writes everything into `folder`, and returns the path of the page. progress: over the figures."""
    tables.write(table, folder)
    fits, judged = findings(table), verdicts(table)
    plots = figures(table, fits, progress)
    (folder / FIGURES).mkdir(exist_ok=True)
    for name, plot in plots.items():
        atomic_bytes(folder / FIGURES / name, page.rendered(plot.figure))
    for name, value in ((FITS, fits.to_json()), (VERDICTS, to_json(table, judged))):
        atomic_bytes(folder / name, (json.dumps(value, indent=1) + "\n").encode())
    results = [
        _results("The grid, at the end of training", table, table.models()),
        _results("Block designs", table, table.blocks() if len(table.blocks()) > 1 else ()),
        _results("Models outside the grid", table, _others(table)),
        _results("Guidance", table, table.part(tables.GUIDANCE), guided=True),
        _results("Decoders", table, table.part(tables.DECODER), guided=True),
    ]
    html = page.render(
        "study.html",
        title=table.about.title,
        about=table.about,
        head=_head(table, judged),
        verdicts=[verdict for verdict in judged if verdict.outcome != "not measured"],
        unmeasured=[verdict for verdict in judged if verdict.outcome == "not measured"],
        colors=COLORS,
        fits=_fits(table, fits),
        figures=plots,
        folder=FIGURES,
        results=[result for result in results if result is not None],
    )
    path = folder / REPORT
    atomic_bytes(path, html.encode())
    return path


def figures(table: Table, fits: Findings, progress: Progress) -> dict[str, Plot]:
    """By file name, in the paper's order."""
    rivals = None
    if table.about.name == comparable.PAPER:
        rows = [row for row in paper.quality((256, 256)) if "fid" in row.metrics]
        rivals = {row.name.removeprefix("paper: "): row.metrics["fid"].value for row in rows}
    by_gflops, by_params = _fit(fits.by_gflops, fits.law, 1e9), _fit(fits.by_params, fits.by_params_law, 1.0)
    return all_figures(table, rivals, by_gflops, by_params, progress)


def _fit(correlation: Correlation | None, law: PowerLaw | None, unit: float) -> Fit:
    """A law over multiply-adds, or parameters, as one over the unit of the figure's axis."""
    if correlation is None or law is None:
        return Fit()
    return Fit(
        lambda x: law.curve(np.asarray(x) * unit),
        lambda x: law.band(np.asarray(x) * unit),
        f"r = {_r(correlation)}; exponent {law.exponent}",
    )


def _r(correlation: Correlation) -> str:
    return f"{correlation.r:.2f} (95 %: {correlation.low:.2f} to {correlation.high:.2f})"


def _head(table: Table, judged: Sequence[Verdict]) -> list[Card]:
    about, final = table.about, table.part(FINAL)
    trained = {(row.name, row.steps): row.train_macs for row in final}
    outcomes = Counter(verdict.outcome for verdict in judged)
    others = ", ".join(f"{outcomes[o]} {o}" for o in COLORS if outcomes[o] and o != "holds")
    cards = [
        Card("Claims that hold", f"{outcomes['holds']} of {len(judged)}", others),
        Card("Runs", f"{len(trained):,}", counted(len(table.rows), "result")),
    ]
    rows = [row for row in table.rows if row.part in (FINAL, tables.GUIDANCE) and row.fd is not None]
    if rows:
        best = min(rows, key=lambda row: row.distance)
        guided = "" if best.guidance_scale == 1 else f", guidance scale {best.guidance_scale:g}"
        note = f"{best.model} after {counted(best.steps, 'step')}{guided}"
        cards.append(Card(f"Best {about.distance}", f"{best.distance:.3g}", note))
    if about.floor is not None:
        cards.append(
            Card(f"{about.distance} of real images", f"{about.floor:.3g}", "held out; lower is better")
        )
    cards.append(Card("Training", scientific(sum(trained.values())), "multiply-adds of all runs"))
    if "hours" in about.made:  # not the paper's
        sampled = sum(row.sampling_macs * row.num * row.sample_sets for row in table.rows)
        cards.append(Card("Sampling", scientific(sampled), "multiply-adds of all evaluated images"))
        cards.append(Card("Time", f"{about.made['hours']} h", "wall-clock time of all workers"))
    return cards


def _fits(table: Table, fits: Findings) -> dict[str, str]:
    distance = table.about.distance
    rows: dict[str, str] = {}
    if fits.by_gflops is not None and fits.by_params is not None:
        rows[f"Correlation of log {distance} with log Gflops"] = f"r = {_r(fits.by_gflops)}"
        rows[f"Correlation of log {distance} with log parameters"] = f"r = {_r(fits.by_params)}"
    if fits.law is not None:
        law = Markup("{} ~ Gflops<sup>-b</sup>").format(page.readable(distance))
        rows[law] = f"b = {fits.law.exponent}"
    if fits.floored is not None and fits.floored.floor is not None:
        rows["Power law with a floor"] = f"floor {fits.floored.floor}, b = {fits.floored.exponent}"
    if fits.held_out is not None:
        miss = fits.held_out.misses[-1]
        inside = "inside" if miss.inside else "outside"
        rows["Largest model, held out"] = f"{miss.describe()}: {miss.ratio:.2f} times, {inside} the interval"
    if fits.staircase:
        rows["Best model by training compute"] = "; ".join(
            _step(name, list(points))
            for name, points in itertools.groupby(fits.staircase, lambda point: point.name)
        )
    if fits.optimal is not None:
        rows["Compute-optimal model size"] = f"grows as compute to the power {fits.optimal.exponent}"
    elif fits.profiles:
        where = ", ".join(f"{scientific(profile.budget)} {profile.where}" for profile in fits.profiles)
        rows["Compute-optimal model size"] = f"not fitted: fewer than three interior minima ({where})"
    minima = [(profile.budget, profile.size) for profile in fits.profiles if profile.size is not None]
    if minima:
        rows["Iso-FLOP minima"] = "; ".join(
            f"{prefixed(size)} multiply-adds per forward pass at {scientific(budget)}"
            for budget, size in minima
        )
    if fits.sampling.compared:
        beaten, pairs = len(fits.sampling.counterexamples), len(fits.sampling.compared)
        rows["Smaller models with more sampling compute"] = f"{beaten} of {pairs} beat the larger model"
    if table.about.name != comparable.PAPER and fits.by_gflops is not None:
        printed = findings(printed_table.table())
        if printed.by_gflops is not None and printed.law is not None:
            rows["The paper's table 4, by the same code"] = (
                f"r = {_r(printed.by_gflops)}, b = {printed.law.exponent}"
            )
    return {name: page.unbroken(value) for name, value in rows.items()}


def _step(name: str, points: Sequence[Point]) -> str:
    """Consecutive results of one model that no cheaper one beats."""
    first, last = points[0], points[-1]
    fell = f"{first.distance:.3g}" + ("" if last is first else f" to {last.distance:.3g}")
    return f"{name} from {scientific(first.compute)} ({fell})"


def _others(table: Table) -> list[Row]:
    """Training runs that belong neither to the grid nor to the comparison of block designs."""
    known = {tables.training_key(row) for row in (*table.models(), *table.blocks())}
    return [row for row in table.trained() if tables.training_key(row) not in known]


class Results(NamedTuple):
    title: str
    header: list[str]
    rows: list[list[str]]


def _guidance(row: Row) -> str:
    """1.5, 1.5 on all, 1.5 with interval (low 0.0, high 0.9)"""
    channels = "" if row.guided_channels == "3" else " on all"
    others = f" with {row.other_guidance}" if row.other_guidance else ""
    return f"{row.guidance_scale:g}{channels}{others}"


def _results(title: str, table: Table, rows: Sequence[Row], guided: bool = False) -> Results | None:
    if not rows:
        return None
    metrics = [
        column
        for column in columns(*table.about.protocols.values()).values()
        if column.brief and any(column.key in row.metrics for row in rows)
    ]
    header = [
        "",
        "parameters (M)",
        "multiply-adds (M)",
        "steps",
        *(["guidance"] if guided else []),
        "loss",
        table.about.distance,
    ]
    header += [column.title for column in metrics]
    cells = []
    for row in rows:
        spread = f" ± {row.fd_std:.2g}" if row.fd_std else ""
        name = f"{row.name} {row.decoder}" if row.part == tables.DECODER else row.name
        scale = [_guidance(row)] if guided else []
        values = [row.metric(column.key) for column in metrics]
        cells.append(
            [
                name,
                f"{row.params / 1e6:.3g}",
                f"{row.macs / 1e6:,.3g}" if row.macs < 1e9 else f"{row.macs / 1e6:,.0f}",
                f"{row.steps:,}",
                *scale,
                "" if row.loss is None else f"{row.loss:.4f}",
                "" if row.fd is None else f"{row.fd:.4g}{spread}",
                *("" if value is None else f"{value:.3g}" for value in values),
            ]
        )
    return Results(title, header, cells)
