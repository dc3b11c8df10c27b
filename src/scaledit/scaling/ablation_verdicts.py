"""What each switch of an ablation changes, from the study's table alone, by a rule that is written down here.

    y_ki   = ln fd of set k with seed i             K sets, n seeds
    effect = mean_i (y_without,i - y_with,i)        above 0: the distance is lower with the switch
    s^2    = sum (y_ki - y_k. - y_.i + y..)^2 / ((K - 1)(n - 1))    what set and seed do not explain
    least  = t(0.975, (K - 1)(n - 1)) s sqrt(2 / n)                 the smallest effect that n seeds can show

A switch helps if its effect exceeds `least`, hurts if it is below -least, and makes no difference otherwise.
Sets are compared with equal seeds, so what a seed does to all sets cancels. Two sets that share a training
(switches of sampling only) have a scatter of their own, from their differences by seed. The class accuracy is
treated alike without the logarithm; it decides nothing.

A training reaches a distance where its curve over compute first falls to it, between two evaluations on a
straight line in the logarithms of both.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, NamedTuple

import numpy as np

from scaledit.errors import UsageError, reading, shown
from scaledit.scaling.ablation import (
    ALONE,
    BAR,
    BASELINE,
    FULL,
    REFERENCE,
    Ablation,
    Pair,
    Set,
    Switch,
    set_key,
)
from scaledit.scaling.table import ABOUT, FINAL, TRAINING, Row, Table, grouped

Outcome = Literal["helps", "hurts", "no difference", "depends", "unknown", "not measured"]
P = 0.05
POINTS = 20_000
"""Of an integral by the midpoint rule: a quantile is exact to 1e-4."""
ACCURACY = "class_accuracy"
STRONGEST_FIRST: tuple[Outcome, ...] = ("helps", "hurts", "no difference", "unknown")
"""Of two comparisons that do not contradict each other, the first of these is the verdict."""
RULE = (
    "The effect of a switch is the mean over seeds of the difference in the logarithm of the distance, "
    "without and with it, at the same seed and the same training compute. The smallest effect that the seeds "
    "can show is t s sqrt(2/n): s is the deviation of a single result that remains after subtracting the "
    f"means of its set and of its seed, and t is the quantile for p = {P}. A switch helps if its effect "
    "exceeds that, hurts if its effect is as far below zero, and makes no difference otherwise. It is judged "
    "alone (added to the baseline) and removed (from the full set). Both together: it helps, or hurts, if "
    "one of the two says so and the other does not say the opposite; if they contradict each other, it "
    "depends."
)


class Noise(NamedTuple):
    """s: of one result, df: its degrees of freedom, n: seeds, least: the smallest effect that they show."""

    s: float
    df: int
    n: int
    least: float


class Effect(NamedTuple):
    """value: above 0 is better. least: the smallest value that the seeds can show, None with one seed, which
    also is half the width of the 95 % interval. by_seed: the value of each seed."""

    value: float
    least: float | None
    by_seed: Mapping[int, float]

    @property
    def outcome(self) -> Outcome:
        if self.least is None:
            return "unknown"
        if abs(self.value) <= self.least:
            return "no difference"
        return "helps" if self.value > 0 else "hurts"


@dataclass(frozen=True)
class Compared:
    """A pair of sets. without, having: their names. distance: the effect on the logarithm of the distance.
    accuracy: on the class accuracy, None if it was not measured. Both are None without results; why then says
    what is missing."""

    role: str
    without: str
    having: str
    distance: Effect | None
    accuracy: Effect | None
    why: str = ""

    @property
    def outcome(self) -> Outcome:
        return "not measured" if self.distance is None else self.distance.outcome

    @property
    def ratio(self) -> float | None:
        """distance with the switch / distance without it; below 1 if it helps."""
        return None if self.distance is None else math.exp(-self.distance.value)

    def to_json(self) -> dict[str, Any]:
        effects = {}
        for name, effect in (("distance", self.distance), ("accuracy", self.accuracy)):
            effects[name] = None
            if effect is not None:
                by_seed = {str(seed): value for seed, value in effect.by_seed.items()}
                effects[name] = {"effect": effect.value, "least": effect.least, "by_seed": by_seed}
        return {
            "outcome": self.outcome,
            "without": self.without,
            "with": self.having,
            "ratio": self.ratio,
            **effects,
            "why": self.why,
        }


@dataclass(frozen=True)
class Verdict:
    """alone, removed: None if the study does not do so."""

    switch: Switch
    alone: Compared | None
    removed: Compared | None

    @property
    def outcome(self) -> Outcome:
        said = {one.outcome for one in (self.alone, self.removed) if one is not None}
        if {"helps", "hurts"} <= said:
            return "depends"
        for outcome in STRONGEST_FIRST:
            if outcome in said:
                return outcome
        return "not measured"

    def to_json(self) -> dict[str, Any]:
        switch = self.switch
        about = {"title": switch.title, "class": switch.kind, "gain": switch.gain, "source": switch.source}
        both = {key: one.to_json() for key, one in (("alone", self.alone), ("removed", self.removed)) if one}
        return {"name": switch.name, **about, "outcome": self.outcome, **both}


class Target(NamedTuple):
    """A result to reach. fd: its distance at the end. macs: the training compute that it took."""

    name: str
    title: str
    fd: float
    macs: float


class Reach(NamedTuple):
    """The training compute at which the runs `name` first reach a target, by seed; None if they never do."""

    name: str
    target: str
    by_seed: Mapping[int, float | None]

    @property
    def macs(self) -> float | None:
        """The geometric mean over seeds; None unless all reach it."""
        values = [value for value in self.by_seed.values() if value is not None]
        if not values or len(values) < len(self.by_seed):
            return None
        return math.exp(sum(map(math.log, values)) / len(values))

    @property
    def times(self) -> int:
        return sum(value is not None for value in self.by_seed.values())


class Bar(NamedTuple):
    """Whether the full set, or the one of `switches`, reaches a target with a share of its training compute,
    all seeds counted."""

    name: str
    target: str
    share: float
    fd: float | None
    by_seed: Mapping[int, float]
    switches: tuple[str, ...] = ()

    @property
    def outcome(self) -> Literal["holds", "does not hold", "not measured"]:
        if self.fd is None or not self.by_seed:
            return "not measured"
        return "holds" if all(value <= self.fd for value in self.by_seed.values()) else "does not hold"


@dataclass(frozen=True)
class Judged:
    """Everything that an ablation found. Raises UsageError if study.json has no ablation that can be read."""

    table: Table
    ablation: Ablation = field(init=False)

    def __post_init__(self) -> None:
        with reading(ABOUT, "the switches of a study", error=UsageError):
            object.__setattr__(self, "ablation", Ablation.from_json(self.table.about.ablation))
            for key in ("references", "bars"):
                if not all(isinstance(one["name"], str) for one in self.table.about.ablation[key]):
                    raise ValueError(f"{key} is {shown(self.table.about.ablation[key])}")

    @cached_property
    def results(self) -> dict[Set, dict[int, Row]]:
        """The final row of each set of switches at the full budget, by seed."""
        rows = [row for row in self.table.part(FINAL) if row.settings.get("role") not in (REFERENCE, BAR)]
        groups = grouped(rows, lambda row: str(row.settings.get("set", "")))
        keys = {set_key(self.ablation, names): names for names in self.ablation.sets}
        return {keys[key]: {row.seed: row for row in group} for key, group in groups.items() if key in keys}

    def values(self, names: Set, metric: str) -> dict[int, float]:
        """ln fd, or a metric, of a set by seed."""
        found = {seed: _value(row, metric) for seed, row in self.results.get(names, {}).items()}
        return {seed: value for seed, value in found.items() if value is not None}

    def noise(self, metric: str = "") -> Noise | None:
        """Of sets that were trained apart; None if there are too few results of equal seeds."""
        sets = {names: self.values(names, metric) for names in self.ablation.sets}
        apart: dict[tuple[Any, ...], dict[int, float]] = {}
        for names, values in sets.items():
            if values:
                apart.setdefault(self._training(names), values)
        seeds = max((sorted(values) for values in apart.values()), key=len, default=[])
        complete = [values for values in apart.values() if sorted(values) == seeds]
        if len(seeds) < 2 or len(complete) < 2:
            return None
        y = np.array([[values[seed] for seed in seeds] for values in complete])
        residuals = y - y.mean(1, keepdims=True) - y.mean(0, keepdims=True) + y.mean()
        df = (y.shape[0] - 1) * (y.shape[1] - 1)
        s = math.sqrt(float((residuals**2).sum()) / df)
        return Noise(s, df, y.shape[1], t_quantile(df) * s * math.sqrt(2 / y.shape[1]))

    def shared_noise(self, metric: str = "") -> Noise | None:
        """Of the difference of two sets that share their training runs; s is the deviation over sqrt 2."""
        squares, df, n = 0.0, 0, 0
        for pair in self.ablation.pairs:
            if self._share(pair):
                values = list(self._differences(pair, metric).values())
                if len(values) > 1:
                    squares += sum((value - sum(values) / len(values)) ** 2 for value in values)
                    df, n = df + len(values) - 1, len(values)
        if not df:
            return None
        s = math.sqrt(squares / df / 2)
        return Noise(s, df, n, t_quantile(df) * s * math.sqrt(2 / n))

    def _training(self, names: Set) -> tuple[Any, ...]:
        """Equal for sets that share their training runs: their losses are the same numbers."""
        rows = self.results.get(names, {})
        same = tuple((seed, row.loss, row.params, row.train_macs) for seed, row in sorted(rows.items()))
        return (
            same if all(row.loss is not None for row in rows.values()) else (set_key(self.ablation, names),)
        )

    def _share(self, pair: Pair) -> bool:
        return self._training(pair.without) == self._training(pair.having)

    def _differences(self, pair: Pair, metric: str) -> dict[int, float]:
        """By seed, above 0 if the set with the switch is better."""
        without, having = self.values(pair.without, metric), self.values(pair.having, metric)
        sign = 1 if metric else -1
        return {
            seed: sign * (having[seed] - without[seed]) for seed in sorted(without.keys() & having.keys())
        }

    def effect(self, pair: Pair, metric: str = "") -> Effect | None:
        """The effect of a switch on ln fd (metric "") or on a metric that is better if higher."""
        values = self._differences(pair, metric)
        if not values:
            return None
        noise = self.shared_noise(metric) if self._share(pair) else self.noise(metric)
        n = len(values)
        least = None if noise is None or n < 2 else noise.least * math.sqrt(noise.n / n)
        return Effect(sum(values.values()) / n, least, values)

    def compared(self, pair: Pair) -> Compared:
        distance = self.effect(pair)
        names = [self.ablation.name(names) for names in (pair.without, pair.having)]
        why = ""
        if distance is None:
            failed = self.table.about.failed
            why = "; ".join(f"{name}: {failed[name]}" for name in names if name in failed) or "no results yet"
        return Compared(pair.role, names[0], names[1], distance, self.effect(pair, ACCURACY), why)

    @cached_property
    def verdicts(self) -> tuple[Verdict, ...]:
        """Of each judged switch, in the study's order."""
        pairs = {(pair.switch, pair.role): self.compared(pair) for pair in self.ablation.pairs}
        return tuple(
            Verdict(self.ablation.switches[name], pairs.get((name, ALONE)), pairs.get((name, "removed")))
            for name in self.ablation.judged
        )

    @cached_property
    def chances(self) -> float:
        """How many of the judged comparisons would differ by chance alone if no switch did anything."""
        known = [one for v in self.verdicts for one in (v.alone, v.removed) if one and one.distance]
        return P * sum(one.distance is not None and one.distance.least is not None for one in known)

    @cached_property
    def finalists(self) -> list[str]:
        """The switches that help alone, those with the largest effect first."""
        helpful = [v for v in self.verdicts if v.alone and v.alone.distance and v.alone.outcome == "helps"]
        helpful.sort(key=lambda v: -v.alone.distance.value)  # pyright: ignore[reportOptionalMemberAccess]
        return [verdict.switch.name for verdict in helpful]

    @cached_property
    def targets(self) -> tuple[Target, ...]:
        """The baseline and each reference that has a result: its mean distance at the end (of logarithms)."""
        found = []
        declared = [{"name": BASELINE, "title": BASELINE}, *self.table.about.ablation["references"]]
        for one in declared:
            if "fd" in one:
                found.append(Target(one["name"], one["title"], float(one["fd"]), float(one["train_macs"])))
                continue
            rows = self.rows(one["name"], FINAL)
            logs = [math.log(row.distance) for row in rows]
            if logs:
                fd = math.exp(sum(logs) / len(logs))
                found.append(Target(one["name"], one["title"], fd, float(rows[0].train_macs)))
        return tuple(found)

    def rows(self, name: str, part: str) -> list[Row]:
        """The evaluated rows of the baseline, of the full set, of a reference or of a bar; all seeds."""

        def is_it(row: Row) -> bool:
            role, switch = row.settings.get("role"), row.settings.get("switch")
            return role == name if name in (BASELINE, FULL) else role in (REFERENCE, BAR) and switch == name

        return self.table.part(part, lambda row: row.fd is not None and row.fd > 0 and is_it(row))

    @cached_property
    def reached(self) -> tuple[Reach, ...]:
        """When the baseline, the full set and the references that were trained reach each target."""
        names = [BASELINE, FULL, *(one["name"] for one in self.table.about.ablation["references"])]
        found = []
        for name in names:
            seeds = grouped(self.rows(name, TRAINING), lambda row: row.seed)
            for target in self.targets if seeds else ():
                if target.name != name:
                    by_seed = {seed: first_at(points(rows), target.fd) for seed, rows in seeds.items()}
                    found.append(Reach(name, target.name, by_seed))
        return tuple(found)

    @cached_property
    def bars(self) -> tuple[Bar, ...]:
        targets = {target.name: target.fd for target in self.targets}
        found = []
        for bar in self.table.about.ablation["bars"]:
            by_seed = {row.seed: row.distance for row in self.rows(bar["name"], FINAL)}
            target = targets.get(bar["reference"])
            switches = tuple(bar.get("switches", ()))
            found.append(Bar(bar["name"], bar["reference"], float(bar["share"]), target, by_seed, switches))
        return tuple(found)

    def to_json(self) -> dict[str, Any]:
        noises = {"apart": self.noise(), "shared": self.shared_noise()}
        return {
            "study": self.table.about.name,
            "distance": self.table.about.distance,
            "rule": RULE,
            "noise": {key: None if one is None else one._asdict() for key, one in noises.items()},
            "false_by_chance": self.chances,
            "budget": self.table.about.ablation["budget"],
            "rates": self.table.about.ablation["rates"],
            "switches": [verdict.to_json() for verdict in self.verdicts],
            "finalists": self.finalists,
            "targets": [target._asdict() for target in self.targets],
            "reached": [
                {**one._asdict(), "by_seed": _by_seed(one.by_seed), "macs": one.macs} for one in self.reached
            ],
            "bars": [
                {**bar._asdict(), "by_seed": _by_seed(bar.by_seed), "outcome": bar.outcome}
                for bar in self.bars
            ],
        }


def _by_seed(values: Mapping[int, Any]) -> dict[str, Any]:
    return {str(seed): value for seed, value in values.items()}


def _value(row: Row, metric: str) -> float | None:
    if metric:
        return row.metric(metric)
    return None if row.fd is None or row.fd <= 0 else math.log(row.fd)


def percent(log: float, signed: bool = False) -> str:
    """A difference of logarithms as a change in percent: '18 %', '4.2 %'; signed: '-18 %', '0.0 %'."""
    value = 100 * math.expm1(log)
    text = f"{value:{'+' if signed else ''}.{0 if abs(value) >= 9.95 else 1}f}"
    return f"{'0.0' if float(text) == 0 else text} %"


def points(rows: Sequence[Row]) -> list[tuple[float, float]]:
    """(training multiply-adds, distance) of the evaluations of one run, by rising compute."""
    return sorted((float(row.train_macs), row.distance) for row in rows)


def first_at(curve: Sequence[tuple[float, float]], fd: float) -> float | None:
    """The compute at which a curve first falls to `fd`; that of its first point if that is as low already,
    which is then an upper bound; None if it never does."""
    for i, (macs, distance) in enumerate(curve):
        if distance <= fd:
            if i == 0:
                return macs
            before, above = curve[i - 1]
            share = math.log(above / fd) / math.log(above / distance)
            return math.exp(math.log(before) + share * math.log(macs / before))
    return None


def t_quantile(df: float, p: float = P) -> float:
    """The t that Student's t with df degrees of freedom exceeds in absolute value with probability p.

    P(|T| > t) = 1 - I(atan(t / sqrt(df))) / I(pi / 2)       I(x) = integral from 0 to x of cos(u)^(df - 1) du
    """
    width = math.pi / 2 / POINTS
    edges = np.arange(1, POINTS + 1) * width
    below = np.cumsum(np.cos(edges - width / 2) ** (df - 1))
    angle = float(np.interp(1 - p, below / below[-1], edges))
    return math.sqrt(df) * math.tan(angle)
