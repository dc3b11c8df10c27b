"""The built-in photographs: the crops are the same everywhere, and some are held out."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch

from scaledit import assemble
from scaledit.config import DataConfig
from scaledit.data import photos as module
from scaledit.data.photos import CLASS_NAMES, PHOTOGRAPHS, SIDE, corners, load, photos
from scaledit.errors import UsageError


def covered(label: int, held_out: bool) -> np.ndarray:
    """The pixels of the scaled photograph that any crop shows."""
    height, width, _ = load(PHOTOGRAPHS[label]).shape
    mask = np.zeros((height, width), bool)
    for top, left in corners(label, width, height, held_out, range(64 if held_out else 512)):
        assert 0 <= top <= height - SIDE
        assert 0 <= left <= width - SIDE
        mask[top : top + SIDE, left : left + SIDE] = True
    return mask


@pytest.mark.parametrize("label", range(len(PHOTOGRAPHS)), ids=CLASS_NAMES)
def test_held_out_crops_share_no_pixel_with_training_crops(label: int):
    train, held_out = covered(label, False), covered(label, True)
    assert not (train & held_out).any()
    assert (train | held_out).mean() > 0.95  # and together they leave little of the photograph unused


def test_crops_are_those_of_their_photograph_and_in_range():
    train, held_out = photos(), photos(held_out=True)
    assert (train.shape, len(train), len(held_out)) == ((3, 64, 64), 12 * 512, 12 * 64)
    for dataset in (train, held_out):
        assert torch.bincount(dataset.labels).tolist() == [len(dataset) // 12] * 12
        assert dataset.images.abs().max() <= 1
    i = 512 * CLASS_NAMES.index("coffee") + 7
    pixels = load(PHOTOGRAPHS[CLASS_NAMES.index("coffee")])
    top, left = corners(CLASS_NAMES.index("coffee"), pixels.shape[1], pixels.shape[0], False, range(8))[7]
    crop = torch.from_numpy(pixels[top : top + 64, left : left + 64].copy()).permute(2, 0, 1)
    assert torch.equal((train.images[i] + 1).mul(127.5).round().byte(), crop)
    gray = train.images[train.labels == CLASS_NAMES.index("coins")]
    assert torch.equal(gray[:, 0], gray[:, 2])


def test_the_list_of_crops_is_fixed():
    """Pinned, since every latent cache and every metric of the photos recipes depends on them."""
    assert corners(2, 289, 192, False, range(3)).tolist() == [[46, 133], [105, 152], [119, 165]]
    assert corners(2, 289, 192, True, range(3)).tolist() == [[101, 7], [124, 6], [67, 3]]


def test_a_recipe_can_train_on_them():
    dataset = assemble.dataset(DataConfig(name="photos", flip=True))
    assert dataset.class_names == CLASS_NAMES
    batch = dataset.batch(np.arange(4), range(4), seed=0)
    assert batch.x0.shape == (4, 3, 64, 64)


def test_without_scikit_image_says_what_to_install(monkeypatch: pytest.MonkeyPatch):
    module._crops.cache_clear()
    monkeypatch.setitem(sys.modules, "skimage.data", None)
    with pytest.raises(UsageError, match=r'pip install "scaledit\[photos\]"'):
        photos()
