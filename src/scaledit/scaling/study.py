"""A study: a grid of runs and the measurements of each, declared in TOML.

    runs = union over [[runs]] of (size x patch x block x seed x ...)        each the recipe with changes
    results = runs x [[measure]]                                            each a run with other [sample] ...

    title = "..."
    recipe = "digits-paper"
    [sizes.S]                          # keys of [model] under a name; smallest size first
    depth = 3
    [common]                           # changes to the recipe that all runs share
    train.steps = 3000
    [[runs]]                           # a list is a choice: all combinations are run
    size = ["S", "B"]
    model.patch_size = [4, 2, 1]
    [[measure]]                        # may change [sample], [evaluate] and [autoencoder]; lists are choices
    part = "sampling"
    where.train.seed = 0               # selects runs; without it all are measured
    sample.sampler.steps = [16, 32, 64]

A value that is itself a list, such as optimizer.betas, is written as a list of one list.

A sweep varies keys of a recipe and compares the values with each other:

    recipe = "digits"
    vary.optimizer.learning_rate = [1e-3, 3e-3, 1e-2]
    seeds = 3                          # or a list of seeds; 1 by default
    common.train.steps = 300

A study with [[runs]] of one model that only measures the end of training is reported as a sweep, too. A study
with [switches.NAME] is an ablation (`ablated_runs`). Imports no torch.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scaledit import config as configs
from scaledit.config import RunConfig, old
from scaledit.errors import UsageError, did_you_mean, listed, near_path, shown
from scaledit.scaling.ablation import Ablation
from scaledit.scaling.table import DECODER, FINAL, GUIDANCE, SAMPLING, file_name

STUDIES = Path(__file__).parent.parent / "studies"
KEYS = ("title", "extends", "recipe", "sizes", "common", "vary", "seeds", "runs", "measure")
SWITCHES = "switches"
"""The key that makes a study an ablation, whose other keys `ablated_runs` reads."""
MEASURED = ("sample", "evaluate", "autoencoder")
"""Sections that a measurement may change; none affects the training."""
IN_NAME = ("model.patch_size", "model.name", "model.conditioning", "train.seed", "train.steps")
"""Keys that the name of a run and the table's own columns include."""
SEED = "train.seed"
OF_THE_PAPER = ("size", "model.patch_size", "model.name", "model.conditioning")
"""What the paper's studies vary."""
MOST_RUNS = 10_000


@dataclass(frozen=True)
class StudyRun:
    """One training. size: as in the table. settings: the other keys that the study varies, by
    'section.key'. choice: all keys that it varies. trials: finished before it; its learning rate is that of
    the best of them, not the one of `config`. may_diverge: a trial, of which divergence is a result."""

    name: str
    size: str
    config: RunConfig
    settings: Mapping[str, Any]
    choice: Mapping[str, Any]
    trials: tuple[StudyRun, ...] = ()
    may_diverge: bool = False

    @property
    def key(self) -> str:
        """The name as a file name."""
        return file_name(self.name)


@dataclass(frozen=True)
class Measurement:
    """One result of a finished run, whose config has changed [sample], [evaluate] or [autoencoder]
    sections. name, settings: of its row, if they are not those of the run."""

    run: StudyRun
    part: str
    config: RunConfig
    changes: Mapping[str, Any]
    name: str = ""
    settings: Mapping[str, Any] | None = None

    @property
    def key(self) -> str:
        if self.name:
            return f"{file_name(self.name)}-{self.part}"
        words = [f"{old.word(key.partition('.')[2])}-{value}" for key, value in self.changes.items()]
        return "-".join([self.run.key, self.part, *words]).replace("/", "-").replace(" ", "-")


@dataclass(frozen=True)
class Study:
    """sizes: smallest first. declared: its TOML, after that of the study that it extends. varied: of a sweep,
    the values of each run, without the seed; empty for a study of the paper's claims. ablation: of a study of
    switches, else None."""

    name: str
    title: str
    runs: tuple[StudyRun, ...]
    measurements: tuple[Measurement, ...]
    sizes: tuple[str, ...]
    declared: str
    varied: Mapping[str, Mapping[str, Any]]
    ablation: AblationStudy | None = None


@dataclass(frozen=True)
class AblationStudy:
    """The part of a study of switches that its verdicts need. budget: multiply-adds of each training.
    references, bars: what the full set is compared with (`ablated_runs`). trials: by the name of the set that
    chooses its learning rate among them."""

    switches: Ablation
    seeds: tuple[int, ...]
    budget: int
    references: tuple[Mapping[str, Any], ...]
    bars: tuple[Mapping[str, Any], ...]
    trials: Mapping[str, tuple[StudyRun, ...]]


def names() -> list[str]:
    """The built-in studies."""
    return sorted(path.stem for path in STUDIES.glob("*.toml"))


def load(study: str) -> Study:
    """Loads a study by name or by the path of a .toml file.

    Raises UsageError for an unknown study, key or size, for runs that the recipe cannot express, for two runs
    with the same name, for a measurement that selects no run, and as `ablated_runs.study` does.
    """
    table, declared = _read(study)
    if SWITCHES in table:
        from scaledit.scaling import ablated_runs  # which builds on this module

        return ablated_runs.study(study, table, declared)
    for key in table:
        if key not in KEYS:
            raise UsageError(f"{study}: unknown key {key!r}{did_you_mean(key, KEYS)}")
    table, is_sweep = _with_runs(study, table)
    for key in ("recipe", "runs"):
        if not table.get(key):
            instead = ' (or "vary")' if key == "runs" else ""
            raise UsageError(f"{study} lacks the key {key!r}{instead}")
    for key in ("recipe", "title"):
        if not isinstance(table.get(key, ""), str):
            raise UsageError(f"{study}: {key} must be a string, got {shown(table[key])}")
    sizes = _mapping(study, "sizes", table.get("sizes", {}))
    for size, shape in sizes.items():
        _mapping(study, f"sizes.{size}", shape)
    runs = tuple(_runs(study, table, sizes))
    rising = dict.fromkeys(run.size for run in sorted(runs, key=lambda run: run.config.model.hidden_size))
    order = [size for size in sizes or rising if size in rising]
    name = Path(study).stem
    # A sweep without a reference compares losses.
    can_judge = not is_sweep or all(run.config.evaluate.reference for run in runs)
    measure = table.get("measure", [{"part": FINAL}] if can_judge else [])
    measurements = tuple(_measurements(study, measure, runs))
    varied = _varied(study, runs, measurements, is_sweep)
    title = str(table.get("title") or _title(table, varied) or name)
    return Study(name, title, runs, measurements, tuple(order), declared, varied)


def _with_runs(study: str, table: Mapping[str, Any]) -> tuple[dict[str, Any], bool]:
    """A study whose "vary" and "seeds" are written as [[runs]], and whether it had them."""
    table = dict(table)
    vary, seeds = table.pop("vary", None), table.pop("seeds", None)
    if vary is None:
        if seeds is not None:
            raise UsageError(f"{study}: seeds goes with vary; in [[runs]], write train.seed = [0, 1, 2]")
        return table, False
    if "runs" in table:
        raise UsageError(f"{study} has vary and [[runs]]; use one of them")
    flat = configs.flatten(_mapping(study, "vary", vary))
    if not flat:
        raise UsageError(f"{study}: vary is empty; write vary.optimizer.learning_rate = [1e-3, 3e-3]")
    for key, values in flat.items():
        if not isinstance(values, list) or not values:
            raise UsageError(f"{study}: vary.{key} must be a list of values, got {shown(values)}")
        if key == SEED:
            raise UsageError(f"{study}: write seeds = {len(values)} instead of vary.{SEED}")
        if key.partition(".")[0] in ("sample", "evaluate"):
            raise UsageError(
                f"{study}: vary.{key} changes nothing in training, so every value would train the same run; "
                "use it in a [[measure]] of [[runs]]"
            )
    if not (isinstance(seeds, list) and seeds) and type(seeds) not in (int, type(None)):
        raise UsageError(f"{study}: seeds must be a whole number or a list of seeds, got {shown(seeds)}")
    if isinstance(seeds, int) and not 1 <= seeds <= MOST_RUNS:
        raise UsageError(f"{study}: seeds must be from 1 to {MOST_RUNS:,}, got {seeds}")
    chosen = {} if seeds is None else {SEED: [*range(seeds)] if isinstance(seeds, int) else seeds}
    return {**table, "runs": [{**flat, **chosen}]}, True


def _varied(
    study: str, runs: Sequence[StudyRun], measurements: Sequence[Measurement], is_sweep: bool
) -> dict[str, dict[str, Any]]:
    """The values of each run of a sweep: of a study with "vary", or one of a single model whose runs are
    measured once, at their end."""
    varied = {run.name: {key: v for key, v in run.choice.items() if key != SEED} for run in runs}
    once = len({m.run.name for m in measurements}) == len(measurements)
    if not once or any(measurement.part != FINAL for measurement in measurements):
        if is_sweep:
            raise UsageError(
                f"{study}: a study with vary measures each run once, at its end; for more, write [[runs]]"
            )
        return {}
    keys = {key for values in varied.values() for key in values}
    is_of_paper = any(key in OF_THE_PAPER for key in keys) or any(
        len(v) != len(keys) for v in varied.values()
    )
    return varied if is_sweep or (keys and not is_of_paper) else {}


def _title(table: Mapping[str, Any], varied: Mapping[str, Mapping[str, Any]]) -> str:
    """The title of a sweep without one; "" for other studies."""
    keys = list(dict.fromkeys(key for values in varied.values() for key in values))
    return f"{listed(keys, 'and')} of {table['recipe']}" if keys else ""


def _read(study: str, extended_by: tuple[str, ...] = ()) -> tuple[dict[str, Any], str]:
    """A study merged over the one that it extends (tables are merged, lists replaced), and the text of
    both."""
    if study in extended_by:
        raise UsageError(f"studies extend each other in a cycle: {' -> '.join([*extended_by, study])}")
    path = Path(study) if study.endswith(".toml") or "/" in study else STUDIES / f"{study}.toml"
    if not path.is_file():
        near = near_path(path) if path.parent != STUDIES else did_you_mean(study, names())
        raise UsageError(f"unknown study {study!r}{near}")
    table, text = configs.read_toml(path)
    base = table.pop("extends", None)
    if base is None:
        return table, text
    if not isinstance(base, str):
        raise UsageError(f"{path}: extends must be the name or the path of a study, got {shown(base)}")
    below, base_text = _read(base, (*extended_by, study))
    return _merged(below, table), f"{base_text}\n{text}"


def _merged(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in changes.items():
        nested = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = _merged(merged[key], value) if nested else value
    return merged


def _choices(table: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """All combinations of {'section.key': value}; a list is a choice of its values."""
    flat = configs.flatten(table)
    lists = [value if isinstance(value, list) else [value] for value in flat.values()]
    for values in itertools.product(*lists):
        yield dict(zip(flat, values, strict=True))


def _runs(study: str, table: Mapping[str, Any], sizes: Mapping[str, Any]) -> Iterator[StudyRun]:
    common = configs.flatten(_mapping(study, "common", table.get("common", {})))
    choices: list[dict[str, Any]] = []
    for block in _tables(study, "runs", table["runs"]):
        for choice in itertools.islice(_choices(block), MOST_RUNS):
            if choice not in choices:
                choices.append(choice)
    if len(choices) >= MOST_RUNS:
        raise UsageError(f"{study} declares {MOST_RUNS:,} runs or more; choose fewer values")
    varied = [key for key in dict.fromkeys(k for choice in choices for k in choice) if key != "size"]
    seeds = [choice.get("train.seed", common.get("train.seed", 0)) for choice in choices]
    seen: dict[str, dict[str, Any]] = {}
    for choice, seed in zip(choices, seeds, strict=True):
        run = _run(study, str(table["recipe"]), common, choice, sizes, varied, first=seed == seeds[0])
        config = run.config.to_json()
        if config in seen.values():
            continue  # two [[runs]] overlap
        if run.name in seen:
            raise UsageError(f"{study}: two different runs would be called {run.name!r}")
        seen[run.name] = config
        yield run


def _run(
    study: str,
    recipe: str,
    common: Mapping[str, Any],
    choice: Mapping[str, Any],
    sizes: Mapping[str, Any],
    varied: Iterable[str],
    first: bool,
) -> StudyRun:
    """first: whether it has the first seed, which its name omits."""
    size = choice.get("size")
    of_size: Mapping[str, Any] = {}
    if size is not None:
        if not isinstance(size, str) or size not in sizes:
            raise UsageError(f"{study}: unknown size {shown(size)}{did_you_mean(shown(size), sizes)}")
        of_size = {f"model.{key}": value for key, value in sizes[size].items()}
    keys = {**common, **of_size, **{key: value for key, value in choice.items() if key != "size"}}
    try:
        config = configs.load(recipe, [configs.override(key, value) for key, value in keys.items()])
    except UsageError as error:
        raise UsageError(f"{study}: {error}") from None
    model = config.model
    if size is None:
        name = str(choice.get("model.name", ""))
        size = name.removeprefix("DiT-").partition("/")[0] or f"{model.depth}x{model.hidden_size}"
    words = [f"{size}/{model.patch_size}"]
    default = configs.load(recipe).model.block if "model.conditioning" in choice else model.block
    words += [model.block.label()] if model.block != default else []
    words += [f"{config.train.steps} steps"] if "train.steps" in choice else []
    words += [] if first else [f"seed {config.train.seed}"]
    settings = {key: choice[key] for key in varied if key in choice and key not in IN_NAME}
    words += [f"{key.partition('.')[2]}={value}" for key, value in settings.items()]
    return StudyRun(" ".join(words), str(size), config, settings, choice)


def _measurements(study: str, blocks: Any, runs: tuple[StudyRun, ...]) -> Iterator[Measurement]:
    parts = (FINAL, SAMPLING, GUIDANCE, DECODER)
    seen: set[str] = set()
    for block in _tables(study, "measure", blocks):
        block = dict(block)
        part = block.pop("part", FINAL)
        where = configs.flatten(_mapping(study, "where", block.pop("where", {})))
        if part not in parts:
            near = did_you_mean(shown(part), parts)
            raise UsageError(f"{study}: unknown part {shown(part)} of a measure{near}")
        for section in block:
            if section not in MEASURED:
                raise UsageError(
                    f"{study}: a measure can change {listed(MEASURED, 'and')} only, not {shown(section)}"
                )
            _mapping(study, section, block[section])
        choices = list(itertools.islice(_choices(block), MOST_RUNS))
        if len(choices) == MOST_RUNS:
            raise UsageError(f"{study} declares {MOST_RUNS:,} measurements or more; choose fewer values")
        selected = [run for run in runs if _selected(study, run, where)]
        if not selected:
            wanted = ", ".join(f"{key}={value}" for key, value in where.items())
            raise UsageError(f"{study}: no run has {wanted}, which the measure of {part} selects")
        for run, changes in itertools.product(selected, choices):
            measurement = Measurement(run, part, _changed(study, run.config, changes), changes)
            if measurement.key not in seen:
                seen.add(measurement.key)
                yield measurement


def _selected(study: str, run: StudyRun, where: Mapping[str, Any]) -> bool:
    values = {**configs.flatten(run.config.to_json()), "size": run.size}
    for name, value in where.items():
        key = ".".join(old.RENAMED.get(tuple(name.split(".")), (name,)))
        if key not in values:
            raise UsageError(f"{study}: unknown key {key!r} in where{did_you_mean(key, values)}")
        if values[key] not in (value if isinstance(value, list) else [value]):
            return False
    return True


def _changed(study: str, config: RunConfig, changes: Mapping[str, Any]) -> RunConfig:
    try:
        return configs.with_values(config, changes)
    except UsageError as error:
        raise UsageError(f"{study}: {error}") from None


def _mapping(study: str, key: str, value: Any) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise UsageError(f"{study}: {key} must be a table of keys, got {shown(value)}")
    return value


def _tables(study: str, key: str, blocks: Any) -> list[Mapping[str, Any]]:
    if not isinstance(blocks, list) or not all(isinstance(block, Mapping) for block in blocks):
        raise UsageError(f"{study}: {key} must be written as [[{key}]]")
    return blocks
