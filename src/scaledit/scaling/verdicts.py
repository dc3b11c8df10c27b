"""The paper's claims as tests on a study's table, with what came out.

    claim  --rule, written down here-->  holds | does not hold | undecided | not measured,  and the figures

The rules know nothing of a study: the same code judges the paper's own printed tables.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from scaledit.scaling import fits, paper
from scaledit.scaling.compare import Comparison, Mean, Outcome, compare, counted, means, noise, outcome
from scaledit.scaling.table import DECODER, FINAL, GUIDANCE, SAMPLING, TRAINING, Row, Table

EQUAL_GFLOPS = 1.2
"""Models count as of equal compute when their multiply-adds differ by less than this factor."""
ALIKE = 1.25
"""Distances count as alike within this factor."""
STRONG = -0.7
"""A correlation counts as strong when all of its interval is below this."""
FEWEST_MODELS = 5
DESIGNS = paper.designs()
"""From the best on, by the paper (figure 5)."""


class Found(NamedTuple):
    """outcome, and the figures it rests on, as a sentence; numbers: the same for programs."""

    outcome: Outcome
    said: str
    numbers: dict[str, Any]


@dataclass(frozen=True)
class Verdict:
    """claim: the paper's, with its place. rule: when it holds. figure: which of the study's shows it."""

    key: str
    claim: str
    rule: str
    figure: str
    outcome: Outcome
    said: str
    numbers: dict[str, Any]


NOTHING = Found("not measured", "the table holds nothing on this", {})


def verdicts(table: Table) -> list[Verdict]:
    """All claims, in the paper's order."""
    return [
        Verdict(key, claim, rule, figure, *test(table)) for key, (claim, rule, figure, test) in CLAIMS.items()
    ]


def to_json(table: Table, found: Sequence[Verdict]) -> dict[str, Any]:
    return {
        "study": table.about.name,
        "distance": table.about.distance,
        "noise": noise(table),
        "verdicts": [vars(verdict) for verdict in found],
    }


def _pairs(table: Table, comparisons: Sequence[Comparison]) -> Found:
    unknown = "" if noise(table) is not None else "; nothing was trained twice, so any difference counts"
    numbers = {"pairs": [one._asdict() for one in comparisons]}
    return Found(outcome(comparisons), counted(comparisons) + unknown, numbers) if comparisons else NOTHING


def _grid(table: Table) -> list[Row]:
    """All rows, of all seeds, of the models of `Table.models`."""
    names = {(row.size, row.patch_size, row.conditioning, row.steps, row.tokens) for row in table.models()}
    return table.part(FINAL, lambda r: (r.size, r.patch_size, r.conditioning, r.steps, r.tokens) in names)


def size_helps(table: Table) -> Found:
    found, s = means(_grid(table), lambda row: row.model), noise(table)
    sizes, patches = _axes(table)
    return _pairs(
        table,
        [
            compare(found[f"{large}/{patch}"], found[f"{small}/{patch}"], s)
            for patch in patches
            for small, large in itertools.combinations(sizes, 2)
            if {f"{large}/{patch}", f"{small}/{patch}"} <= found.keys()
        ],
    )


def tokens_help(table: Table) -> Found:
    found, s = means(_grid(table), lambda row: row.model), noise(table)
    sizes, patches = _axes(table)
    return _pairs(
        table,
        [
            compare(found[f"{size}/{fine}"], found[f"{size}/{coarse}"], s)
            for size in sizes
            for fine, coarse in itertools.combinations(sorted(patches), 2)
            if {f"{size}/{fine}", f"{size}/{coarse}"} <= found.keys()
        ],
    )


def _axes(table: Table) -> tuple[list[str], list[int]]:
    rows = table.models()
    sizes = [size for size in table.about.sizes if size in {row.size for row in rows}]
    return sizes, sorted({row.patch_size for row in rows}, reverse=True)


def gflops_predict(table: Table) -> Found:
    rows = [row for row in table.models() if row.fd is not None]
    if len(rows) < FEWEST_MODELS:
        return NOTHING
    fd = np.array([row.fd for row in rows], dtype=np.float64)
    by_macs = fits.correlation(np.array([row.macs for row in rows]), fd)
    by_params = fits.correlation(np.array([row.params for row in rows]), fd)
    strong, weaker = by_macs.high < STRONG, by_params.r > by_macs.high
    said = (
        f"r(log Gflops, log {table.about.distance}) = {_interval(by_macs)} over {by_macs.n} models, "
        f"r(log parameters, log {table.about.distance}) = {_interval(by_params)}"
    )
    result: Outcome = (
        "holds" if strong and weaker else ("does not hold" if by_macs.low > STRONG else "undecided")
    )
    return Found(result, said, {"gflops": by_macs._asdict(), "params": by_params._asdict()})


def _interval(found: fits.Correlation) -> str:
    return f"{found.r:.3f} ({found.low:.3f} to {found.high:.3f})"


def equal_gflops(table: Table) -> Found:
    rows = [row for row in table.models() if row.fd is not None]
    pairs = []
    for a, b in itertools.combinations(rows, 2):
        if a.size != b.size and max(a.macs, b.macs) < EQUAL_GFLOPS * min(a.macs, b.macs):
            low, high = sorted((a, b), key=lambda row: row.fd or 0.0)
            pairs.append((low.model, high.model, (high.fd or 0.0) / (low.fd or 1.0)))
    if not pairs:
        return NOTHING
    alike = sum(ratio <= ALIKE for _, _, ratio in pairs)
    said = f"{alike} of {len(pairs)} pairs within a factor {ALIKE}: " + ", ".join(
        f"{a} and {b} {ratio:.2f}" for a, b, ratio in pairs
    )
    result: Outcome = (
        "holds" if alike == len(pairs) else ("does not hold" if 2 * alike < len(pairs) else "undecided")
    )
    return Found(result, said, {"pairs": [{"a": a, "b": b, "ratio": ratio} for a, b, ratio in pairs]})


def compute_efficient(table: Table) -> Found:
    """At the largest training compute that both have been measured at, interpolated in logarithms."""
    sizes, patches = _axes(table)
    names = {row.model for row in table.models()}
    block = next((row.conditioning for row in table.models()), "")
    s, comparisons = noise(table), []
    for patch in patches:
        for small, large in itertools.combinations(sizes, 2):
            if not {f"{small}/{patch}", f"{large}/{patch}"} <= names:
                continue
            curves = [_curve(table, size, patch, block) for size in (large, small)]
            if all(len(curve) > 1 for curve in curves):
                budget = min(curve[-1][0] for curve in curves)
                if budget >= max(curve[0][0] for curve in curves):
                    at = [_at(budget, curve) for curve in curves]
                    better, worse = (
                        Mean(f"{z}/{patch}", fd, 1) for z, fd in zip((large, small), at, strict=True)
                    )
                    comparisons.append(compare(better, worse, s))
    return _pairs(table, comparisons)


def _curve(table: Table, size: str, patch: int, block: str) -> list[tuple[float, float]]:
    """(training compute, distance) of a model over its training, of its first seed."""
    rows = table.part(TRAINING, lambda r: (r.size, r.patch_size, r.conditioning) == (size, patch, block))
    first = min((row.seed for row in rows), default=0)
    return sorted((float(row.train_macs), row.fd) for row in rows if row.seed == first and row.fd is not None)


def _at(budget: float, curve: Sequence[tuple[float, float]]) -> float:
    x, y = np.log(np.array(curve)).T
    return float(np.exp(np.interp(math.log(budget), x, y)))


def blocks_order(table: Table) -> Found:
    rows = table.blocks()
    if len(rows) < 2:
        return NOTHING
    first = rows[0]
    same = table.part(
        FINAL,
        lambda r: (
            (r.size, r.patch_size, r.tokens, r.steps)
            == (first.size, first.patch_size, first.tokens, first.steps)
        ),
    )
    found, s = means(same, lambda row: row.conditioning), noise(table)
    there = [design for design in DESIGNS if design in found]  # of others the paper claims nothing
    if len(there) < 2:
        return NOTHING
    result = _pairs(table, [compare(found[a], found[b], s) for a, b in itertools.combinations(there, 2)])
    listed = ", ".join(f"{name} {found[name].fd:.4g}" for name in there)
    return result._replace(said=f"{listed}; {result.said}")


def loss_follows(table: Table) -> Found:
    rows = [row for row in table.models() if row.loss is not None]
    if len(rows) < FEWEST_MODELS:
        return NOTHING
    loss = np.array([row.loss for row in rows], dtype=np.float64)
    found = fits.correlation(np.array([row.macs for row in rows]), loss)
    result: Outcome = "holds" if found.high < STRONG else ("does not hold" if found.low > 0 else "undecided")
    return Found(result, f"r(log Gflops, log loss) = {_interval(found)}", found._asdict())


def sampling_compute(table: Table) -> Found:
    """Each model at its most sampling steps, against each larger one at the most steps with which that one
    still spends less."""
    rows = [row for row in table.part(SAMPLING) if row.fd is not None]
    models: dict[str, list[Row]] = {}
    for row in rows:
        models.setdefault(row.name, []).append(row)
    s, comparisons = noise(table), []
    for small, large in itertools.permutations(models.values(), 2):
        if large[0].macs < EQUAL_GFLOPS * small[0].macs:
            continue
        most = max(small, key=lambda row: row.sampling_macs)
        less = [row for row in large if row.sampling_macs < most.sampling_macs]
        if less:
            best = max(less, key=lambda row: row.sampling_macs)
            better, worse = (
                Mean(f"{row.name} with {row.sampling_steps} steps", row.fd or 0.0, 1) for row in (best, most)
            )
            comparisons.append(compare(better, worse, s))
    return _pairs(table, comparisons)


def guidance_helps(table: Table) -> Found:
    rows = sorted(_longest(table), key=lambda row: row.guidance_scale)
    if len(rows) < 3:
        return NOTHING
    scales = [row.guidance_scale for row in rows]
    fd = [row.fd or math.nan for row in rows]
    best = int(np.argmin(fd))
    spread = math.sqrt(sum((row.fd_std or 0.0) ** 2 for row in rows) / len(rows))
    gain = fd[0] - fd[best]
    precision = [row.metric("precision") for row in rows]
    recall = [row.metric("recall") for row in rows]
    trades = None
    if None not in (precision[0], precision[-1], recall[0], recall[-1]):
        trades = precision[-1] > precision[0] and recall[-1] < recall[0]  # type: ignore[operator]
    said = (
        f"{table.about.distance} {fd[0]:.3g} unguided, lowest {fd[best]:.3g} at {scales[best]:g}, "
        f"{fd[-1]:.3g} at {scales[-1]:g} (± {spread:.2g} over sample seeds); precision {_ends(precision)}, "
        f"recall {_ends(recall)}"
    )
    numbers = {"scales": scales, "fd": fd, "precision": precision, "recall": recall, "spread": spread}
    if gain > 2 * spread and trades:
        if best < len(rows) - 1:
            return Found("holds", said, numbers)
        return Found("undecided", f"{said}; no larger scale was measured, so no point where it ends", numbers)
    rises = best == 0 and fd[1] - fd[0] > 2 * spread
    return Found("does not hold" if rises or trades is False else "undecided", said, numbers)


def _longest(table: Table) -> list[Row]:
    """Guidance of the run with most scales; on three channels where both ways were tried."""
    rows = table.part(GUIDANCE, lambda row: row.fd is not None)
    tried = {row.guided_channels for row in rows if row.guidance_scale != 1}
    chosen = THREE if THREE in tried else next(iter(tried), THREE)
    runs: dict[tuple[str, int], list[Row]] = {}
    for row in rows:
        if row.guided_channels == chosen or row.guidance_scale == 1:
            runs.setdefault((row.name, row.steps), []).append(row)
    return max(runs.values(), key=len, default=[])


THREE = "3"
"""Of four channels: the paper's guidance."""


def _ends(values: Sequence[float | None]) -> str:
    if values[0] is None or values[-1] is None:
        return "unknown"
    return f"{values[0]:.2f} to {values[-1]:.2f}"


def guidance_channels(table: Table) -> Found:
    """fd at scale 1 + x on three channels, and at 1 + 3x/4 on all, where both were measured."""
    rows = {
        (row.name, row.guided_channels, round(row.guidance_scale, 6)): row
        for row in table.part(GUIDANCE)
        if row.fd is not None
    }
    pairs = []
    for (name, channels, scale), row in rows.items():
        other = rows.get((name, "all", round(1 + 0.75 * (scale - 1), 6)))
        if channels == THREE and scale != 1 and other is not None and other.fd and row.fd:
            pairs.append((name, scale, other.guidance_scale, row.fd / other.fd))
    if not pairs:
        return NOTHING
    alike = all(1 / ALIKE <= ratio <= ALIKE for *_, ratio in pairs)
    said = ", ".join(
        f"{name}: {scale:g} on three over {other:g} on all {ratio:.2f}" for name, scale, other, ratio in pairs
    )
    return Found("holds" if alike else "does not hold", said, {"pairs": pairs})


def decoders_alike(table: Table) -> Found:
    fd = {row.decoder: row.fd for row in table.part(DECODER) if row.fd}
    if len(fd) < 2:
        return NOTHING
    ratio = max(fd.values()) / min(fd.values())
    said = ", ".join(f"{name} {value:.4g}" for name, value in fd.items())
    return Found("holds" if ratio <= ALIKE else "does not hold", f"{said}: a factor {ratio:.2f}", {"fd": fd})


Test = Callable[[Table], Found]
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
