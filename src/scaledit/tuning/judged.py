"""Judges every cell of a map, with no evaluation of the network made twice and no result computed twice.

    for each average of the weights, for each seed:  Shared.batches -> features -> metrics -> RUN/sweep/*.json

A result is found by a hash of all that it depends on (weights, sampler, guidance, noise, classes, reference).
So a map that was interrupted, or that is drawn again with more values, continues with what is there.

Halving: after two seeds, a cell gets no more if its first metric is worse than the best cell's by more than
MARGIN standard errors of their difference. All cells have the same noise and classes, so the difference of
two cells is taken seed by seed. Its variance is averaged over all cells of the same weights, because two
seeds tell little about one cell.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from scaledit import assemble
from scaledit.config import EvaluateConfig, SampleConfig
from scaledit.diffusion.guidance import active, spent
from scaledit.errors import RunError
from scaledit.evaluation.features import Extraction
from scaledit.evaluation.judge import Judge, sample_sets
from scaledit.evaluation.metric import Column
from scaledit.evaluation.protocol import describe
from scaledit.evaluation.samples import PipelineSamples
from scaledit.files.atomic import atomic_bytes
from scaledit.files.reading import read_json
from scaledit.pipeline import Pipeline
from scaledit.sampling.shared import Shared
from scaledit.scaling.sweep import badness
from scaledit.tuning import parts
from scaledit.tuning.cells import Cell, identity

MARGIN = 4.0
PART = 1_000
"""Images of each cell after which their features are kept, until the cell has its metrics."""
NOT_FINITE = "not finite"
LEFT_OUT = ("sampler", "guidance", "seed", "sample_sets", "samples", "weights", "sha256", "step")
"""Entries of a protocol that differ between the cells of a map."""


@dataclass
class Judged:
    """A cell and what it gave. section: [sample] of the run with its values. metrics: of each seed, by
    column. origin: of its weights. dropped: whether halving left out its last seeds. failed: why it has no
    metrics."""

    cell: Cell
    section: SampleConfig
    metrics: list[Mapping[str, float]] = field(default_factory=list)
    origin: Mapping[str, Any] = field(default_factory=dict)
    dropped: bool = False
    failed: str = ""

    def values(self, column: str) -> list[float]:
        return [metrics[column] for metrics in self.metrics if column in metrics]


class Work(NamedTuple):
    """Evaluations of networks, of which an image that passes through one counts once. alone: of all cells
    sampled one by one. made: now. known: what the results that were there already would have taken alone."""

    alone: int = 0
    made: int = 0
    known: int = 0

    def in_words(self) -> str:
        """One sentence for people."""
        before = f", and {self.known:,} belong to results that were there already" if self.known else ""
        saved = 1 - self.made / self.alone if self.alone else 0.0
        return (
            f"{self.made:,} network evaluations of single images were made; the cells one by one take "
            f"{self.alone:,}{before}. Saved: {saved:.0%}"
        )


@dataclass
class Map:
    """columns: of the metrics, the one that decides first. protocol: what all cells have in common."""

    cells: list[Judged]
    columns: tuple[Column, ...]
    protocol: Mapping[str, Any]
    work: Work


def judge_cells(
    run: Path,
    cells: Sequence[Cell],
    opened: Callable[[str | None], Pipeline],
    judge: Judge,
    evaluate: EvaluateConfig,
    short: Mapping[str, Any],
    halving: bool = False,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Map:
    """Judges the cells on evaluate.seeds sets of evaluate.num images each.

    opened: the model with an average of its weights. short: further short options for all cells. progress:
    called with (done, total) images times sampling steps times settings. Raises UsageError for a setting that
    the model cannot be sampled with, before anything is sampled with its weights.
    """
    columns = tuple(column for view in judge.views for _, column in view.columns())
    found: list[Judged] = []
    work, protocol = Work(), {}
    weights = list(dict.fromkeys(cell.average for cell in cells))
    done = 0
    for number, average in enumerate(weights):
        pipeline = opened(average)
        own = [
            Judged(cell, cell.section(pipeline.config, **short), origin=pipeline.origin)
            for cell in cells
            if cell.average == average
        ]
        for one in own:
            pipeline.check(one.section)
        key_of = _Key(pipeline, judge, evaluate)
        costs = {id(one): _alone(pipeline, one.section) * evaluate.num for one in own}
        work = work._replace(alone=work.alone + evaluate.seeds * sum(costs.values()))
        for k in range(evaluate.seeds):
            seed = evaluate.seed + k
            if halving and k == 2:
                _drop(own, columns[0])
            missing: dict[str, list[Judged]] = {}
            for one in own:
                if one.dropped or one.failed:
                    continue
                section = replace(one.section, seed=seed)
                stored = _read(run, key_of(section))
                if stored is None:
                    missing.setdefault(identity(section), []).append(one)
                else:
                    work = work._replace(known=work.known + costs[id(one)])
                    _store(one, stored)
            if not missing:
                continue
            groups = list(missing.values())
            sections = [replace(group[0].section, seed=seed) for group in groups]
            size = evaluate.num * sum(section.sampler.steps for section in sections)
            left = evaluate.seeds - k + evaluate.seeds * (len(weights) - number - 1)
            total = done + size * left

            def on_step(images: int, total: int = total) -> None:
                nonlocal done
                done += images
                progress(done, total)

            keys = [key_of(section) for section in sections]
            unit = hashlib.sha256("".join(keys).encode()).hexdigest()
            results, evaluations = _sampled(run, unit, pipeline, judge, evaluate, sections, on_step)
            work = work._replace(made=work.made + evaluations)
            for group, key, result in zip(groups, keys, results, strict=True):
                _write(run, key, result)
                for one in group:
                    _store(one, result)
        found += own
        protocol = protocol or _protocol(judge, pipeline, evaluate, own[0].section)
    return Map(found, columns, protocol, work)


def _alone(pipeline: Pipeline, section: SampleConfig) -> int:
    """Evaluations of networks for one image of a cell on its own."""
    schedule = pipeline.config.diffusion.schedule
    return round(float(spent(section.guidance, schedule, section.sampler.evaluated(schedule)).sum()))


def _sampled(
    run: Path,
    unit: str,
    pipeline: Pipeline,
    judge: Judge,
    evaluate: EvaluateConfig,
    sections: Sequence[SampleConfig],
    on_step: Callable[[int], None],
) -> tuple[list[Mapping[str, float]], int]:
    """The metrics of one sample set of each section, {} where images are not finite, and the evaluations.
    unit: the name of these sample sets, by which the features of parts are kept meanwhile."""
    shared = Shared(pipeline, sections)
    [samples] = sample_sets(judge, pipeline, replace(evaluate, seeds=1), sections[0])
    assert isinstance(samples, PipelineSamples)
    labels = np.array(replace(samples.request, settings=sections[0]).labels())
    networks = [view.network for view in judge.views]
    extractions = [Extraction(f"the samples of setting {i + 1}", networks) for i in range(len(sections))]
    steps = sum(section.sampler.steps for section in sections)
    size = -(-PART // evaluate.batch_size) * evaluate.batch_size
    failed: set[int] = set()
    paths = []
    for start in range(0, len(labels), size):
        own = labels[start : start + size]
        paths.append(parts.path(run, unit, range(start, start + len(own))))
        known = parts.read(paths[-1])
        if known is None:
            batches = shared.batches(own.tolist(), evaluate.batch_size, on_step, start)
            known = [
                parts.Part(
                    one.members,
                    (rows.start, rows.stop),
                    None if one.images is None else extractions[0].computed(one.images),
                )
                for rows, drawn in batches
                for one in drawn
            ]
            if start + size < len(labels):  # what follows may be interrupted
                parts.write(paths[-1], known)
        else:
            on_step(steps * len(own))
        for one in known:
            if one.computed is None:
                failed.update(one.members)
                continue
            for member in one.members:
                extractions[member].add_computed(one.computed, own[slice(*one.rows)])
    results: list[Mapping[str, float]] = [
        {} if i in failed else judge.compute_metrics(extraction.features())
        for i, extraction in enumerate(extractions)
    ]
    for path in paths:
        path.unlink(missing_ok=True)
    return results, shared.evaluated


def _drop(cells: Sequence[Judged], column: Column) -> None:
    """Leaves out the further seeds of cells that are worse than the best one by more than chance explains."""
    known = [one for one in cells if len(one.values(column.key)) >= 2]
    if len(known) < 2:
        return
    bad = np.array([[badness(column, value) for value in one.values(column.key)[:2]] for one in known])
    apart = bad - bad[bad.mean(axis=1).argmin()]
    error = math.sqrt(float(apart.var(axis=1, ddof=1).mean()) / 2)
    for one, difference in zip(known, apart.mean(axis=1), strict=True):
        one.dropped = bool(difference > MARGIN * error)


class _Key:
    """The names of results."""

    def __init__(self, pipeline: Pipeline, judge: Judge, evaluate: EvaluateConfig):
        self.pipeline = pipeline
        self.common = {
            "weights": pipeline.origin["sha256"],
            "num": evaluate.num,
            "labels": evaluate.labels,
            "decoder": pipeline.decoder_name,
            "precision": judge.precision,
            "views": [
                {
                    "extractor": [view.extractor.to_json(), view.network.name, view.network.sha256],
                    "reference": view.reference.sha256,
                    "metrics": [metric.to_json() for metric in view.metrics],
                }
                for view in judge.views
            ],
        }

    def __call__(self, section: SampleConfig) -> str:
        schedule = self.pipeline.config.diffusion.schedule
        guidance = [part.to_json() for part in active(self.pipeline.opened(section.guidance))]
        shape = self.pipeline.config.model.shape
        sampler = assemble.sampler_json(section.sampler, schedule, shape)
        values = {**self.common, "sampler": sampler, "guidance": guidance, "seed": section.seed}
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def _store(one: Judged, metrics: Mapping[str, float]) -> None:
    if metrics:
        one.metrics.append(metrics)
    else:
        one.failed = NOT_FINITE


def _path(run: Path, key: str) -> Path:
    return run / parts.CACHE / f"{key[:32]}.json"


def _read(run: Path, key: str) -> Mapping[str, float] | None:
    """A result that is there already; a file that cannot be read counts as none and is written again."""
    try:
        value = read_json(_path(run, key), "a result of scaledit sweep", "delete it")
    except (RunError, OSError):
        return None
    metrics = value.get("metrics") if isinstance(value, dict) and value.get("key") == key else None
    is_valid = isinstance(metrics, dict) and all(
        isinstance(number, int | float) for number in metrics.values()
    )
    return metrics if is_valid else None


def _write(run: Path, key: str, metrics: Mapping[str, float]) -> None:
    path = _path(run, key)
    path.parent.mkdir(exist_ok=True)
    atomic_bytes(path, (json.dumps({"key": key, "metrics": dict(metrics)}, indent=1) + "\n").encode())


def _protocol(
    judge: Judge, pipeline: Pipeline, evaluate: EvaluateConfig, section: SampleConfig
) -> dict[str, Any]:
    sets = sample_sets(judge, pipeline, evaluate, section)
    networks = [view.network for view in judge.views]
    size = (0, 0)
    everything = describe(sets, evaluate.num, size, judge.views[0].reference, networks, judge.precision)
    common = {key: value for key, value in everything.items() if key not in (*LEFT_OUT, "image_size")}
    return {**common, "seeds": evaluate.seeds, "first_seed": evaluate.seed, **judge.facts}
