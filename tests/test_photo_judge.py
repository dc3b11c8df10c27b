"""FD-photos: the extractor is the shipped one, it sees damage, and its floor is of the same kind."""

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


def test_fresh_crops_are_of_the_trained_regions_and_none_of_the_list():
    fresh, train = fresh_photos(), photos()
    assert len(fresh) == 12 * 16
    same = (fresh.images[0] == train.images[:512]).flatten(1).all(1)
    assert not bool(same.any())
    assert accuracy(judge.trained().network, fresh) >= 0.97


def test_what_it_sees(opened: Judge, tmp_path: Path):
    """Noise, fewer classes and another part of the photographs: each further than fresh crops are."""
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
    found = {}
    for name, (x, y) in sets.items():
        np.savez(tmp_path / f"{name}.npz", images.to_uint8(x), y.numpy())
        found[name] = opened.evaluate([open_samples(tmp_path / f"{name}.npz")]).metrics
    fd = {name: figures["fd_photos"].value for name, figures in found.items()}
    assert fd["fresh"] == pytest.approx(found["fresh"]["fd_photos"].real, rel=1e-6)  # it is the floor
    assert fd["half of the classes"] > 5 * fd["fresh"]
    assert fd["held out"] > 1.5 * fd["fresh"]
    twin = {name: figures["fd_photos_random"].value for name, figures in found.items()}
    assert twin["fresh"] < twin["noise 0.1"] < twin["noise 0.3"]
    assert fd["noise 0.3"] > fd["fresh"]
    assert found["fresh"]["class_accuracy"].value >= 0.97
    assert 8 < found["fresh"]["class_score"].value <= len(CLASS_NAMES)


def test_other_sizes_are_refused():
    with pytest.raises(UsageError, match="64x64 images, these are 8x8"):
        judge.trained()(torch.zeros(2, 3, 8, 8, dtype=torch.uint8))
