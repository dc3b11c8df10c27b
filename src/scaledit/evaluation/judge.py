"""Evaluates sample sets against real images, once or throughout training.

    sample sets --extract--> features --metrics against the reference--> mean and spread over sets --> Result

A judge is opened once (weights, reference, held-out images) and evaluates any number of sample sets. Metrics
are defined in scaledit.evaluation.metrics, features in scaledit.evaluation.extractors.
"""

from __future__ import annotations

import hashlib
import numbers
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from scaledit import images, part
from scaledit.autoencoders.decoder import Decoder
from scaledit.callbacks import Progress
from scaledit.config import EvaluateConfig, RunConfig, SampleConfig
from scaledit.data.datasets import DataSet
from scaledit.data.sets import Images, TrainingSet
from scaledit.errors import UsageError, counted, did_you_mean, near_path, shown
from scaledit.evaluation.choice import choose
from scaledit.evaluation.extractors import Extractor
from scaledit.evaluation.features import FeatureNetwork, Features, extract
from scaledit.evaluation.metric import (
    METRICS,
    Column,
    DistancePrecision,
    Metric,
    MetricContext,
    built_in_columns,
    built_in_metrics,
    columns,
    is_key,
    to_protocol,
)
from scaledit.evaluation.metrics.class_means import ClassResult, NearestMean, by_class, class_means
from scaledit.evaluation.metrics.frechet import FrechetDistance
from scaledit.evaluation.own import (
    HELD_OUT,
    OwnImages,
    check_built_in_reference,
    check_own_reference,
    own_images,
)
from scaledit.evaluation.protocol import describe, few_images, warnings
from scaledit.evaluation.reference import Reference, open_reference, recorded_extractor
from scaledit.evaluation.result import MetricValue, Result
from scaledit.evaluation.samples import InMemory, PipelineSamples, SampleSet
from scaledit.part import YOURS, Allowed
from scaledit.pipeline import Pipeline
from scaledit.sampling.request import Request


@dataclass(frozen=True)
class View:
    """One extractor, its network, the reference as it sees it, and the metrics to compute. real: the features
    of held-out real images."""

    extractor: Extractor
    network: FeatureNetwork
    reference: Reference
    metrics: tuple[Metric, ...]
    real: Features | None = None

    def columns(self) -> list[tuple[Metric, Column]]:
        return [(metric, column) for metric in self.metrics for column in metric.columns(self.extractor)]


@dataclass(frozen=True)
class Judge:
    """real: held-out real images (of built-in sets and of a run's own data). held_out: the metrics of real
    images that are not the reference's. facts: further entries of the protocol. remarks: further warnings.
    own: the run's own images, if they are the reference."""

    views: tuple[View, ...]
    precision: DistancePrecision = "fp32"
    device: str = "cpu"
    held_out: Mapping[str, float] | None = None
    real: InMemory | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)
    remarks: tuple[str, ...] = ()
    own: OwnImages | None = None

    def evaluate(self, sets: Sequence[SampleSet], progress: Progress | None = None) -> Result:
        """The metrics, with their protocol, of one or several sample sets (several seeds of one sampler)."""
        networks = [view.network for view in self.views]
        total, done = sum(samples.n for samples in sets), 0
        values: list[dict[str, float]] = []
        of_classes: list[tuple[np.ndarray, np.ndarray]] = []
        sizes: list[tuple[int, tuple[int, int]]] = []
        for samples in sets:

            def on_batch(count: int, _: int, before: int = done) -> None:
                if progress is not None:
                    progress(before + count, total)

            features = extract(samples, networks, on_batch)
            values.append(self.compute_metrics(features))
            if features[0].labels is not None:
                of_classes.append((features[0].pool, features[0].labels))
            sizes.append((features[0].n, features[0].size))
            done += samples.n
        reference = self.views[0].reference
        protocol = {**describe(sets, *sizes[0], reference, networks, self.precision), **self.facts}
        computed = [pair for view in self.views for pair in view.columns()]
        built_in = built_in_metrics()
        if own := {
            column.key: to_protocol(metric, column)
            for metric, column in computed
            if metric not in built_in or column.key not in built_in_columns()
        }:
            protocol[METRICS] = own
        metrics = {}
        for key in columns(protocol):
            if all(key in value for value in values):
                per_set = [value[key] for value in values]
                std = float(np.std(per_set, ddof=1)) if len(per_set) > 1 else None
                metrics[key] = MetricValue(float(np.mean(per_set)), std, (self.held_out or {}).get(key))
        left_out = [column.title for _, column in computed if column.key not in metrics]
        small = any(
            isinstance(metric, FrechetDistance) and view.extractor.small
            for view in self.views
            for metric in view.metrics
        )
        sentences = warnings(list(metrics), protocol, sets, reference, small, left_out)
        if self.own is not None:
            sentences += few_images(protocol["n"], reference, self.views[0].extractor)
        classes = self._by_class(of_classes) if len(of_classes) == len(sets) else []
        return Result(sets[0].name, metrics, protocol, [*sentences, *self.remarks], classes)

    def _by_class(self, sets: Sequence[tuple[np.ndarray, np.ndarray]]) -> list[ClassResult]:
        """The accuracy of each class, if its metric was chosen. sets: features and labels."""
        view = self.views[0]
        if self.own is None or not any(isinstance(metric, NearestMean) for metric in view.metrics):
            return []
        reference = view.reference
        assert reference.class_means is not None and reference.pool is not None
        held_out = reference.pool, self.own.held_out.labels
        return by_class(self.own.class_names, reference.class_means, held_out, sets)

    def compute_metrics(self, features: Sequence[Features]) -> dict[str, float]:
        """The metrics of one sample set, by the keys of their columns. features: one for each view."""
        values: dict[str, float] = {}
        for view, samples in zip(self.views, features, strict=True):
            context = MetricContext(view.extractor, self.precision, self.device, view.real)
            for metric in view.metrics:
                if "labels" in metric.reads and samples.labels is None:
                    continue
                keys = [column.key for column in metric.columns(view.extractor)]
                value = metric.compute(view.reference, samples, context)
                values |= zip(keys, _numbers(metric, value, len(keys)), strict=True)
        return values


def _numbers(metric: Metric, value: Any, n: int) -> list[float]:
    values = list(value) if isinstance(value, list | tuple) else [value]
    if len(values) != n or not all(isinstance(number, numbers.Real) for number in values):
        expected = "a number" if n == 1 else f"{n} numbers"
        raise UsageError(f"the metric {metric.part_name()} returned {shown(value)} instead of {expected}")
    return [float(number) for number in values]


def open_judge(
    config: EvaluateConfig,
    device: str | torch.device = "cpu",
    allow_jpeg: bool = False,
    progress: Progress | None = None,
    allowed: Allowed = YOURS,
    class_names: Sequence[str] = (),
) -> Judge:
    """The judge that `config` describes, with loaded extractors, reference and metrics of held-out images.

    A data set has its own extractors; for a path and for held-out images see `choose`. allowed: the user's
    modules that may be imported because the config names them. class_names: of the model whose samples are
    evaluated, if they are known; a set may have several sets of classes. Raises UsageError for missing or
    unknown weights, a reference without what the metrics need, or an unknown metric. `open_run_judge` opens
    the judge of a run, which may have a reference of its own.
    """
    if is_data_set(config.reference):
        return _judge_of_data_set(config, allowed, class_names)
    if config.reference == HELD_OUT:
        raise UsageError(
            f"the reference {HELD_OUT} is the held-out share of a run's data, so pass the run, not samples"
        )
    if not config.reference:
        raise UsageError(
            "evaluate.reference is empty; pass a reference .npz, a folder of real images, or "
            f"{' or '.join(_reference_sets())}"
        )
    path = Path(config.reference)
    if not path.exists():
        raise UsageError(f"there is no reference {path}{near_path(path)}")
    choice = choose(config, recorded_extractor(path), allowed)
    extractor = choice.extractor
    [metrics] = _chosen_metrics(config.metrics, [extractor], allowed).metrics
    network = extractor.load(device)
    needs_images = any("pool" in metric.of_reference for metric in metrics)
    reference = open_reference(path, network, needs_images, allow_jpeg, progress)
    few = None if reference.pool is None else len(reference.pool)
    [metrics], too_few = _chosen_metrics(config.metrics, [extractor], allowed, few=few)
    view = View(extractor, network, reference, metrics)
    check_reference(view)
    facts, remarks = {"extractor_choice": choice.why}, (*choice.remarks, *_left_out(too_few, few))
    return Judge((view,), config.precision, str(device), facts=facts, remarks=remarks)


def _left_out(names: Sequence[str], few: int | None) -> list[str]:
    """A sentence on the metrics that need more than `few` images, if there are any."""
    return [f"left out, because they need more than {few} images: {', '.join(names)}"] if names else []


def open_run_judge(
    config: RunConfig,
    class_names: Sequence[str],
    device: str | torch.device = "cpu",
    decoder: Decoder | None = None,
    dataset: TrainingSet | None = None,
    progress: Progress | None = None,
    allowed: Allowed = YOURS,
    allow_jpeg: bool = False,
    size: tuple[int, int] | None = None,
) -> Judge:
    """The judge that config.evaluate describes, for a model with `class_names` that was trained as `config`
    says; its reference may be the held-out images of its own data.

    decoder: of the model's latents. dataset: the open training set, if there is one. size: height and width
    of the samples in pixels, None for those of the training. Raises UsageError as `open_judge` does, and if
    a built-in set is named whose classes are not those of the data.
    """
    if config.evaluate.reference == HELD_OUT:
        own = own_images(config, class_names, decoder, dataset, allowed, size)
        return _judge_of_own(config.evaluate, own, device, progress, allowed)
    if is_data_set(config.evaluate.reference):
        data_set = _reference_set(config.evaluate.reference, allowed, class_names)
        check_own_reference(config, data_set, class_names)
        check_built_in_reference(config, data_set, class_names)
        return _judge_of_data_set(config.evaluate, allowed, class_names)
    return open_judge(config.evaluate, device, allow_jpeg, progress, allowed)


def _judge_of_own(
    config: EvaluateConfig,
    own: OwnImages,
    device: str | torch.device,
    progress: Progress | None,
    allowed: Allowed,
) -> Judge:
    """Compares with held-out images; as many training images give the floor."""
    choice = choose(config, allowed=allowed)
    few = min(len(own.held_out), config.num)
    [metrics], too_few = _chosen_metrics(config.metrics, [choice.extractor], allowed, OWN, few)
    network = choice.extractor.load(device)
    like_held_out, more = own.training_like_held_out()
    [features] = extract(own.held_out.samples(), [network], progress)
    trained = [
        extract(images.samples(), [network], progress)[0]
        for images in (like_held_out, more)
        if len(images) > 1
    ]
    held_out = InMemory(own.held_out.name, own.held_out.read(np.arange(features.n)), own.held_out.labels, {})
    sha256 = hashlib.sha256(held_out.images.tobytes()).hexdigest()
    labels = [one.labels for one in trained if one.labels is not None]
    means = class_means(
        np.concatenate([features.pool[:0], *(one.pool for one in trained)]),
        np.concatenate([own.held_out.labels[:0], *labels]),
        len(own.class_names),
    )
    reference = replace(Reference.of(held_out.name, sha256, features), class_means=means)
    view = View(choice.extractor, network, reference, metrics)
    check_reference(view)
    facts = {
        "extractor_choice": choice.why,
        "reference_images": f"{features.n} of {own.all} held-out images, not trained on",
        "real": f"{len(like_held_out)} training images, {own.training_made}",
        "class_means_n": sum(map(len, labels)),
    }
    remarks = list(choice.remarks)
    if features.n < own.all:
        remarks.append(f"{features.n} of the {own.all} held-out images are used, evenly over the classes")
    remarks += _left_out(too_few, few)
    judge = Judge((view,), config.precision, str(device), None, held_out, facts, tuple(remarks), own)
    if len(like_held_out) < 2:
        return judge
    # The means are of training images, so the ceiling of this metric is that of held-out ones.
    of_held_out = replace(view, metrics=tuple(one for one in metrics if isinstance(one, NearestMean)))
    ceiling = replace(judge, views=(of_held_out,)).compute_metrics([features])
    return replace(judge, held_out={**judge.compute_metrics(trained[:1]), **ceiling})


OWN = ("statistics", "spatial", "pool", "class_means")
"""What the reference "held-out" has; others have no class means."""


def _reference_sets() -> list[str]:
    return [name for name, data_set in part.members(DataSet).items() if data_set.extractors]


def is_data_set(reference: str) -> bool:
    """Whether a reference is a data set, by name or MODULE:CLASS, with its own extractors and held-out
    images; not a path."""
    return reference in _reference_sets() or (":" in reference and not Path(reference).exists())


def _reference_set(reference: str, allowed: Allowed, class_names: Sequence[str]) -> DataSet:
    """The data set that `reference` names, as the reference of a model with these classes, if they are
    known."""
    return part.build(DataSet, reference, "evaluate.reference", allowed).reference_for(class_names)


def check_reference_fits(
    run: RunConfig,
    size: tuple[int, int],
    class_names: Sequence[str],
    decoder: Decoder | None = None,
    dataset: TrainingSet | None = None,
    allowed: Allowed = YOURS,
) -> None:
    """Raises UsageError if the reference of a run is a data set that cannot evaluate images of this size
    (height, width) and of these classes, or is the run's own data without held-out images. Loads no
    network. decoder, dataset: as in `open_run_judge`."""
    config, num_classes = run.evaluate, run.model.num_classes
    if config.reference == HELD_OUT:
        own_images(run, class_names, decoder, dataset, allowed)
    if not is_data_set(config.reference):
        return  # the extractors of a path resize images, and it has no classes
    data_set = _reference_set(config.reference, allowed, class_names)
    check_own_reference(run, data_set, class_names)
    fix = "choose another reference, or turn evaluation off with evaluate.every=0 evaluate.reference="
    for name in data_set.judged_by():
        side = part.find(Extractor, name, allowed).side
        if side is not None and size != (side, side):
            raise UsageError(
                f"evaluate.reference={config.reference} evaluates only images of {side}x{side} pixels, but "
                f"this run generates images of {size[1]}x{size[0]}; {fix}"
            )
    check_built_in_reference(run, data_set, class_names)
    if config.labels == "real":
        labels = _in_memory(config.reference, data_set.floor()).labels
        classes = 0 if labels is None or not len(labels) else int(labels.max()) + 1
        if classes > num_classes:
            raise UsageError(
                f"evaluate.reference={config.reference} has {counted(classes, 'class', 'classes')}, but "
                f"this model has "
                f"{num_classes}, so it cannot generate images of them all; {fix}"
            )


class Chosen(NamedTuple):
    """metrics: for each extractor. too_few: names of default metrics that need more images."""

    metrics: list[tuple[Metric, ...]]
    too_few: list[str]


def _chosen_metrics(
    names: str | Sequence[str | Mapping[str, Any]],
    extractors: Sequence[Extractor],
    allowed: Allowed,
    given: Sequence[str] = OWN[:-1],
    few: int | None = None,
) -> Chosen:
    """The metrics that `names` names, or the default ones. A metric whose name does not depend on the
    extractor is computed with the first that gives what it reads.

    names: separated by commas, or a list of names and of tables with a name and fields. given: what the
    reference has. few: number of images on the smaller side, if that is known.
    """
    if isinstance(names, str):
        names = [name.strip() for name in names.split(",") if name.strip()]
    built_in: dict[str, tuple[int, Metric]] = {}
    for i, extractor in enumerate(extractors):
        for metric in built_in_metrics():
            if metric.applies(extractor):
                built_in.setdefault(metric.columns(extractor)[0].key, (i, metric))
    default = {
        key: metric
        for key, (i, metric) in built_in.items()
        if metric.by_default(extractors[i]) and set(metric.of_reference) <= set(given)
    }
    too_few = [
        key for key, metric in default.items() if few is not None and few < metric.fewest and not names
    ]
    chosen: dict[str, tuple[int, Metric]] = {}
    for item in names or [key for key in default if key not in too_few]:
        table = item if isinstance(item, Mapping) else {"name": item}
        name = str(table.get("name"))
        if ":" in name:
            metric = part.build(Metric, table, "metrics", allowed)
            i, key = _place(metric, name, extractors)
            chosen[key] = i, metric
        elif name in built_in:
            i, metric = built_in[name]
            chosen[name] = i, part.build(Metric, {**table, "name": metric.NAME}, f"metrics.{name}")
        elif name in built_in_columns():
            used = " and ".join(extractor.part_name() for extractor in extractors)
            raise UsageError(
                f"the metric {name} cannot be computed on the features of {used}; choose another extractor "
                f"(--extractor), or one of {', '.join(built_in)}"
            )
        else:
            raise UsageError(
                f"unknown metric {name!r} with this reference (write MODULE:CLASS for one of your own)"
                f"{did_you_mean(name, built_in)}"
            )
    in_order = sorted(chosen.values(), key=lambda pair: pair[1].order)
    return Chosen(
        [tuple(metric for at, metric in in_order if at == i) for i in range(len(extractors))], too_few
    )


def _place(metric: Metric, name: str, extractors: Sequence[Extractor]) -> tuple[int, str]:
    """The first extractor that gives what a user's metric reads, and the key of its first column. Raises
    UsageError if none does, or if a column's key is reserved."""
    for i, extractor in enumerate(extractors):
        if metric.applies(extractor):
            keys = [column.key for column in metric.columns(extractor)]
            for key in keys:
                if key in built_in_columns() or not is_key(key):
                    raise UsageError(f"{name}: a result already has the name {key!r}; choose another one")
            return i, keys[0]
    outputs = " or ".join(", ".join(extractor.outputs) for extractor in extractors)
    raise UsageError(
        f"{name} needs {', '.join(metric.reads)}, but with this reference there is only {outputs}"
    )


def check_reference(view: View) -> None:
    """Raises UsageError naming what the reference lacks and which metrics can be computed without it."""
    lacking = {
        metric.columns(view.extractor)[0].key: [
            name for name in metric.of_reference if getattr(view.reference, name, None) is None
        ]
        for metric in view.metrics
    }
    possible = [key for key, names in lacking.items() if not names]
    for key, names in lacking.items():
        if names:
            arrays = ARRAYS.get(names[0], names[0])
            fix = f"; choose --metrics {','.join(possible)}" if possible else ""
            raise UsageError(f"{view.reference.name} has no {arrays}, which {key} needs{fix}")


ARRAYS = {"statistics": "mu and sigma", "spatial": "mu_s and sigma_s", "pool": "images (arr_0)"}
"""The arrays of a reference file, by what metrics read of a reference."""


def _judge_of_data_set(config: EvaluateConfig, allowed: Allowed, class_names: Sequence[str]) -> Judge:
    """Compares with the training split; held-out real images give the floor. class_names: of the model, if
    they are known."""
    if config.extractor:
        raise UsageError(
            f"{config.reference} has extractors of its own, so evaluate.extractor={config.extractor} "
            "cannot be used with it; leave it out"
        )
    data_set = _reference_set(config.reference, allowed, class_names)
    if not data_set.judged_by():
        raise UsageError(f"{config.reference} defines no feature extractors; set `extractors` in its class")
    name = data_set.part_name()
    every = [part.find(Extractor, extractor, allowed)() for extractor in data_set.judged_by()]
    chosen = zip(every, _chosen_metrics(config.metrics, every, allowed).metrics, strict=True)
    used = [(extractor, metrics) for extractor, metrics in chosen if metrics]
    networks = [extractor.load() for extractor, _ in used]
    train = _in_memory(f"{name}, training split", data_set.open())
    held_out = _in_memory(f"{name}, held out", data_set.floor())
    sha256 = hashlib.sha256(train.images.tobytes()).hexdigest()
    real = extract(held_out, networks)
    views = []
    for i, (features, real_features) in enumerate(zip(extract(train, networks), real, strict=True)):
        extractor, metrics = used[i]
        reference = Reference.of(train.name, sha256, features)
        views.append(View(extractor, networks[i], reference, metrics, real_features))
        check_reference(views[i])
    judge = Judge(tuple(views), config.precision, real=held_out)
    return replace(judge, held_out=judge.compute_metrics(real))


def _in_memory(name: str, data: object) -> InMemory:
    if not isinstance(data, Images):
        raise UsageError(
            f"{name} cannot be a reference, because its images are not in memory (scaledit.data.sets.Images)"
        )
    return InMemory(name, images.to_uint8(data.images), data.labels.numpy(), {})


def sample_sets(
    judge: Judge, pipeline: Pipeline, config: EvaluateConfig, settings: SampleConfig | None = None
) -> list[SampleSet]:
    """config.seeds sample sets of config.num images each, sampled when they are read. settings: by default
    the run's [sample] with config.guidance.

    Raises UsageError for labels="real" if the judge has no real images of known classes.
    """
    settings = settings or replace(pipeline.config.sample, guidance=config.guidance)
    classes = tuple(range(pipeline.config.model.num_classes))
    if config.labels == "real":
        if judge.real is None or judge.real.labels is None:
            sets = ", ".join(_reference_sets())
            raise UsageError(f'labels "real" needs a reference with classes ({sets}); use equal or uniform')
        if judge.real.labels.max() >= len(classes):
            raise UsageError(
                f'labels "real" needs a model with all classes of the reference, but this model has only '
                f"{counted(len(classes), 'class', 'classes')}; use equal or uniform"
            )
        classes = tuple(judge.real.labels.tolist())
    return [
        PipelineSamples(
            pipeline,
            Request(classes, replace(settings, seed=config.seed + k), num=config.num, rule=config.labels),
            config.batch_size,
        )
        for k in range(config.seeds)
    ]
