"""Judging sample sets against real images, once or all through a training.

    sample sets --extract--> features --figures against the reference--> mean and spread over sets --> Result

A judge is opened once (weights, reference, floor) and then scores as often as asked.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
import torch

from scaledit import images
from scaledit.config import EvaluateConfig, SampleConfig
from scaledit.data.photos import fresh_photos, photos
from scaledit.data.sets import Images, digits
from scaledit.errors import UsageError, did_you_mean
from scaledit.evaluation import metrics
from scaledit.evaluation.features import PROGRESS, Extractor, Features, extract
from scaledit.evaluation.neighbours import Precision
from scaledit.evaluation.protocol import describe, warnings
from scaledit.evaluation.reference import Reference, open_reference
from scaledit.evaluation.result import TITLES, Figure, Result
from scaledit.evaluation.samples import Drawn, InMemory, SampleSet
from scaledit.pipeline import Pipeline
from scaledit.sampling.request import Request

T = TypeVar("T")

NEIGHBOURS = ("precision", "recall", "density", "coverage")
NAMES = {
    "inception": {
        "fid": "distance",
        "fid_infinity": "infinity",
        "sfid": "spatial",
        "inception_score": "score",
        **{name: name for name in NEIGHBOURS},
        "kid": "kernel",
    },
    "dinov2": {
        "fd_dinov2": "distance",
        "fd_dinov2_infinity": "infinity",
        **{name: name for name in NEIGHBOURS},
        "kd_dinov2": "kernel",
    },
    "digits": {
        "fd_digits": "distance",
        **{name: name for name in NEIGHBOURS},
        "class_accuracy": "accuracy",
        "class_score": "score",
        "nearest": "nearest",
    },
    "digits-random": {"fd_digits_random": "distance"},
    "photos": {
        "fd_photos": "distance",
        **{name: name for name in NEIGHBOURS},
        "class_accuracy": "accuracy",
        "class_score": "score",
    },
    "photos-random": {"fd_photos_random": "distance"},
}
"""By kind of extractor: the printed name of a figure, and what it is."""

BY_REQUEST = ("infinity",)
"""Not measured unless named: fifteen distances instead of one."""

NEEDS_IMAGES = (*NEIGHBOURS, "kernel")


@dataclass(frozen=True)
class View:
    """One extractor, what it sees of the reference, and the figures to take: printed name -> what it is."""

    extractor: Extractor
    reference: Reference
    wanted: Mapping[str, str]


@dataclass(frozen=True)
class Judge:
    """held_out: real images' figures where there are some left (the digits). nearest: the mean distance of
    real held-out images to the nearest training image. real: those held-out images."""

    views: tuple[View, ...]
    precision: Precision = "fp32"
    device: str = "cpu"
    held_out: Mapping[str, float] | None = None
    nearest: float = 1.0
    real: InMemory | None = None

    @property
    def labels(self) -> tuple[int, ...]:
        """The classes of the held-out images."""
        return () if self.real is None or self.real.labels is None else tuple(self.real.labels.tolist())

    def score(self, sets: Sequence[SampleSet], progress: PROGRESS | None = None) -> Result:
        """The figures of one or several sample sets (several seeds of the same sampling) with their
        protocol."""
        total = sum(samples.n for samples in sets)
        measured: list[dict[str, float]] = []
        seen: list[Features] = []  # by the first extractor
        done = 0
        for samples in sets:

            def on_batch(some: int, _: int, done: int = done) -> None:
                if progress is not None:
                    progress(done + some, total)

            features = extract(samples, [view.extractor for view in self.views], on_batch)
            measured.append(self.figures(features))
            seen.append(features[0])
            done += samples.n
        figures = {}
        for key in (key for key in TITLES if key in measured[0]):
            values = [one[key] for one in measured]
            std = float(np.std(values, ddof=1)) if len(values) > 1 else None
            real = self.held_out.get(key) if self.held_out is not None else None
            figures[key] = Figure(float(np.mean(values)), std, real)
        reference, extractors = self.views[0].reference, [view.extractor for view in self.views]
        protocol = describe(sets, seen[0], reference, extractors, self.precision)
        return Result(sets[0].name, figures, protocol, warnings(list(figures), protocol, sets, reference))

    def figures(self, features: Sequence[Features]) -> dict[str, float]:
        """Of one sample set, as each view's extractor sees it."""
        out: dict[str, float] = {}
        for view, seen in zip(self.views, features, strict=True):
            out |= self._view_figures(view, seen)
        return out

    def _view_figures(self, view: View, seen: Features) -> dict[str, float]:
        reference, wanted = view.reference, {what: name for name, what in view.wanted.items()}
        out: dict[str, float] = {}
        if "distance" in wanted:
            out[wanted["distance"]] = metrics.frechet_distance(_there(reference.statistics), seen.pool)
        if "infinity" in wanted:
            found = metrics.frechet_distance_infinity(_there(reference.statistics), seen.pool)
            out[wanted["infinity"]] = found.value
        if "spatial" in wanted:
            out[wanted["spatial"]] = metrics.frechet_distance(_there(reference.spatial), _there(seen.spatial))
        if "score" in wanted:
            out[wanted["score"]] = metrics.inception_score(_there(seen.logits))
        if wanted.keys() & set(NEIGHBOURS):
            around = metrics.neighbourhoods(
                _there(reference.pool), seen.pool, precision=self.precision, device=self.device
            )
            out |= {name: getattr(around, name) for name in NEIGHBOURS if name in wanted}
        if "kernel" in wanted:
            distance = metrics.kid(_there(reference.pool), seen.pool)
            name = wanted["kernel"]
            out |= {name: distance.mean, f"{name}_spread": distance.std}
        if "accuracy" in wanted and seen.labels is not None:
            out[wanted["accuracy"]] = float((_there(seen.logits).argmax(axis=1) == seen.labels).mean())
        if "nearest" in wanted:
            out[wanted["nearest"]] = float(_there(seen.nearest).mean()) / self.nearest
        return out


def _there(value: T | None) -> T:
    assert value is not None  # checked when the judge was opened
    return value


def open_judge(
    config: EvaluateConfig,
    device: str | torch.device = "cpu",
    allow_jpeg: bool = False,
    progress: PROGRESS | None = None,
) -> Judge:
    """The judge that `config` describes: its extractors loaded, its reference read, its floor measured.

    The extractors follow from the reference: "digits" has its own; else DINOv2 if config.dinov2 names one,
    else Inception. Raises UsageError for missing or foreign weights, a reference without what the figures
    need, or an unknown figure.
    """
    if config.reference in BUILT_IN:
        wanted = _wanted(config, config.reference, f"{config.reference}-random")
        return _built_in_judge(config.reference, wanted, config.precision)
    if not config.reference:
        raise UsageError(
            f"say what to compare with: a reference .npz, a folder of real images, or {' or '.join(BUILT_IN)}"
        )
    kind = "dinov2" if config.dinov2 else "inception"
    wanted = _wanted(config, kind)[kind]
    path = Path(config.reference)
    if not path.exists():
        raise UsageError(f"there is no reference {path}")
    extractor = open_extractor(config, device)
    needs_images = any(what in NEEDS_IMAGES for what in wanted.values())
    reference = open_reference(path, extractor, needs_images, allow_jpeg, progress)
    _check_reference(reference, wanted)
    return Judge((View(extractor, reference, wanted),), config.precision, str(device))


def open_extractor(config: EvaluateConfig, device: str | torch.device) -> Extractor:
    """Inception, or DINOv2 where config.dinov2 names a folder."""
    if config.dinov2:
        from scaledit.evaluation import dinov2

        return dinov2.load(config.dinov2, device)
    from scaledit.evaluation import inception

    return inception.load(config.inception or None, verify=not config.any_inception, device=device)


def _wanted(config: EvaluateConfig, *kinds: str) -> dict[str, dict[str, str]]:
    """By kind of extractor: the figures that config.metrics names, or all but those on request."""
    names = {name: what for kind in kinds for name, what in NAMES[kind].items()}
    chosen = [name.strip() for name in config.metrics.split(",") if name.strip()]
    for name in chosen:
        if name not in names:
            raise UsageError(f"unknown metric {name!r} with this reference{did_you_mean(name, names)}")
    keep = chosen or [name for name, what in names.items() if what not in BY_REQUEST]
    return {kind: {name: what for name, what in NAMES[kind].items() if name in keep} for kind in kinds}


def _check_reference(reference: Reference, wanted: Mapping[str, str]) -> None:
    """Raises UsageError naming what the reference lacks and which figures can be had without it."""
    has = {
        "distance": reference.statistics is not None,
        "infinity": reference.statistics is not None,
        "spatial": reference.spatial is not None,
        **dict.fromkeys(NEEDS_IMAGES, reference.pool is not None),
    }
    lacking = [name for name, what in wanted.items() if not has.get(what, True)]
    if lacking:
        rest = ",".join(name for name in wanted if name not in lacking)
        needs = {"distance": "mu and sigma", "infinity": "mu and sigma", "spatial": "mu_s and sigma_s"}
        raise UsageError(
            f"{reference.name} has no {needs.get(wanted[lacking[0]], 'images (arr_0)')}, which {lacking[0]} "
            f"needs; choose --metrics {rest}"
            if rest
            else f"{reference.name} has nothing that {lacking[0]} needs"
        )


class BuiltIn(NamedTuple):
    """A reference that comes with scaledit: its extractor and the random twin, what it is of, and as many
    other real images, which give the floor."""

    extractors: tuple[Extractor, Extractor]
    train: Images
    held_out: Images


def _built_in(name: str) -> BuiltIn:
    if name == "digits":
        from scaledit.evaluation import digits as of_digits

        return BuiltIn((of_digits.trained(), of_digits.random_twin()), digits(), digits(held_out=True))
    from scaledit.evaluation import photos as of_photos

    # Another part of a photograph is another thing: the floor is of other crops of the same part.
    return BuiltIn((of_photos.trained(), of_photos.random_twin()), photos(), fresh_photos())


BUILT_IN = ("digits", "photos")


def _built_in_judge(name: str, wanted: Mapping[str, Mapping[str, str]], precision: Precision) -> Judge:
    """Against the training split; the held-out images give the floor."""
    built_in = _built_in(name)
    train = _in_memory(f"{name}, training split", built_in.train)
    held_out = _in_memory(f"{name}, held out", built_in.held_out)
    sha256 = hashlib.sha256(train.images.tobytes()).hexdigest()
    extractors = [extractor for extractor in built_in.extractors if wanted[extractor.name]]
    views = tuple(
        View(extractor, Reference.of(train.name, sha256, features), wanted[extractor.name])
        for extractor, features in zip(extractors, extract(train, extractors), strict=True)
    )
    real = extract(held_out, extractors)
    nearest = 1.0 if real[0].nearest is None else float(real[0].nearest.mean())
    bare = Judge(views, precision, nearest=nearest, real=held_out)
    return replace(bare, held_out=bare.figures(real))


def _in_memory(name: str, data: Images) -> InMemory:
    return InMemory(name, images.to_uint8(data.images), data.labels.numpy(), {})


def drawn(
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
                'labels "real" need a reference of known classes (digits, photos); take equal or uniform'
            )
        classes = judge.labels
    return [
        Drawn(
            pipeline,
            Request(classes, replace(settings, seed=config.seed + k), num=config.num, rule=config.labels),
            config.batch_size,
        )
        for k in range(config.seeds)
    ]
