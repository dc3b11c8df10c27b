"""A study's folder made presentable, from its table alone: figures, fits, verdicts, one page with all of it.

table  ->  table.csv losses.csv study.json pictures/   figures/*.png   fits.json   verdicts.json   report.html
"""

from __future__ import annotations

import io
import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from markupsafe import Markup

from scaledit.callbacks import Progress
from scaledit.evaluation.metric import columns
from scaledit.files.atomic import atomic_bytes
from scaledit.report import page
from scaledit.report.figures import Fit, Plot, all_figures
from scaledit.scaling import comparable, paper, printed_table
from scaledit.scaling import table as tables
from scaledit.scaling.findings import Findings, findings
from scaledit.scaling.fits import Correlation, Estimate, PowerLaw
from scaledit.scaling.frontier import Point
from scaledit.scaling.plan import prefixed, scientific
from scaledit.scaling.table import FINAL, Row, Table
from scaledit.scaling.verdicts import to_json, verdicts

REPORT, FIGURES, FITS, VERDICTS = "report.html", "figures", "fits.json", "verdicts.json"
COLOURS = {"holds": "#1a7f37", "does not hold": "#b3261e", "undecided": "#8a6100", "not measured": "#6e6e6e"}

DPI = 200


def write(table: Table, folder: Path, progress: Progress = lambda done, total: None) -> Path:
    """Makes everything in `folder`, and gives the path of the report. progress: over the figures."""
    tables.write(table, folder)
    found, said = findings(table), verdicts(table)
    drawn = figures(table, found, progress)
    (folder / FIGURES).mkdir(exist_ok=True)
    for name, one in drawn.items():
        atomic_bytes(folder / FIGURES / name, _png(one))
    for name, value in ((FITS, found.to_json()), (VERDICTS, to_json(table, said))):
        atomic_bytes(folder / name, (json.dumps(value, indent=1) + "\n").encode())
    results = [
        _results("The grid, at the end of training", table, table.models()),
        _results("Block designs", table, table.blocks() if len(table.blocks()) > 1 else ()),
        _results("Trained longer, or otherwise", table, _others(table)),
        _results("Guidance", table, table.part(tables.GUIDANCE), guided=True),
        _results("Decoders", table, table.part(tables.DECODER), guided=True),
    ]
    html = page.render(
        "study.html",
        title=table.about.title,
        about=table.about,
        head=_head(table),
        verdicts=said,
        colours=COLOURS,
        fits=_fits(table, found),
        figures=drawn,
        folder=FIGURES,
        results=[one for one in results if one is not None],
    )
    path = folder / REPORT
    atomic_bytes(path, html.encode())
    return path


def figures(table: Table, found: Findings, progress: Progress) -> dict[str, Plot]:
    """By file name, in the paper's order."""
    rivals = None
    if table.about.name == comparable.PAPER:
        rows = [row for row in paper.quality((256, 256)) if "fid" in row.metrics]
        rivals = {row.name.removeprefix("paper: "): row.metrics["fid"].value for row in rows}
    return all_figures(
        table,
        rivals,
        _fit(found.by_gflops, found.law, 1e9),
        _fit(found.by_params, found.by_params_law, 1.0),
        progress,
    )


def _fit(correlation: Correlation | None, law: PowerLaw | None, unit: float) -> Fit:
    """A law over multiply-adds, or parameters, as the figure wants it: over its unit."""
    if correlation is None or law is None:
        return Fit()
    return Fit(
        lambda x: law.curve(np.asarray(x) * unit),
        lambda x: law.band(np.asarray(x) * unit),
        f"r = {_r(correlation)}; exponent {_between(law.exponent)}",
    )


def _r(found: Correlation) -> str:
    return f"{found.r:.2f} (95 %: {found.low:.2f} to {found.high:.2f})"


def _between(found: Estimate) -> str:
    return f"{found.value:.3g} (95 %: {found.low:.3g} to {found.high:.3g})"


def _png(one: Plot) -> bytes:
    buffer = io.BytesIO()
    one.figure.savefig(buffer, format="png", dpi=DPI)
    return buffer.getvalue()


def _head(table: Table) -> dict[str, str]:
    about, final = table.about, table.part(FINAL)
    once = {(row.name, row.steps): row.train_macs for row in final}
    train, sampled = (
        sum(once.values()),
        sum(row.sampling_macs * row.num * row.sample_sets for row in table.rows),
    )
    facts = {
        "Runs": f"{len(once)}, {len(table.rows)} results",
        "Distance": f"{about.distance}; lower is better"
        + ("" if about.floor is None else f"; real images that were held out score {about.floor:.3g}"),
        "Training": f"{scientific(train)} multiply-adds",
    }
    if "hours" in about.made:  # a study that was run, not printed
        facts["Drawing"] = f"{scientific(sampled)} multiply-adds"
        facts["Made on"] = (
            f"{about.made['processor']}, {about.made['hours']} hours of its workers (waiting for other "
            f"programs included), torch {about.made['torch']}, scaledit {about.made['scaledit']}"
        )
    facts["Reproduce"] = Markup("<code>{}</code>").format(page.readable(about.command))
    return facts


def _fits(table: Table, found: Findings) -> dict[str, str]:
    distance = table.about.distance
    rows: dict[str, str] = {}
    if found.by_gflops is not None and found.by_params is not None:
        rows[f"r of log Gflops, log {distance}"] = _r(found.by_gflops)
        rows[f"r of log parameters, log {distance}"] = _r(found.by_params)
    if found.law is not None:
        law = Markup("{} ~ Gflops<sup>-b</sup>").format(page.readable(distance))
        rows[law] = f"b = {_between(found.law.exponent)}"
    if found.floored is not None and found.floored.floor is not None:
        rows["the same with a floor"] = (
            f"floor {_between(found.floored.floor)}, b = {_between(found.floored.exponent)}"
        )
    if found.held_out is not None:
        miss = found.held_out.misses[-1]
        rows["largest model held out"] = (
            f"{miss.actual:.3g} was measured where the others predict {_between(miss.predicted)}: "
            f"{miss.ratio:.2f} of it, {'inside' if miss.inside else 'outside'} the interval"
        )
    if found.staircase:
        rows["best within a training budget"] = "; ".join(
            _step(name, list(points))
            for name, points in itertools.groupby(found.staircase, lambda point: point.name)
        )
    if found.optimal is not None:
        rows["optimal model at a budget"] = f"grows with its power {_between(found.optimal.exponent)}"
    elif found.profiles:
        where = ", ".join(f"{scientific(one.budget)} {one.where}" for one in found.profiles)
        rows["optimal model at a budget"] = f"fewer than three interior minima: {where}"
    interior = [one for one in found.profiles if one.size is not None]
    if interior:
        rows["iso-FLOP minima"] = "; ".join(
            f"at {scientific(one.budget)}: {prefixed(one.size or 0.0)} multiply-adds a pass"
            for one in interior
        )
    if found.sampling.compared:
        beaten, pairs = len(found.sampling.counterexamples), len(found.sampling.compared)
        rows["smaller models with more sampling compute"] = f"{beaten} of {pairs} beat the larger one"
    own = table.about.name == comparable.PAPER
    if not own and found.by_gflops is not None:
        theirs = findings(printed_table.table())
        if theirs.by_gflops is not None and theirs.law is not None:
            rows["the paper's own table 4, by the same code"] = (
                f"r = {_r(theirs.by_gflops)}, b = {_between(theirs.law.exponent)}"
            )
    return rows


def _step(name: str, points: Sequence[Point]) -> str:
    """One model's results in a row that nothing cheaper beats."""
    first, last = points[0], points[-1]
    fell = f"{first.distance:.3g}" + ("" if last is first else f", down to {last.distance:.3g}")
    return f"{name} from {scientific(first.compute)} on ({fell})"


def _others(table: Table) -> list[Row]:
    """Results of trainings that are neither of the grid nor of the comparison of block designs."""
    shown = {tables.training_key(row) for row in (*table.models(), *table.blocks())}
    return [row for row in table.trained() if tables.training_key(row) not in shown]


class Results(NamedTuple):
    title: str
    header: list[str]
    rows: list[list[str]]


def _results(title: str, table: Table, rows: Sequence[Row], guided: bool = False) -> Results | None:
    if not rows:
        return None
    every = columns(*table.about.protocols.values()).values()
    shown = [one for one in every if one.brief and any(one.key in row.metrics for row in rows)]
    header = [
        "",
        "Mparams",
        "Mflops",
        "steps",
        *(["guidance"] if guided else []),
        "loss",
        table.about.distance,
    ]
    header += [one.title for one in shown]
    cells = []
    for row in rows:
        spread = f" ± {row.fd_std:.2g}" if row.fd_std else ""
        name = f"{row.name} {row.decoder}" if row.part == tables.DECODER else row.name
        scale = [f"{row.guidance_scale:g}{'' if row.guided_channels == '3' else ' on all'}"] if guided else []
        known = [row.metric(one.key) for one in shown]
        cells.append(
            [
                name,
                f"{row.params / 1e6:.3g}",
                f"{row.macs / 1e6:,.3g}" if row.macs < 1e9 else f"{row.macs / 1e6:,.0f}",
                f"{row.steps:,}",
                *scale,
                "" if row.loss is None else f"{row.loss:.4f}",
                "" if row.fd is None else f"{row.fd:.4g}{spread}",
                *("" if value is None else f"{value:.3g}" for value in known),
            ]
        )
    return Results(title, header, cells)
