"""Judging sample sets against real images, once or all through a training.

    sample sets --extract--> features --metrics against the reference--> mean and spread over sets --> Result

A judge is opened once (weights, reference, floor) and then scores as often as asked. What is measured and how
is the metrics' to say (scaledit.evaluation.metric), and what on the extractors'.
"""

from __future__ import annotations

import hashlib
import numbers
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from scaledit import images, part
from scaledit.callbacks import Progress
from scaledit.config import EvaluateConfig, SampleConfig
from scaledit.data.datasets import DataSet
from scaledit.data.sets import Images
from scaledit.errors import UsageError, did_you_mean, shown
from scaledit.evaluation import metric as metrics
from scaledit.evaluation.extractors import Extractor
from scaledit.evaluation.extractors.dinov2 import DINOv2Features
from scaledit.evaluation.extractors.inception import InceptionFeatures
from scaledit.evaluation.features import FeatureNetwork, Features, extract
from scaledit.evaluation.metric import Column, DistancePrecision, Metric, MetricContext
from scaledit.evaluation.metrics.frechet import FrechetDistance
from scaledit.evaluation.protocol import describe, warnings
from scaledit.evaluation.reference import Reference, open_reference
from scaledit.evaluation.result import MetricValue, Result
from scaledit.evaluation.samples import InMemory, PipelineSamples, SampleSet
from scaledit.part import YOURS, Allowed
from scaledit.pipeline import Pipeline
from scaledit.sampling.request import Request


@dataclass(frozen=True)
class View:
    """One extractor, its network, what that sees of the reference, and the metrics to take."""

    extractor: Extractor
    network: FeatureNetwork
    reference: Reference
    metrics: tuple[Metric, ...]

    def columns(self) -> Iterator[tuple[Metric, Column]]:
        for one in self.metrics:
            for column in one.columns(self.extractor):
                yield one, column


@dataclass(frozen=True)
class Judge:
    """held_out: the metrics of real images that are not the reference's, where there are some (built-in
    sets). floor: by view, the features of those images. real: the images."""

    views: tuple[View, ...]
    precision: DistancePrecision = "fp32"
    device: str = "cpu"
    held_out: Mapping[str, float] | None = None
    floor: tuple[Features, ...] = ()
    real: InMemory | None = None

    @property
    def labels(self) -> tuple[int, ...]:
        """The classes of the held-out images."""
        return () if self.real is None or self.real.labels is None else tuple(self.real.labels.tolist())

    def evaluate(self, sets: Sequence[SampleSet], progress: Progress | None = None) -> Result:
        """The metrics of one or several sample sets (several seeds of the same sampling) with their
        protocol."""
        total = sum(samples.n for samples in sets)
        measured: list[dict[str, float]] = []
        seen: list[Features] = []  # by the first extractor
        done = 0
        for samples in sets:

            def on_batch(some: int, _: int, done: int = done) -> None:
                if progress is not None:
                    progress(done + some, total)

            features = extract(samples, [view.network for view in self.views], on_batch)
            measured.append(self.compute_metrics(features))
            seen.append(features[0])
            done += samples.n
        reference = self.views[0].reference
        protocol = describe(sets, seen[0], reference, [view.network for view in self.views], self.precision)
        if told := self._told():
            protocol[metrics.TOLD] = told
        figures = {}
        for key in (key for key in metrics.columns(protocol) if key in measured[0]):
            values = [one[key] for one in measured]
            std = float(np.std(values, ddof=1)) if len(values) > 1 else None
            real = self.held_out.get(key) if self.held_out is not None else None
            figures[key] = MetricValue(float(np.mean(values)), std, real)
        every = [column for view in self.views for _, column in view.columns()]
        left_out = [column.title for column in every if column.key not in figures]
        small = any(
            isinstance(one, FrechetDistance) and view.extractor.small
            for view in self.views
            for one in view.metrics
        )
        said = warnings(list(figures), protocol, sets, reference, small, left_out)
        return Result(sets[0].name, figures, protocol, said)

    def _told(self) -> dict[str, dict[str, Any]]:
        """What a protocol says of metrics that are not scaledit's own as they come."""
        own = metrics.own_metrics()
        return {
            column.key: metrics.tell(one, column)
            for view in self.views
            for one, column in view.columns()
            if one not in own
        }

    def compute_metrics(self, features: Sequence[Features]) -> dict[str, float]:
        """Of one sample set, as each view's extractor sees it."""
        out: dict[str, float] = {}
        for i, (view, seen) in enumerate(zip(self.views, features, strict=True)):
            real = self.floor[i] if self.floor else None
            given = MetricContext(view.extractor, self.precision, self.device, real)
            for one in view.metrics:
                if "labels" in one.reads and seen.labels is None:
                    continue
                columns = one.columns(view.extractor)
                found = one.compute(view.reference, seen, given)
                out |= dict(
                    zip([column.key for column in columns], _numbers(one, found, columns), strict=True)
                )
        return out


def _numbers(one: Metric, found: Any, columns: Sequence[Column]) -> list[float]:
    values = list(found) if isinstance(found, list | tuple) else [found]
    if len(values) != len(columns) or not all(isinstance(value, numbers.Real) for value in values):
        wanted = "a number" if len(columns) == 1 else f"{len(columns)} numbers"
        raise UsageError(f"the metric {one.part_name()} gives {shown(found)} instead of {wanted}")
    return [float(value) for value in values]


def open_judge(
    config: EvaluateConfig,
    device: str | torch.device = "cpu",
    allow_jpeg: bool = False,
    progress: Progress | None = None,
    allowed: Allowed = YOURS,
) -> Judge:
    """The judge that `config` describes: its extractors loaded, its reference read, its floor measured.

    The extractors follow from the reference: a built-in set has its own; else DINOv2 if config.dinov2 names
    one, else Inception. allowed: which modules of a user's own may be imported because the config names them.
    Raises UsageError for missing or foreign weights, a reference without what the metrics need, or an unknown
    metric.
    """
    built_in = _set_that_judges(config.reference, allowed)
    if built_in is not None:
        return _built_in_judge(built_in, config, allowed)
    if not config.reference:
        raise UsageError(
            "say what to compare with: a reference .npz, a folder of real images, or "
            f"{' or '.join(sets_that_judge())}"
        )
    extractor = chosen_extractor(config)
    [wanted] = _wanted(config.metrics, [extractor], allowed)
    path = Path(config.reference)
    if not path.exists():
        raise UsageError(f"there is no reference {path}")
    network = extractor.load(device)
    needs_images = any("pool" in one.of_reference for one in wanted)
    reference = open_reference(path, network, needs_images, allow_jpeg, progress)
    view = View(extractor, network, reference, wanted)
    check_reference(view)
    return Judge((view,), config.precision, str(device))


def sets_that_judge() -> list[str]:
    """The built-in sets that samples can be held against by name."""
    return [name for name, one in part.members(DataSet).items() if one.extractors]


def _set_that_judges(reference: str, allowed: Allowed) -> DataSet | None:
    """The set that a reference names: a built-in one, or a user's as MODULE:CLASS where that is no path."""
    if reference in sets_that_judge():
        return part.find(DataSet, reference)()
    if ":" not in reference or Path(reference).exists():
        return None
    found = part.build(DataSet, reference, "evaluate.reference", allowed)
    if not found.extractors:
        raise UsageError(f"{reference} names no extractors, which judge samples of it; give its class some")
    return found


def judged_by_its_own(reference: str) -> bool:
    """Whether a reference is a set that comes with its extractors and its held-out images, not a path."""
    return reference in sets_that_judge() or (":" in reference and not Path(reference).exists())


def chosen_extractor(config: EvaluateConfig) -> Extractor:
    """Inception, or DINOv2 where config.dinov2 names a folder."""
    if config.dinov2:
        return DINOv2Features(config.dinov2)
    return InceptionFeatures(config.inception, verify=not config.any_inception)


def _wanted(
    named: str | Sequence[str | Mapping[str, Any]], extractors: Sequence[Extractor], allowed: Allowed
) -> list[tuple[Metric, ...]]:
    """By extractor: the metrics that are named, or all but those on request. One whose name does not tell of
    the extractor is taken with the first that has what it reads.

    named: names with commas between them, or a list of names and of tables with a name and fields.
    """
    own = metrics.own_metrics()
    keyed: dict[str, tuple[int, Metric]] = {}
    for i, extractor in enumerate(extractors):
        for one in own:
            if one.applies(extractor):
                keyed.setdefault(one.columns(extractor)[0].key, (i, one))
    given = [name.strip() for name in named.split(",") if name.strip()] if isinstance(named, str) else named
    chosen: dict[str, tuple[int, Metric]] = {}
    for item in given:
        table = item if isinstance(item, Mapping) else {"name": item}
        name = str(table.get("name"))
        if ":" in name:
            one = part.build(Metric, table, "metrics", allowed)
            i = _place(one, name, extractors)
            key = one.columns(extractors[i])[0].key
            chosen[key] = i, one
        elif name in keyed:
            i, one = keyed[name]
            chosen[name] = i, part.build(Metric, {**table, "name": one.NAME}, f"metrics.{name}")
        else:
            raise UsageError(
                f"unknown metric {name!r} with this reference{did_you_mean(name, keyed)}; or MODULE:CLASS of "
                "your own"
            )
    if not given:
        chosen = {key: (i, one) for key, (i, one) in keyed.items() if one.by_default(extractors[i])}
    found = sorted(chosen.values(), key=lambda pair: pair[1].order)
    return [tuple(one for at, one in found if at == i) for i in range(len(extractors))]


def _place(one: Metric, name: str, extractors: Sequence[Extractor]) -> int:
    """The first extractor that has what a user's metric reads. Raises UsageError where none has, or its
    columns have names that are taken."""
    for i, extractor in enumerate(extractors):
        if one.applies(extractor):
            for column in one.columns(extractor):
                if column.key in metrics.known() or not metrics.is_key(column.key):
                    raise UsageError(f"{name}: a result has a {column.key!r} already; give it another name")
            return i
    has = " or ".join(", ".join(extractor.outputs) for extractor in extractors)
    raise UsageError(f"{name} reads {', '.join(one.reads)}; with this reference there is {has}")


def check_reference(view: View) -> None:
    """Raises UsageError naming what the reference lacks and which metrics can be had without it."""
    reference = view.reference
    named = {one.columns(view.extractor)[0].key: one for one in view.metrics}
    lacking = [
        (key, what)
        for key, one in named.items()
        for what in one.of_reference
        if getattr(reference, what, None) is None
    ]
    if not lacking:
        return
    without = {key for key, _ in lacking}
    rest = ",".join(key for key in named if key not in without)
    key, what = lacking[0]
    raise UsageError(
        f"{reference.name} has no {HELD_AS.get(what, what)}, which {key} needs; choose --metrics {rest}"
        if rest
        else f"{reference.name} has nothing that {key} needs"
    )


HELD_AS = {"statistics": "mu and sigma", "spatial": "mu_s and sigma_s", "pool": "images (arr_0)"}
"""What the files call what metrics read of a reference."""


def _built_in_judge(built_in: DataSet, config: EvaluateConfig, allowed: Allowed) -> Judge:
    """Against the training split; other real images give the floor."""
    name = built_in.part_name()
    extractors = [part.find(Extractor, one, allowed)() for one in built_in.extractors]
    wanted = _wanted(config.metrics, extractors, allowed)
    taken = [(one, some) for one, some in zip(extractors, wanted, strict=True) if some]
    networks = [one.load() for one, _ in taken]
    train = _in_memory(f"{name}, training split", built_in.open())
    held_out = _in_memory(f"{name}, held out", built_in.floor())
    sha256 = hashlib.sha256(train.images.tobytes()).hexdigest()
    views = tuple(
        View(one, network, Reference.of(train.name, sha256, features), some)
        for (one, some), network, features in zip(taken, networks, extract(train, networks), strict=True)
    )
    for view in views:
        check_reference(view)
    real = extract(held_out, networks)
    bare = Judge(views, config.precision, floor=tuple(real), real=held_out)
    return replace(bare, held_out=bare.compute_metrics(real))


def _in_memory(name: str, data: object) -> InMemory:
    if not isinstance(data, Images):
        raise UsageError(f"{name}: samples are judged against a set of images in memory (Images), not this")
    return InMemory(name, images.to_uint8(data.images), data.labels.numpy(), {})


def sample_sets(
    judge: Judge, pipeline: Pipeline, config: EvaluateConfig, settings: SampleConfig | None = None
) -> list[SampleSet]:
    """config.seeds sample sets of config.num images each, to be drawn with `settings` (the run's own
    [sample] with config.guidance, unless given).

    Raises UsageError for labels="real" where the judge has no real images of known classes.
    """
    settings = settings or replace(pipeline.config.sample, guidance=config.guidance)
    classes = tuple(range(pipeline.config.model.num_classes))
    if config.labels == "real":
        if not judge.labels:
            raise UsageError(
                'labels "real" need a reference of known classes '
                f"({', '.join(sets_that_judge())}); take equal or uniform"
            )
        classes = judge.labels
    return [
        PipelineSamples(
            pipeline,
            Request(classes, replace(settings, seed=config.seed + k), num=config.num, rule=config.labels),
            config.batch_size,
        )
        for k in range(config.seeds)
    ]
