"""The report of an ablation, from its table: what each switch changes, and when the full set reaches what.

table  ->  table.csv losses.csv study.json pictures/   figures/*.png   verdicts.json   report.html
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from scaledit.callbacks import Progress
from scaledit.data.datasets import attributions
from scaledit.errors import counted
from scaledit.files.atomic import atomic_bytes
from scaledit.report import page
from scaledit.report.figures import ablation as figures
from scaledit.report.page import Card, Sheet
from scaledit.scaling import table as tables
from scaledit.scaling.ablation import BASELINE, FULL
from scaledit.scaling.ablation_verdicts import RULE, Bar, Compared, Effect, Judged, Reach, Verdict, percent
from scaledit.scaling.plan import scientific
from scaledit.scaling.table import FINAL, Row, Table

REPORT, FIGURES, VERDICTS = "report.html", "figures", "verdicts.json"
COLORS = {"helps": "good", "holds": "good", "hurts": "bad", "does not hold": "bad", "depends": "open"}
"""Classes of the style sheet by outcome; "none" for others."""
WIDEST = 320
"""CSS pixels of a grid of samples."""


def write(table: Table, folder: Path, progress: Progress = lambda done, total: None) -> Path:
    """Writes everything into `folder`, and returns the path of the page. progress: over the figures. Raises
    UsageError for a table without the switches of its study."""
    judged = Judged(table)
    tables.write(table, folder)
    plots = figures.all_figures(judged)
    (folder / FIGURES).mkdir(exist_ok=True)
    for done, (name, plot) in enumerate(plots.items(), 1):
        atomic_bytes(folder / FIGURES / name, page.rendered(plot.figure))
        progress(done, len(plots))
    atomic_bytes(folder / VERDICTS, (json.dumps(judged.to_json(), indent=1) + "\n").encode())
    sheets, left_out = _sheets(judged)
    html = page.render(
        "ablation.html",
        title=table.about.title,
        about=table.about,
        head=_head(judged),
        rule=RULE,
        noise=_noise(judged),
        header=["", "alone", "in the full set", "smallest effect", "class accuracy alone",
                "class accuracy in the full set", "verdict"],
        verdicts=[_verdict_row(judged, verdict) for verdict in judged.verdicts],
        switches={verdict.switch.title: _about(verdict) for verdict in judged.verdicts},
        missing=_missing(judged),
        bars=[(COLORS.get(bar.outcome, "none"), bar.outcome, _bar(judged, bar)) for bar in judged.bars],
        reached=[_reached(judged, one) for one in judged.reached],
        rates=_rates(table),
        figures=plots,
        folder=FIGURES,
        results=_results(judged),
        results_header=["", "parameters (M)", "multiply-adds (M)", "steps", "training multiply-adds",
                        "learning rate", "seeds", "loss", table.about.distance, "class accuracy"],
        sheets=sheets,
        attributions=attributions(table.about.data_sets) if sheets else (),
        left_out=left_out,
    )  # fmt: skip
    path = folder / REPORT
    atomic_bytes(path, html.encode())
    return path


def _head(judged: Judged) -> list[Card]:
    table, about = judged.table, judged.table.about
    outcomes = Counter(verdict.outcome for verdict in judged.verdicts)
    others = ", ".join(f"{outcome}: {n}" for outcome, n in outcomes.items() if outcome != "helps")
    cards = [Card("Switches that help", f"{outcomes['helps']} of {len(judged.verdicts)}", others)]
    for name, title in ((BASELINE, "Baseline"), (FULL, "Full set")):
        if rows := judged.rows(name, FINAL):
            cards.append(Card(f"{title}, {about.distance}", _mean(rows), counted(len(rows), "seed")))
    if about.floor is not None:
        cards.append(Card(f"{about.distance} of real images", f"{about.floor:.3g}", "held out"))
    budget = scientific(about.ablation["budget"])
    cards.append(Card("Training of each", budget, "multiply-adds, equal for all sets"))
    cards.append(
        Card("Runs", f"{len({row.name for row in table.rows}):,}", counted(len(table.rows), "result"))
    )
    if "hours" in about.made:
        cards.append(Card("Time", f"{about.made['hours']} h", "wall-clock time of all workers"))
    return cards


def _mean(rows: Sequence[Row]) -> str:
    """The geometric mean of the distance."""
    return f"{math.exp(sum(math.log(row.distance) for row in rows) / len(rows)):.3g}"


def _noise(judged: Judged) -> str:
    noise, shared = judged.noise(), judged.shared_noise()
    if noise is None:
        return "No set was trained with several seeds, so no effect can be distinguished from chance."
    said = (
        f"The logarithm of a result scatters by s = {noise.s:.3f} ({noise.df} degrees of freedom), so the "
        f"smallest effect that {noise.n} seeds can show is a change by {percent(noise.least)}."
    )
    if shared is not None:
        said += (
            " Switches that only change the sampling are compared on the same training runs, with s = "
            f"{shared.s:.3f} ({shared.df} degrees of freedom) and a smallest effect of "
            f"{percent(shared.least)}."
        )
    if judged.chances:
        said += (
            f" If no switch did anything, {judged.chances:.1f} of these comparisons would be expected to "
            "differ by chance."
        )
    return said


def change(compared: Compared | None) -> str:
    """'-18 %': the change of the distance that the switch makes; a sign in either direction."""
    if compared is None:
        return ""
    return "not measured" if compared.distance is None else percent(-compared.distance.value, True)


def least(verdict: Verdict) -> str:
    """'9 %', or '9 %, 2 %' where the two comparisons differ."""
    values = [one.distance.least for one in (verdict.alone, verdict.removed) if one and one.distance]
    shown = [percent(value) for value in values if value is not None]
    return ", ".join(dict.fromkeys(shown)) or "unknown"


def _accuracy(effect: Effect | None) -> str:
    """'+3.1 points ± 1.2'"""
    if effect is None:
        return ""
    spread = "" if effect.least is None else f" ± {100 * effect.least:.1f}"
    return f"{100 * effect.value:+.1f}{spread} points"


def _verdict_row(judged: Judged, verdict: Verdict) -> tuple[str, list[str]]:
    """The class of the outcome, and the cells."""
    both = (verdict.alone, verdict.removed)
    changes = [
        "" if one is None else f"{change(one)}{'' if one.distance is None else f', {one.outcome}'}"
        for one in both
    ]
    accuracy = ["" if one is None else _accuracy(one.accuracy) for one in both]
    cells = [verdict.switch.title, *changes, least(verdict), *accuracy, verdict.outcome]
    return COLORS.get(verdict.outcome, "none"), cells


def _about(verdict: Verdict) -> Mapping[str, str]:
    """What a switch is, for people."""
    switch = verdict.switch
    keys = [f"{key} = {json.dumps(value)}" for key, value in switch.set.items()]
    keys += [f"{key} += {json.dumps(parts)}" for key, parts in switch.add.items()]
    facts = {"Class": switch.kind, "Changes": "; ".join(keys)}
    facts |= {"Requires": ", ".join(switch.requires)} if switch.requires else {}
    facts |= {"Reported elsewhere": switch.gain} if switch.gain else {}
    facts |= {"Source": switch.source} if switch.source else {}
    for title, one in (("Alone", verdict.alone), ("Removed", verdict.removed)):
        facts |= {} if one is None else {title: f"{one.having} against {one.without}"}
    return facts


def _missing(judged: Judged) -> dict[str, str]:
    """Why comparisons have no result."""
    return {
        f"{verdict.switch.title}, {one.role}": one.why
        for verdict in judged.verdicts
        for one in (verdict.alone, verdict.removed)
        if one is not None and one.why
    }


def _titles(judged: Judged) -> dict[str, str]:
    references = {one["name"]: one["title"] for one in judged.table.about.ablation["references"]}
    return {BASELINE: "the baseline", FULL: "the full set", **references}


def _bar(judged: Judged, bar: Bar) -> str:
    title = _titles(judged).get(bar.target, bar.target)
    subject = "The full set" if not bar.switches else f"The set {' '.join(f'+{s}' for s in bar.switches)}"
    said = f"{subject} with {bar.share:g} of the training compute of {title} reaches its final distance"
    if bar.fd is None or not bar.by_seed:
        return f"{said}."
    found = ", ".join(f"{value:.3g}" for value in bar.by_seed.values())
    return f"{said}: {found} ({counted(len(bar.by_seed), 'seed')}) against {bar.fd:.3g}."


def _reached(judged: Judged, one: Reach) -> list[str]:
    """The row of the table of compute to reach."""
    titles = _titles(judged)
    target = next(target for target in judged.targets if target.name == one.target)
    share = "" if one.macs is None else f"{one.macs / target.macs:.2f}"
    compute = "" if one.macs is None else scientific(one.macs)
    seeds = f"{one.times} of {len(one.by_seed)}"
    return [titles.get(one.name, one.name), f"{target.title}: {target.fd:.3g}", seeds, compute, share]


def _rates(table: Table) -> dict[str, str]:
    """What each set chose its learning rate from, with the best first."""
    said = {}
    for owner, trials in table.about.ablation["rates"].items():
        known = {rate: fd for rate, fd in trials.items() if fd is not None}
        best = min(known, key=lambda rate: (known[rate], float(rate)), default=None)
        results = [f"{rate}: {'diverged' if fd is None else f'{fd:.3g}'}" for rate, fd in trials.items()]
        at_edge = best is not None and len(trials) > 1 and best in (next(iter(trials)), [*trials][-1])
        edge = ", at the edge of the grid" if at_edge else ""
        said[owner] = f"{best or 'none'}{edge} ({'; '.join(results)})"
    return said


def _results(judged: Judged) -> list[list[str]]:
    """One row per set of switches, reference and bar, over its seeds."""
    declared = judged.table.about.ablation
    groups = {judged.ablation.name(names): list(rows.values()) for names, rows in judged.results.items()}
    for one in (*declared["references"], *declared["bars"]):
        groups[one["name"]] = judged.rows(one["name"], FINAL)
    return [_result(name, rows) for name, rows in groups.items() if rows]


def _result(name: str, rows: Sequence[Row]) -> list[str]:
    mean, first = tables.over_seeds(rows, lambda row: 0)[0], rows[0]
    spread = f" ± {mean.fd_std:.2g}" if mean.fd_std and len(rows) > 1 else ""
    accuracy = mean.metric("class_accuracy")
    rate = first.settings.get("optimizer.learning_rate", "")
    return [
        name,
        f"{first.params / 1e6:.3g}",
        f"{first.macs / 1e6:,.3g}",
        f"{first.steps:,}",
        scientific(first.train_macs),
        f"{float(rate):g}" if rate else "",
        str(len(rows)),
        "" if mean.loss is None else f"{mean.loss:.4f}",
        "" if mean.fd is None else f"{mean.fd:.4g}{spread}",
        "" if accuracy is None else f"{accuracy:.3f}",
    ]


def _sheets(judged: Judged) -> tuple[Mapping[str, Sheet], list[str]]:
    """The samples of the first seed of the baseline, the full set, the references and each switch alone."""
    declared = judged.table.about.ablation
    names = [BASELINE, FULL, *(one["name"] for one in declared["references"] if "fd" not in one)]
    names += [verdict.alone.having for verdict in judged.verdicts if verdict.alone is not None]
    sheets, left_out = {}, []
    for name in names:
        png = judged.table.pictures.get(name)
        if png is None:
            left_out.append(f"{name} (no samples of its own)")
            continue
        try:
            sheets[name] = page.sheet(png, f"samples of {name}", WIDEST, enlarged=False)
        except ValueError as error:
            left_out.append(f"{name} ({error})")
    return sheets, left_out if sheets else []
