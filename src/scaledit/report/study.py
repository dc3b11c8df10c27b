"""A study's folder made presentable, from its table alone: figures, fits, verdicts, one page with all of it.

table  ->  table.csv losses.csv study.json pictures/   figures/*.png   fits.json   verdicts.json   report.html
"""

from __future__ import annotations

import io
import itertools
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from scaledit.evaluation.result import TITLES
from scaledit.parts import whole
from scaledit.report import page
from scaledit.report.figures import Drawn, Fit, all_figures
from scaledit.report.page import Html, html
from scaledit.scaling import comparable, paper, printed_table
from scaledit.scaling import table as tables
from scaledit.scaling.findings import Findings, findings
from scaledit.scaling.fits import Correlation, Estimate, PowerLaw
from scaledit.scaling.frontier import Point
from scaledit.scaling.plan import prefixed, scientific
from scaledit.scaling.table import FINAL, Row, Table
from scaledit.scaling.verdicts import Verdict, to_json, verdicts

REPORT, FIGURES, FITS, VERDICTS = "report.html", "figures", "fits.json", "verdicts.json"
COLOURS = {"holds": "#1a7f37", "does not hold": "#b3261e", "undecided": "#8a6100", "not measured": "#6e6e6e"}
SHOWN = ("class_accuracy", "precision", "recall", "inception_score", "sfid", "nearest")
"""Metrics in the tables of results, where there are; the figure of metrics has all."""
DPI = 200
PROGRESS = Callable[[int, int], None]


def write(table: Table, folder: Path, progress: PROGRESS = lambda done, total: None) -> Path:
    """Makes everything in `folder`, and gives the path of the report. progress: over the figures."""
    tables.write(table, folder)
    found, said = findings(table), verdicts(table)
    drawn = figures(table, found, progress)
    (folder / FIGURES).mkdir(exist_ok=True)
    for name, one in drawn.items():
        with whole(folder / FIGURES / name) as file:
            file.write(_png(one))
    for name, value in ((FITS, found.to_json()), (VERDICTS, to_json(table, said))):
        with whole(folder / name) as file:
            file.write((json.dumps(value, indent=1) + "\n").encode())
    sections = [
        _head(table),
        _verdicts(said),
        _fits(table, found),
        *(_figure(name, one) for name, one in drawn.items()),
        _results("The grid, at the end of training", table, table.models()),
        _results("Block designs", table, table.blocks()) if len(table.blocks()) > 1 else "",
        _results("Trained longer, or otherwise", table, _others(table)),
        _results("Guidance", table, table.part(tables.GUIDANCE), guided=True),
        _results("Decoders", table, table.part(tables.DECODER), guided=True),
        _origin(table),
    ]
    path = folder / REPORT
    with whole(path) as file:
        file.write(page.page(table.about.title, sections).encode())
    return path


def figures(table: Table, found: Findings, progress: PROGRESS) -> dict[str, Drawn]:
    """By file name, in the paper's order."""
    rivals = None
    if table.about.name == comparable.PAPER:
        rows = [row for row in paper.quality((256, 256)) if "fid" in row.figures]
        rivals = {row.name.removeprefix("paper: "): row.figures["fid"].value for row in rows}
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


def _png(one: Drawn) -> bytes:
    buffer = io.BytesIO()
    one.figure.savefig(buffer, format="png", dpi=DPI)
    return buffer.getvalue()


def _head(table: Table) -> Html:
    about, final = table.about, table.part(FINAL)
    once = {(row.name, row.steps): row.train_macs for row in final}
    train, sampled = (
        sum(once.values()),
        sum(row.sampling_macs * row.num * row.sample_sets for row in table.rows),
    )
    facts: dict[object, object] = {
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
    facts["Make it again"] = html("<code>{}</code>", about.command)
    return page.facts(facts)


def _verdicts(said: Sequence[Verdict]) -> Html:
    rows = page.join(
        html(
            "<tr><td style='color:{};font-weight:600;white-space:nowrap'>{}</td>"
            "<td>{}<div class='small'>{}</div>"
            "<details><summary>rule</summary>{} Figure {}.</details></td></tr>",
            COLOURS[one.outcome],
            one.outcome,
            one.claim,
            one.said,
            one.rule,
            one.figure,
        )
        for one in said
    )
    return html("<h2>The paper's claims</h2><table>{}</table>", rows)


def _fits(table: Table, found: Findings) -> Html | None:
    distance = table.about.distance
    rows: dict[object, object] = {}
    if found.by_gflops is not None and found.by_params is not None:
        rows[f"r of log Gflops, log {distance}"] = _r(found.by_gflops)
        rows[f"r of log parameters, log {distance}"] = _r(found.by_params)
    if found.law is not None:
        rows[html("{} ~ Gflops<sup>-b</sup>", distance)] = f"b = {_between(found.law.exponent)}"
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
            rows[html("the paper's own table 4, by the same code")] = (
                f"r = {_r(theirs.by_gflops)}, b = {_between(theirs.law.exponent)}"
            )
    if not rows:
        return None
    return html("<h2>Fits</h2>{}<p class='small'>Compute in multiply-adds.</p>", page.facts(rows))


def _step(name: str, points: Sequence[Point]) -> str:
    """One model's results in a row that nothing cheaper beats."""
    first, last = points[0], points[-1]
    fell = f"{first.distance:.3g}" + ("" if last is first else f", down to {last.distance:.3g}")
    return f"{name} from {scientific(first.compute)} on ({fell})"


def _figure(name: str, one: Drawn) -> Html:
    """Beside the page, not in it: the folder is the whole."""
    return html(
        "<h2>{title}</h2><img alt='{title}' style='width:1000px' src='{source}'>"
        "<p class='small'>{name}. {caption}</p>",
        title=one.title,
        source=f"{FIGURES}/{name}",
        name=one.name,
        caption=one.caption,
    )


def _others(table: Table) -> list[Row]:
    """Results of trainings that are neither of the grid nor of the comparison of block designs."""
    shown = {tables.training(row) for row in (*table.models(), *table.blocks())}
    return [row for row in table.trained() if tables.training(row) not in shown]


def _results(title: str, table: Table, rows: Sequence[Row], guided: bool = False) -> Html | None:
    if not rows:
        return None
    keys = [key for key in SHOWN if any(key in row.metrics for row in rows)]
    header = [
        "",
        "Mparams",
        "Mflops",
        "steps",
        *(["guidance"] if guided else []),
        "loss",
        table.about.distance,
    ]
    header += [TITLES[key] for key in keys]
    cells = []
    for row in rows:
        spread = f" ± {row.fd_std:.2g}" if row.fd_std else ""
        name = f"{row.name} {row.decoder}" if row.part == tables.DECODER else row.name
        scale = [f"{row.guidance_scale:g}{'' if row.guided_channels == '3' else ' on all'}"] if guided else []
        known = [row.metric(key) for key in keys]
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
    return html(
        "<h2>{}</h2>{}<p class='small'>Mflops: millions of "
        "multiply-adds of a forward pass. ±: standard deviation over training seeds where a model has "
        "several, else over sample seeds.</p>",
        title,
        page.table(header, cells),
    )


def _origin(table: Table) -> Html:
    about = table.about
    protocols = page.join(
        html("<details><summary>protocol {}</summary>{}</details>", key, page.facts(protocol))
        for key, protocol in about.protocols.items()
    )
    made = html("<details><summary>machine</summary>{}</details>", page.facts(about.made))
    return html(
        "<h2>Make it again</h2><pre>{}</pre><p class='small'>Every row is in "
        "table.csv, every curve in losses.csv; protocols and full configs in study.json. <code>scaledit "
        "study FOLDER</code> makes figures, fits, verdicts and this page anew from those.</p>{}{}{}",
        about.command,
        protocols,
        made if about.made else "",
        html("<pre>{}</pre>", about.declared) if about.declared else "",
    )
