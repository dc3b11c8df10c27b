"""FD-photos: the shipped extractor, its sensitivity, and its floor."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from scaledit import images
from scaledit.config import EvaluateConfig
from scaledit.data.photos import CLASS_NAMES, fresh_photos, photos
from scaledit.errors import UsageError
from scaledit.evaluation import photos as judge
from scaledit.evaluation.judge import Judge, open_judge
from scaledit.evaluation.samples import open_samples
from scaledit.evaluation.small import accuracy


@pytest.fixture(scope="module")
def opened() -> Judge:
    return open_judge(EvaluateConfig(reference="photos"))


def test_fresh_crops_are_of_the_training_regions_but_no_training_crops():
    fresh, train = fresh_photos(), photos()
    assert len(fresh) == 12 * 16
    same = (fresh.images[0] == train.images[:512]).flatten(1).all(1)
    assert not bool(same.any())
    assert accuracy(judge.trained().network, fresh) >= 0.97


def test_sensitivity(opened: Judge, tmp_path: Path):
    """Noise, fewer classes and other regions of the photographs are further away than fresh crops."""
    fresh, generator = fresh_photos(), torch.Generator().manual_seed(0)
    noise = torch.randn(fresh.images.shape, generator=generator)
    held_out = photos(held_out=True)
    sets = {
        "fresh": (fresh.images, fresh.labels),
        "noise 0.1": (fresh.images + 0.1 * noise, fresh.labels),
        "noise 0.3": (fresh.images + 0.3 * noise, fresh.labels),
        "half of the classes": (fresh.images[:96].repeat(2, 1, 1, 1), fresh.labels[:96].repeat(2)),
        "held out": (held_out.images[::4], held_out.labels[::4]),
    }
    metrics = {}
    for name, (x, y) in sets.items():
        np.savez(tmp_path / f"{name}.npz", images.to_uint8(x), y.numpy())
        metrics[name] = opened.evaluate([open_samples(tmp_path / f"{name}.npz")]).metrics
    fd = {name: values["fd_photos"].value for name, values in metrics.items()}
    assert fd["fresh"] == pytest.approx(metrics["fresh"]["fd_photos"].real, rel=1e-6)  # it is the floor
    assert fd["half of the classes"] > 5 * fd["fresh"]
    assert fd["held out"] > 1.5 * fd["fresh"]
    twin = {name: values["fd_photos_random"].value for name, values in metrics.items()}
    assert twin["fresh"] < twin["noise 0.1"] < twin["noise 0.3"]
    assert fd["noise 0.3"] > fd["fresh"]
    assert metrics["fresh"]["class_accuracy"].value >= 0.97
    assert 8 < metrics["fresh"]["class_score"].value <= len(CLASS_NAMES)


def test_other_sizes_are_refused():
    with pytest.raises(UsageError, match="images of 64x64 pixels, but these have 8x8"):
        judge.trained()(torch.zeros(2, 3, 8, 8, dtype=torch.uint8))
