"""The paper's claims as tests on a study's table.

    claim  --rule, written down here-->  holds | does not hold | undecided | not measured,  and its evidence

The rules do not depend on the study: the same code judges the paper's own printed tables.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from scaledit.scaling import fits, paper
from scaledit.scaling.compare import Comparison, Mean, Outcome, compare, counted, means, noise, outcome
from scaledit.scaling.frontier import Curve
from scaledit.scaling.table import (
    DECODER,
    FINAL,
    GUIDANCE,
    SAMPLING,
    TRAINING,
    Row,
    Table,
    evaluated,
    grouped,
)

EQUAL_GFLOPS = 1.2
"""Models have equal compute if their multiply-adds differ by less than this factor."""
ALIKE = 1.25
"""Distances are alike within this factor."""
STRONG = -0.7
"""A correlation is strong if its interval lies below this."""
FEWEST_MODELS = 5
DESIGNS = paper.designs()
"""The paper's block designs, best first (figure 5)."""
PAPER_CHANNELS = "3"
"""The paper guides three of four channels."""


class Evidence(NamedTuple):
    """outcome, and what it rests on: summary, a sentence, and numbers, the same for programs."""

    outcome: Outcome
    summary: str
    numbers: dict[str, Any]


@dataclass(frozen=True)
class Verdict:
    """claim: the paper's, with its place. rule: when it holds. figure: the figure of the study that shows it.
    outcome, said, numbers: as of `Evidence`."""

    key: str
    claim: str
    rule: str
    figure: str
    outcome: Outcome
    said: str
    numbers: dict[str, Any]


NOTHING = Evidence("not measured", "the table holds nothing on this", {})


def verdicts(table: Table) -> list[Verdict]:
    """All claims, in the paper's order."""
    return [
        Verdict(key, claim, rule, figure, *test(table)) for key, (claim, rule, figure, test) in CLAIMS.items()
    ]


def to_json(table: Table, verdicts: Sequence[Verdict]) -> dict[str, Any]:
    return {
        "study": table.about.name,
        "distance": table.about.distance,
        "noise": noise(table),
        "verdicts": [vars(verdict) for verdict in verdicts],
    }


def size_helps(table: Table) -> Evidence:
    sizes, patches = _axes(table)
    return _compare_models(
        table,
        [
            (f"{large}/{patch}", f"{small}/{patch}")
            for patch in patches
            for small, large in itertools.combinations(sizes, 2)
        ],
    )


def tokens_help(table: Table) -> Evidence:
    sizes, patches = _axes(table)
    return _compare_models(
        table,
        [
            (f"{size}/{fine}", f"{size}/{coarse}")
            for size in sizes
            for fine, coarse in itertools.combinations(sorted(patches), 2)
        ],
    )


def _axes(table: Table) -> tuple[list[str], list[int]]:
    """Sizes and patch sizes of the grid, both by rising compute."""
    rows = table.models()
    sizes = [size for size in table.about.sizes if size in {row.size for row in rows}]
    return sizes, sorted({row.patch_size for row in rows}, reverse=True)


def _compare_models(table: Table, pairs: Iterable[tuple[str, str]]) -> Evidence:
    """pairs: (better, worse) models by the claim; those without a distance are skipped."""

    def key(row: Row) -> tuple[Any, ...]:
        return row.size, row.patch_size, row.conditioning, row.steps, row.tokens

    grid = {key(row) for row in table.models()}
    models = means(table.part(FINAL, lambda row: key(row) in grid), lambda row: row.model)
    s = noise(table)
    return _judge_pairs(
        table, [compare(models[a], models[b], s) for a, b in pairs if {a, b} <= models.keys()]
    )


def _judge_pairs(table: Table, comparisons: Sequence[Comparison]) -> Evidence:
    if not comparisons:
        return NOTHING
    unknown = "" if noise(table) is not None else "; nothing was trained twice, so any difference counts"
    numbers = {"pairs": [pair._asdict() for pair in comparisons]}
    return Evidence(outcome(comparisons), counted(comparisons) + unknown, numbers)


def _decide(holds: bool, fails: bool) -> Outcome:
    if holds:
        return "holds"
    return "does not hold" if fails else "undecided"


def gflops_predict(table: Table) -> Evidence:
    rows = evaluated(table.models())
    if len(rows) < FEWEST_MODELS:
        return NOTHING
    fd = np.array([row.fd for row in rows], dtype=np.float64)
    by_macs = fits.correlation(np.array([row.macs for row in rows]), fd)
    by_params = fits.correlation(np.array([row.params for row in rows]), fd)
    result = _decide(by_macs.high < STRONG and by_params.r > by_macs.high, by_macs.low > STRONG)
    summary = (
        f"r(log Gflops, log {table.about.distance}) = {_interval(by_macs)} over {by_macs.n} models, "
        f"r(log parameters, log {table.about.distance}) = {_interval(by_params)}"
    )
    return Evidence(result, summary, {"gflops": by_macs._asdict(), "params": by_params._asdict()})


def _interval(correlation: fits.Correlation) -> str:
    return f"{correlation.r:.3f} ({correlation.low:.3f} to {correlation.high:.3f})"


def equal_gflops(table: Table) -> Evidence:
    pairs: list[dict[str, Any]] = []
    for a, b in itertools.combinations(evaluated(table.models()), 2):
        if a.size != b.size and max(a.macs, b.macs) < EQUAL_GFLOPS * min(a.macs, b.macs):
            low, high = sorted((a, b), key=lambda row: row.distance)
            pairs.append({"a": low.model, "b": high.model, "ratio": high.distance / low.distance})
    if not pairs:
        return NOTHING
    alike = sum(pair["ratio"] <= ALIKE for pair in pairs)
    listed = ", ".join(f"{pair['a']} and {pair['b']} {pair['ratio']:.2f}" for pair in pairs)
    summary = f"{alike} of {len(pairs)} pairs within a factor {ALIKE}: {listed}"
    return Evidence(_decide(alike == len(pairs), 2 * alike < len(pairs)), summary, {"pairs": pairs})


def compute_efficient(table: Table) -> Evidence:
    """Compares at the largest training compute that both were measured at, interpolated in logarithms."""
    sizes, patches = _axes(table)
    models = table.models()
    names, s, comparisons = {row.model for row in models}, noise(table), []
    for patch in patches:
        for small, large in itertools.combinations(sizes, 2):
            pair = [f"{large}/{patch}", f"{small}/{patch}"]
            if not names.issuperset(pair):
                continue
            curves = [_curve(table, model, models[0].conditioning) for model in pair]
            if any(len(curve.compute) < 2 for curve in curves):
                continue
            budget = min(curve.compute[-1] for curve in curves)
            better, worse = (curve.at(budget) for curve in curves)
            if better is not None and worse is not None:
                comparisons.append(compare(Mean(pair[0], better, 1), Mean(pair[1], worse, 1), s))
    return _judge_pairs(table, comparisons)


def _curve(table: Table, model: str, block: str) -> Curve:
    """A model over its training, of its first seed."""
    rows = table.part(TRAINING, lambda row: (row.model, row.conditioning) == (model, block))
    first = min((row.seed for row in rows), default=0)
    points = sorted((float(row.train_macs), row.distance) for row in evaluated(rows) if row.seed == first)
    return Curve(model, 0.0, tuple(x for x, _ in points), tuple(y for _, y in points))


def blocks_order(table: Table) -> Evidence:
    def key(row: Row) -> tuple[Any, ...]:
        return row.size, row.patch_size, row.tokens, row.steps

    rows = table.blocks()
    if len(rows) < 2:
        return NOTHING
    same = table.part(FINAL, lambda row: key(row) == key(rows[0]))
    designs, s = means(same, lambda row: row.conditioning), noise(table)
    known = [designs[name] for name in DESIGNS if name in designs]  # the paper makes no claim on others
    if len(known) < 2:
        return NOTHING
    evidence = _judge_pairs(table, [compare(a, b, s) for a, b in itertools.combinations(known, 2)])
    listed = ", ".join(f"{design.name} {design.fd:.4g}" for design in known)
    return evidence._replace(summary=f"{listed}; {evidence.summary}")


def loss_follows(table: Table) -> Evidence:
    rows = [row for row in table.models() if row.loss is not None]
    if len(rows) < FEWEST_MODELS:
        return NOTHING
    loss = np.array([row.loss for row in rows], dtype=np.float64)
    by_macs = fits.correlation(np.array([row.macs for row in rows]), loss)
    summary = f"r(log Gflops, log loss) = {_interval(by_macs)}"
    return Evidence(_decide(by_macs.high < STRONG, by_macs.low > 0), summary, by_macs._asdict())


def sampling_compute(table: Table) -> Evidence:
    """Compares each model at its most sampling steps with each larger one at the most steps that cost
    less."""
    models = grouped(evaluated(table.part(SAMPLING)), lambda row: row.name).values()
    s, comparisons = noise(table), []
    for small, large in itertools.permutations(models, 2):
        if large[0].macs < EQUAL_GFLOPS * small[0].macs:
            continue
        most = max(small, key=lambda row: row.sampling_macs)
        less = [row for row in large if row.sampling_macs < most.sampling_macs]
        if less:
            best = max(less, key=lambda row: row.sampling_macs)
            better, worse = (
                Mean(f"{row.name} with {row.sampling_steps} steps", row.distance, 1) for row in (best, most)
            )
            comparisons.append(compare(better, worse, s))
    return _judge_pairs(table, comparisons)


def guidance_helps(table: Table) -> Evidence:
    rows = sorted(_longest_sweep(table), key=lambda row: row.guidance_scale)
    if len(rows) < 3:
        return NOTHING
    scales = [row.guidance_scale for row in rows]
    fd = [row.distance for row in rows]
    best = int(np.argmin(fd))
    spread = math.sqrt(sum((row.fd_std or 0.0) ** 2 for row in rows) / len(rows))
    precision, recall = ([row.metric(name) for row in rows] for name in ("precision", "recall"))
    ends = (precision[0], precision[-1], recall[0], recall[-1])
    trades = None
    if None not in ends:
        trades = ends[1] > ends[0] and ends[3] < ends[2]  # type: ignore[operator]
    summary = (
        f"{table.about.distance} {fd[0]:.3g} unguided, lowest {fd[best]:.3g} at {scales[best]:g}, "
        f"{fd[-1]:.3g} at {scales[-1]:g} (± {spread:.2g} over sample seeds); precision {_ends(precision)}, "
        f"recall {_ends(recall)}"
    )
    numbers = {"scales": scales, "fd": fd, "precision": precision, "recall": recall, "spread": spread}
    if fd[0] - fd[best] > 2 * spread and trades:
        if best < len(rows) - 1:
            return Evidence("holds", summary, numbers)
        summary += "; no larger scale was measured, so no point where it ends"
        return Evidence("undecided", summary, numbers)
    rises = best == 0 and fd[1] - fd[0] > 2 * spread
    return Evidence(_decide(False, rises or trades is False), summary, numbers)


def _longest_sweep(table: Table) -> list[Row]:
    """Guidance of the run with the most scales; on the paper's channels if several choices were tried."""
    rows = evaluated(table.part(GUIDANCE))
    tried = [row.guided_channels for row in rows if row.guidance_scale != 1]
    channels = PAPER_CHANNELS if PAPER_CHANNELS in tried or not tried else tried[0]
    swept = [row for row in rows if row.guided_channels == channels or row.guidance_scale == 1]
    return max(grouped(swept, lambda row: (row.name, row.steps)).values(), key=len, default=[])


def _ends(values: Sequence[float | None]) -> str:
    if values[0] is None or values[-1] is None:
        return "unknown"
    return f"{values[0]:.2f} to {values[-1]:.2f}"


def guidance_channels(table: Table) -> Evidence:
    """Compares scale 1 + x on three channels with 1 + 3x/4 on all, where both were measured."""
    rows = {
        (row.name, row.guided_channels, round(row.guidance_scale, 6)): row
        for row in table.part(GUIDANCE)
        if row.fd
    }
    pairs = []
    for (name, channels, scale), row in rows.items():
        other = rows.get((name, "all", round(1 + 0.75 * (scale - 1), 6)))
        if channels == PAPER_CHANNELS and scale != 1 and other is not None:
            pairs.append((name, scale, other.guidance_scale, row.distance / other.distance))
    if not pairs:
        return NOTHING
    alike = all(1 / ALIKE <= ratio <= ALIKE for *_, ratio in pairs)
    summary = ", ".join(
        f"{name}: {scale:g} on three over {other:g} on all {ratio:.2f}" for name, scale, other, ratio in pairs
    )
    return Evidence(_decide(alike, not alike), summary, {"pairs": pairs})


def decoders_alike(table: Table) -> Evidence:
    fd = {row.decoder: row.fd for row in table.part(DECODER) if row.fd}
    if len(fd) < 2:
        return NOTHING
    ratio = max(fd.values()) / min(fd.values())
    listed = ", ".join(f"{name} {value:.4g}" for name, value in fd.items())
    return Evidence(_decide(ratio <= ALIKE, ratio > ALIKE), f"{listed}: a factor {ratio:.2f}", {"fd": fd})


Test = Callable[[Table], Evidence]
PAIRS = (
    "Holds if no pair is against and at least half are for, by more than twice the noise of training; does "
    "not if more are against than for."
)
CLAIMS: dict[str, tuple[str, str, str, Test]] = {
    "size": (
        "At a fixed patch size, larger models have the lower distance (figure 6, top).",
        f"All pairs of sizes at each patch size. {PAIRS}",
        "06-training",
        size_helps,
    ),
    "tokens": (
        "At a fixed size, smaller patches (more tokens, the same parameters) have the lower distance "
        "(figure 6, bottom).",
        f"All pairs of patch sizes at each size. {PAIRS}",
        "06-training",
        tokens_help,
    ),
    "gflops": (
        "Gflops predict quality, parameters do not (figure 8: r = -0.93).",
        f"Holds if the 95 % interval of r(log Gflops, log distance) lies below {STRONG} and the correlation "
        f"with parameters is weaker than all of it; does not if that interval lies above {STRONG}.",
        "08-compute",
        gflops_predict,
    ),
    "equal_gflops": (
        "Models of equal Gflops have like distances, whatever their sizes (section 5).",
        f"Pairs of different sizes whose Gflops differ by less than a factor {EQUAL_GFLOPS}. Holds if all "
        f"have distances within a factor {ALIKE}; does not if more than half have not.",
        "08-compute",
        equal_gflops,
    ),
    "compute": (
        "Larger models use training compute more efficiently (figure 9).",
        "All pairs of sizes at each patch size, at the largest training compute that both were measured at. "
        + PAIRS,
        "09-efficiency",
        compute_efficient,
    ),
    "blocks": (
        "adaLN-Zero is better than adaLN, that than cross-attention, that than in-context (figure 5).",
        f"All pairs of designs. {PAIRS}",
        "05-blocks",
        blocks_order,
    ),
    "loss": (
        "Training loss follows: larger models reach the lower one (figure 13).",
        f"Holds if the 95 % interval of r(log Gflops, log loss) lies below {STRONG}; does not if above 0.",
        "13-losses",
        loss_follows,
    ),
    "sampling": (
        "Sampling compute cannot replace model compute (figure 10).",
        "Each model at its most sampling steps against each model of more Gflops (by a factor "
        f"{EQUAL_GFLOPS} or more) at the most steps that cost less in all. {PAIRS}",
        "10-sampling",
        sampling_compute,
    ),
    "guidance": (
        "Guidance lowers the distance up to a point, and trades recall for precision (tables 2, 3).",
        "Holds if the lowest distance is at a scale between none and the largest, below the unguided one by "
        "more than twice the spread over sample seeds, and from none to the largest precision rises and "
        "recall falls; does not if the distance rises at once by as much, or precision and recall do not "
        "move so.",
        "14-guidance",
        guidance_helps,
    ),
    "guidance_channels": (
        "Guidance 1 + x on three of four channels acts like 1 + 3x/4 on all (appendix).",
        f"Holds if the distances are within a factor {ALIKE} of each other.",
        "14-guidance",
        guidance_channels,
    ),
    "decoders": (
        "Another decoder of the same latents changes the distance little (table 5).",
        f"Holds if the distances through all decoders are within a factor {ALIKE}; else it does not.",
        "02-best",
        decoders_alike,
    ),
}
