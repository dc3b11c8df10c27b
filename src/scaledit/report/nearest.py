"""The section of a run's report on copies: every shown sample beside its nearest training image."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from PIL import Image

from scaledit.evaluation import nearest
from scaledit.evaluation.judge import Judge
from scaledit.evaluation.own import AS_IN_TRAINING
from scaledit.pipeline import Pipeline
from scaledit.report import page
from scaledit.report.page import Sheet

WIDEST = 96
"""Pixels of a shown image; larger ones are reduced."""
GAP = 2


class Section(NamedTuple):
    """pairs: by their captions. side: of the reduced images that are compared, at most."""

    pairs: dict[str, Sheet]
    summary: str
    side: int


def section(pipeline: Pipeline, judge: Judge) -> Section | None:
    """The samples of the final grid, with their nearest training images; None unless the reference is the
    run's own data."""
    own, real = judge.own, judge.real
    if own is None or real is None:
        return None
    settings = pipeline.config.sample
    classes = settings.grid_classes(pipeline.config.model.num_classes)
    samples = pipeline(classes, seed=settings.seed)
    training = nearest.TrainingImages.of(own)
    found, of_held_out = training.nearest(samples), training.nearest(real.images)
    originals = training.shown(found)
    pairs = {}
    for i in np.argsort(found.distance, kind="stable").tolist():
        name = page.row_names([own.class_names[classes[i]]])[0]
        caption = f"{name} {i % settings.per_class + 1}: {found.distance[i]:.1f}"
        pairs[caption] = _pair(samples[i], originals[i], f"a sample of {name} and its nearest training image")
    return Section(pairs, _summary(training, found.distance, of_held_out.distance), nearest.SIDE)


def _summary(training: nearest.TrainingImages, samples: np.ndarray, held_out: np.ndarray) -> str:
    share = nearest.share_nearer(samples, held_out)
    compared = len(training.images)
    which = f"all {training.all}" if compared == training.all else f"{compared} of the {training.all}"
    made = f", {training.made}" if training.made != AS_IN_TRAINING else ""
    mirrored = ", also mirrored" if training.flip else ""
    return (
        f"{share:.0%} of these samples are nearer to a training image than the median of the {len(held_out)} "
        f"held-out images is to its own (medians: held out {np.median(held_out):.1f}, samples "
        f"{np.median(samples):.1f}). A model whose images are as new as the held-out ones has about 50 %. A "
        "much larger share, with pairs that show the same picture, hints at memorization. Smooth or blurred "
        "samples are near to many images. "
        f"Compared with {which} training images{made}{mirrored}."
    )


def _pair(sample: np.ndarray, original: np.ndarray, alt: str) -> Sheet:
    """(H, W, 3) uint8 each, side by side."""
    gap = np.full((sample.shape[0], GAP, 3), 255, np.uint8)
    picture = Image.fromarray(np.concatenate([sample, gap, original], axis=1))
    if sample.shape[1] > WIDEST:
        height = round(WIDEST * sample.shape[0] / sample.shape[1])
        picture = picture.resize((2 * WIDEST + GAP, height), Image.Resampling.LANCZOS)
    zoom = max(1, WIDEST // sample.shape[1])
    if zoom > 1:
        picture = picture.resize((zoom * picture.width, zoom * picture.height), Image.Resampling.NEAREST)
    return page.sheet(page.png(np.asarray(picture)), alt, picture.width, zoom > 1)
