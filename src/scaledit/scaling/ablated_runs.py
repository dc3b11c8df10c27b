"""The runs of an ablation, declared in TOML: every set of switches at the training compute of the baseline.

    steps = round(budget / multiply-adds of a step)         budget: train_macs of the baseline (`compute`)

    recipe = "digits-paper"            # the baseline, with [common]
    seeds = 3
    full = ["flow", "muon"]            # the full set; all switches by default
    [common]
    train.steps = 900                  # of the baseline
    [budget]
    evaluations = 6                    # during each training, evenly spaced
    [rates]
    grid = [2e-3, 4e-3, 8e-3]          # baseline and full set each take the best one on this seed
    seed = 100
    [switches.flow]                    # see `ablation.Switch`
    class = "objective"
    set.diffusion.schedule = "flow"    # replaces a value
    add.diffusion.terms = [{...}]      # appends to a list of parts
    [[references]]                     # another recipe with changes (set); or a number: fd and train_macs
    name = "demo"
    recipe = "digits"
    [[bars]]                           # the full set with this share of a reference's training compute
    reference = "demo"                 # switches = [...]: another set
    share = 0.5
    [[measure]]                        # one, of part "final"
    evaluate.seeds = 3

A set uses the learning rate of the set that it changes, baseline or full. A switch with own_rate (an
optimizer) makes another set of it, which chooses a rate of its own. A learning rate that is the only one of
its grid is taken without trials. Warm-up steps are scaled with the steps. Sets that differ in [sample] and
[evaluate] only share a training. Imports no torch.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from scaledit import config as configs
from scaledit.config import RunConfig, old, tables
from scaledit.errors import UsageError, did_you_mean, listed, shown
from scaledit.scaling.ablation import (
    BAR,
    BASELINE,
    FULL,
    NAME,
    RATE,
    REFERENCE,
    Ablation,
    Set,
    flat,
    overlap,
    part_name,
    rates_of,
    set_key,
    switch_of,
)
from scaledit.scaling.compute import steps_within, train_macs_of
from scaledit.scaling.study import SEED, AblationStudy, Measurement, Study, StudyRun
from scaledit.scaling.table import FINAL

KEYS = (
    "title", "extends", "recipe", "common", "seeds", "full", "judged", "removes", "budget", "rates",
    "switches", "references", "bars", "measure",
)  # fmt: skip
RATE_KEY = "optimizer.learning_rate"
DECIDED = (RATE_KEY, SEED, "train.steps", "evaluate.every", "sample.every")
"""Keys that the study itself sets, so that no switch may."""
LIKE_ALL = ("sample", "evaluate", "autoencoder", "checkpoint", "log", "engine")
"""Sections of [common] that hold for references, too: how they are sampled, evaluated and stored."""
MOST_SEEDS = 100


@dataclass
class _Plan:
    """A study under construction."""

    study: str
    recipe: str
    common: Mapping[str, Any]
    ablation: Ablation
    seeds: tuple[int, ...]
    budget: int
    evaluations: int
    grid: tuple[float, ...]
    rate_seed: int
    final: Mapping[str, Any]
    runs: dict[str, StudyRun] = field(default_factory=dict)
    measurements: list[Measurement] = field(default_factory=list)
    trials: dict[str, tuple[StudyRun, ...]] = field(default_factory=dict)
    loaded: dict[Set, RunConfig] = field(default_factory=dict)

    def keys(self, names: Set) -> dict[str, Any]:
        """The changes to the recipe that a set of switches makes, with [common]."""
        keys = dict(self.common)
        for name in self.ablation.ordered(names):
            switch = self.ablation.switches[name]
            for key, value in switch.set.items():
                if not key.endswith(".name"):
                    keys = {k: v for k, v in keys.items() if k == key or not k.startswith(f"{key}.")}
                keys[key] = value
            for key, parts in switch.add.items():
                keys[key] = self._extended(keys, name, key, parts)
        return keys

    def _extended(self, keys: Mapping[str, Any], switch: str, key: str, parts: Sequence[Any]) -> list[Any]:
        """The list of parts of `key`, with more of them at its end."""
        where = f"{self.study}: switches.{switch}.add.{key}"
        config = self.load(keys, where)
        current: Any = config.to_json()
        for word in key.split("."):
            current = current.get(word) if isinstance(current, Mapping) else None
        section, _, name = key.partition(".")
        kinds = {
            f"{s}.{k}": k for s, cls in tables.section_types(RunConfig).items() for k in tables.hints(cls)
        }
        if key not in kinds:
            raise UsageError(f"{where}: unknown key {key!r}{did_you_mean(key, kinds)}")
        if tables.parts_kind(tables.hints(tables.section_types(RunConfig)[section])[name]) is None:
            raise UsageError(f"{where}: {key} is no list of parts; write set.{key} = value")
        have = [part for part in current or () if not _idle(config, key, part)]
        if twice := {part_name(part) for part in have} & {part_name(part) for part in parts}:
            raise UsageError(f"{where}: {listed(sorted(map(str, twice)), 'and')} is in {key} already")
        return [*have, *parts]

    def load(self, keys: Mapping[str, Any], where: str, recipe: str = "") -> RunConfig:
        try:
            return configs.load(recipe or self.recipe, [configs.override(k, v) for k, v in keys.items()])
        except UsageError as error:
            raise UsageError(f"{where}: {error}") from None

    def config(self, names: Set) -> RunConfig:
        """Of a set of switches, before its steps are chosen."""
        if names not in self.loaded:
            where = f"{self.study}: {self.ablation.name(names)}"
            self.loaded[names] = self.load(self.keys(names), where)
        return self.loaded[names]

    def at(self, config: RunConfig, budget: int, seed: int) -> RunConfig:
        """`config` with the steps of that many multiply-adds, and all that follows the number of steps."""
        steps, declared = steps_within(config, budget), config.train.steps
        warmup = round(config.optimizer.warmup_steps * steps / declared)
        values = {
            "train.steps": steps,
            SEED: seed,
            "evaluate.every": math.ceil(steps / self.evaluations),
            "sample.every": steps,
            "optimizer.warmup_steps": warmup,
            "sample.guidance": config.evaluate.guidance,  # the sample grids show what is measured
        }
        return configs.with_values(config, values)

    def trials_of(self, names: Set) -> tuple[float | None, tuple[StudyRun, ...]]:
        """The learning rate of a set if it is known from the start, else the trials that decide it."""
        origin = (
            self.ablation.full if self.ablation.from_full(names) or names == self.ablation.full else Set()
        )
        own = {name for name, switch in self.ablation.switches.items() if switch.own_rate}
        owner = set(origin)
        for name in own & (origin - names):
            owner -= {name, *self.ablation.dependents(name)}
        for name in own & (names - origin):
            owner |= {name, *self.ablation.requirements(name)}
        grid = self.grid
        for name in self.ablation.ordered(owner & own):
            grid = self.ablation.switches[name].rates or grid
        if not grid:
            return None, ()
        if len(grid) == 1:
            return grid[0], ()
        title = self.ablation.name(frozenset(owner))
        if title not in self.trials:
            self.trials[title] = tuple(self._trial(frozenset(owner), title, rate) for rate in grid)
        return None, self.trials[title]

    def _trial(self, names: Set, title: str, rate: float) -> StudyRun:
        config = self.at(self.config(names), self.budget, self.rate_seed)
        config = configs.with_values(config, {RATE_KEY: rate, "evaluate.every": config.train.steps})
        settings = {"role": RATE, "switch": "", "set": set_key(self.ablation, names)}
        return self._run(f"rate {rate:g} {title}", config, settings, may_diverge=True)

    def add(self, name: str, names: Set, role: str, switch: str, budget: int) -> None:
        """All seeds of a set of switches with a budget."""
        rate, trials = self.trials_of(names)
        for seed in self.seeds:
            config = self.at(self.config(names), budget, seed)
            if rate is not None:
                config = configs.with_values(config, {RATE_KEY: rate})
            settings = {"role": role, "switch": switch, "set": set_key(self.ablation, names)}
            self.place(_with_seed(name, seed, self.seeds), config, settings, trials)

    def place(
        self, name: str, config: RunConfig, settings: Mapping[str, Any], trials: tuple[StudyRun, ...] = ()
    ) -> None:
        """A training, or another measurement of an equal one, and its result at the end."""
        key = _training_key(config, trials)
        if key not in self.runs:
            self.runs[key] = self._run(name, config, settings, trials=trials)
        run = self.runs[key]
        measured = self._measured(config)
        self.measurements.append(Measurement(run, FINAL, measured, self.final, name, _settings(settings)))

    def _measured(self, config: RunConfig) -> RunConfig:
        try:
            return configs.with_values(config, self.final)
        except UsageError as error:
            raise UsageError(f"{self.study}: {error}") from None

    def _run(self, name: str, config: RunConfig, settings: Mapping[str, Any], **more: Any) -> StudyRun:
        size = f"{config.model.depth}x{config.model.hidden_size}"
        return StudyRun(name, size, config, _settings(settings), {}, **more)


def study(study: str, table: Mapping[str, Any], declared: str) -> Study:
    """The study of a table with [switches].

    Raises UsageError for unknown keys, for switches that contradict each other, for sets that the recipe
    cannot express, and for references and bars that do not exist.
    """
    for key in table:
        if key not in KEYS:
            raise UsageError(f"{study}: unknown key {key!r} beside [switches]{did_you_mean(key, KEYS)}")
    for key in ("recipe", "title"):
        if not isinstance(table.get(key, ""), str):
            raise UsageError(f"{study}: {key} must be a string, got {shown(table[key])}")
    if not table.get("recipe"):
        raise UsageError(f"{study} lacks the key 'recipe'")
    plan = _plan(study, table)
    ablation = plan.ablation
    for names, (role, switch) in ablation.sets.items():
        plan.add(ablation.name(names), names, role, switch, plan.budget)
    references = tuple(_references(plan, table.get("references", [])))
    bars = tuple(_bars(plan, table.get("bars", []), references))
    trials = [run for runs in plan.trials.values() for run in runs]
    runs = (*trials, *plan.runs.values())
    sizes = dict.fromkeys(run.size for run in sorted(runs, key=lambda run: run.config.model.hidden_size))
    found = AblationStudy(ablation, plan.seeds, plan.budget, references, bars, plan.trials)
    name = Path(study).stem
    title = str(table.get("title") or f"{len(ablation.judged)} switches of {plan.recipe}")
    return Study(name, title, runs, tuple(plan.measurements), tuple(sizes), declared, {}, found)


def _plan(study: str, table: Mapping[str, Any]) -> _Plan:
    common = flat(table.get("common", {}), f"{study}: common")
    budget = _keys(study, "budget", table.get("budget", {}), ("evaluations",))
    rates = _keys(study, "rates", table.get("rates", {}), ("grid", "seed"))
    declared = table["switches"]
    if not isinstance(declared, Mapping):
        raise UsageError(f"{study}: switches must be tables, [switches.NAME]")
    switches = {name: switch_of(name, of, f"{study}: ") for name, of in declared.items()}
    for name, switch in switches.items():
        for key in (*switch.set, *switch.add):
            if taken := next((one for one in DECIDED if overlap(key, _now(one))), ""):
                raise UsageError(
                    f"{study}: switches.{name} sets {key}, but {taken} is chosen by the study (see [rates] "
                    "and [budget])"
                )
    names = {}
    for key, default in (("full", list(switches)), ("judged", list(switches))):
        names[key] = table.get(key, default)
        if not isinstance(names[key], list) or not all(isinstance(name, str) for name in names[key]):
            raise UsageError(f"{study}: {key} must be a list of names of switches, got {shown(names[key])}")
    removes = table.get("removes", True)
    if not isinstance(removes, bool):
        raise UsageError(f"{study}: removes must be true or false, got {shown(removes)}")
    try:
        ablation = Ablation(switches, frozenset(names["full"]), tuple(names["judged"]), removes)
    except UsageError as error:
        raise UsageError(f"{study}: {error}") from None
    evaluations = budget.get("evaluations", 1)
    if type(evaluations) is not int or evaluations < 1:
        raise UsageError(f"{study}: budget.evaluations must be a whole number of at least 1")
    grid = rates_of(rates.get("grid", []), f"{study}: rates.grid")
    seeds = _seeds(study, table.get("seeds", 1))
    rate_seed = rates.get("seed", 100)
    if type(rate_seed) is not int or rate_seed in seeds:
        raise UsageError(
            f"{study}: rates.seed must be a seed that no run of the study uses (seeds {list(seeds)}), got "
            f"{shown(rate_seed)}"
        )
    plan = _Plan(
        study, table["recipe"], common, ablation, seeds, 0, evaluations, grid, rate_seed, _final(study, table)
    )
    plan.budget = train_macs_of(plan.config(frozenset()))
    return plan


def _references(plan: _Plan, blocks: Any) -> Iterator[dict[str, Any]]:
    """Trains references that are recipes. A reference is {"name", "title", "train_macs"}, and "fd" if it is a
    number of another study."""
    seen: set[str] = set()
    for block in _tables(plan.study, "references", blocks):
        table = _keys(
            plan.study, "references", block, ("name", "title", "recipe", "set", "fd", "train_macs", "source")
        )
        name = table.get("name")
        where = f"{plan.study}: references"
        if not isinstance(name, str) or not NAME.fullmatch(name) or name in (BASELINE, FULL):
            raise UsageError(f"{where}: name must have lower-case letters, digits and _; got {shown(name)}")
        if name in seen:
            raise UsageError(f"{where}: {name!r} is declared twice")
        seen.add(name)
        title = str(table.get("title", name))
        if "recipe" not in table:
            for key in ("fd", "train_macs"):
                if type(table.get(key)) not in (int, float) or not 0 < table[key] < math.inf:
                    raise UsageError(
                        f"{where}: {name} needs a recipe, or fd and train_macs as numbers above 0, got "
                        f"{key} = {shown(table.get(key))}"
                    )
            source = str(table.get("source", ""))
            fixed = {"fd": float(table["fd"]), "train_macs": int(table["train_macs"]), "source": source}
            yield {"name": name, "title": title, **fixed}
            continue
        keys = {key: v for key, v in plan.common.items() if key.partition(".")[0] in LIKE_ALL}
        keys |= flat(table.get("set", {}), f"{where}: {name}: set")
        config = plan.load(keys, f"{where}: {name}", str(table["recipe"]))
        macs = train_macs_of(config)
        for seed in plan.seeds:
            settings = {"role": REFERENCE, "switch": name, "set": ""}
            plan.place(_with_seed(name, seed, plan.seeds), plan.at(config, macs, seed), settings)
        yield {"name": name, "title": title, "train_macs": macs}


def _bars(plan: _Plan, blocks: Any, references: Sequence[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """Trains the full set, or the set of `switches`, with a share of the compute of each reference."""
    macs = {reference["name"]: reference["train_macs"] for reference in references}
    macs[BASELINE] = plan.budget
    for block in _tables(plan.study, "bars", blocks):
        table = _keys(plan.study, "bars", block, ("reference", "share", "switches"))
        reference, share = table.get("reference"), table.get("share")
        if reference not in macs:
            raise UsageError(
                f"{plan.study}: bars: unknown reference {shown(reference)}"
                f"{did_you_mean(str(reference), macs)}"
            )
        if isinstance(share, bool) or not isinstance(share, int | float) or not 0 < share <= 1:
            raise UsageError(f"{plan.study}: bars: share must be above 0 and at most 1, got {shown(share)}")
        names, listed_names = plan.ablation.full, table.get("switches", [])
        if "switches" in table:
            names = _set(plan, listed_names)
        budget = round(macs[reference] * share)
        name = f"{plan.ablation.name(names)} at {share:g} of {reference}"
        plan.add(name, names, BAR, name, budget)
        of = {"switches": plan.ablation.ordered(names)} if "switches" in table else {}
        yield {"name": name, "reference": reference, "share": share, "train_macs": budget, **of}


def _set(plan: _Plan, names: Any) -> Set:
    """The switches that a bar lists. Raises UsageError if they cannot be one set."""
    ablation = plan.ablation
    try:
        if not isinstance(names, list) or not names:
            raise UsageError(f"bars: switches must be a list of names, got {shown(names)}")
        for name in names:
            if name not in ablation.switches:
                raise UsageError(
                    f"bars: unknown switch {shown(name)}{did_you_mean(str(name), ablation.switches)}"
                )
            if missing := ablation.requirements(name) - set(names):
                raise UsageError(f"bars: {name} requires {listed(ablation.ordered(missing), 'and')}")
        ablation.check_set(frozenset(names), "bars")
    except UsageError as error:
        raise UsageError(f"{plan.study}: {error}") from None
    return frozenset(names)


def _final(study: str, table: Mapping[str, Any]) -> dict[str, Any]:
    """The changes to [sample], [evaluate] and [autoencoder] for the result at the end of training."""
    blocks = _tables(study, "measure", table.get("measure", [{}]))
    if len(blocks) != 1 or blocks[0].get("part", FINAL) != FINAL:
        raise UsageError(f'{study}: an ablation measures once, at the end: one [[measure]] of part "{FINAL}"')
    changes = flat({key: value for key, value in blocks[0].items() if key != "part"}, f"{study}: measure")
    for key in changes:
        if key.partition(".")[0] not in ("sample", "evaluate", "autoencoder") or "guidance" in key:
            raise UsageError(
                f"{study}: measure can change sample, evaluate and autoencoder for all sets alike, but no "
                f"guidance, not {key}"
            )
    return changes


def _seeds(study: str, value: Any) -> tuple[int, ...]:
    seeds: Any = list(range(value)) if type(value) is int and 0 < value <= MOST_SEEDS else value
    if (
        not isinstance(seeds, list)
        or not 0 < len(seeds) <= MOST_SEEDS
        or not all(type(seed) is int for seed in seeds)
        or len(set(seeds)) < len(seeds)
    ):
        raise UsageError(
            f"{study}: seeds must be a whole number from 1 to {MOST_SEEDS} or a list of different seeds, got "
            f"{shown(value)}"
        )
    return tuple(seeds)


def _keys(study: str, where: str, table: Any, known: Sequence[str]) -> Mapping[str, Any]:
    if not isinstance(table, Mapping):
        raise UsageError(f"{study}: {where} must be a table of keys, got {shown(table)}")
    for key in table:
        if key not in known:
            raise UsageError(f"{study}: unknown key {where}.{key}{did_you_mean(key, known)}")
    return table


def _tables(study: str, key: str, blocks: Any) -> list[Mapping[str, Any]]:
    if not isinstance(blocks, list) or not all(isinstance(block, Mapping) for block in blocks):
        raise UsageError(f"{study}: {key} must be written as [[{key}]]")
    return blocks


def _with_seed(name: str, seed: int, seeds: Sequence[int]) -> str:
    return name if seed == seeds[0] else f"{name} seed {seed}"


def _settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in settings.items() if value}


def _training_key(config: RunConfig, trials: Sequence[StudyRun]) -> str:
    """Equal for runs that train the same, whatever is sampled afterwards."""
    values = {key: v for key, v in config.to_json().items() if key not in ("sample", "evaluate", "name")}
    return json.dumps([values, [trial.name for trial in trials]], sort_keys=True)


def _idle(config: RunConfig, key: str, part: Any) -> bool:
    """Whether a part of a list changes nothing: guidance of scale 1."""
    section, _, name = key.partition(".")
    parts = getattr(getattr(config, section), name)
    return any(getattr(one, "idle", False) and one.to_json() == part for one in parts)


def _now(key: str) -> str:
    """A key of earlier versions as it is called now."""
    return ".".join(old.RENAMED.get(tuple(key.split(".")), (key,)))
