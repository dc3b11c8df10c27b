"""Encoded images: what training draws from them, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from scaledit import load
from scaledit.data.latents import Latents
from scaledit.errors import UsageError
from scaledit.training.events import Finished
from scaledit.training.loop import train
from tiny import tiny

SCALE = 0.18215


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three shards of 5, 1 and 4 samples; the mean is the sample's number, the log variance -4."""
    start = 0
    for k, n in enumerate((5, 1, 4)):
        number = torch.arange(start, start + n, dtype=torch.float32)
        mean = number.reshape(-1, 1, 1, 1).expand(n, 4, 8, 8)
        log_variance = torch.full_like(mean, -4.0)
        save_file(
            {
                "moments": torch.cat([mean, log_variance], 1).contiguous(),
                "moments_flipped": torch.cat([-mean, log_variance], 1).contiguous(),
                "labels": (number % 3).long(),
            },
            tmp_path / f"{k}.safetensors",
        )
        start += n
    index = {"scale": SCALE, "class_names": ["a", "b", "c"], "shards": [f"{k}.safetensors" for k in range(3)]}
    (tmp_path / "index.json").write_text(json.dumps(index))
    return tmp_path


def test_latents_are_drawn_from_the_posterior_and_scaled(folder: Path):
    latents = Latents.open(str(folder), flip=False)
    assert (len(latents), latents.shape, latents.class_names) == (10, (4, 8, 8), ("a", "b", "c"))
    indices = np.array([9, 0, 5, 4, 6])
    x0, y = latents.batch(indices, range(100, 105), seed=3)
    assert y.tolist() == [0, 0, 2, 1, 0]
    drawn = x0 / SCALE - torch.tensor(indices, dtype=torch.float32).reshape(-1, 1, 1, 1)
    assert drawn.std().item() == pytest.approx(np.exp(-2), rel=0.05)
    assert drawn.mean().item() == pytest.approx(0, abs=0.02)
    again, _ = latents.batch(indices[2:3], range(102, 103), seed=3)  # another batch, the same position
    assert torch.equal(again[0], x0[2])
    later, _ = latents.batch(indices[2:3], range(202, 203), seed=3)  # seen again: drawn anew
    assert not torch.equal(later[0], x0[2])


def test_half_of_the_latents_are_those_of_the_mirrored_image(folder: Path):
    x0, _ = Latents.open(str(folder), flip=True).batch(np.full(400, 9), range(400), seed=0)
    share = (x0.mean(dim=(1, 2, 3)) < 0).float().mean().item()
    assert share == pytest.approx(0.5, abs=0.1)


def test_a_model_trains_on_latents_and_says_that_it_cannot_show_them(folder: Path, tmp_path: Path):
    config = tiny(
        "data.name=latents",
        f"data.path={folder}",
        "model.in_channels=4",
        "model.num_classes=3",
        "train.steps=3",
        "sample.every=1",
    )
    events = list(train(config, tmp_path / "run", device="cpu"))
    assert isinstance(events[-1], Finished)
    pipeline = load(tmp_path / "run")
    assert pipeline.latents([0, 2], pipeline.settings()).shape == (2, 4, 8, 8)
    with pytest.raises(UsageError, match="decoding them into images is not built yet"):
        pipeline([0, 2])


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda f: (f / "index.json").unlink(), "holds no encoded images"),
        (lambda f: (f / "index.json").write_text("{"), "not an index"),
        (lambda f: (f / "1.safetensors").unlink(), "1.safetensors cannot be read"),
        (lambda f: (f / "1.safetensors").write_bytes(b"\x00" * 50), "1.safetensors cannot be read"),
        (
            lambda f: save_file({"labels": torch.zeros(1)}, f / "1.safetensors"),
            "1.safetensors has no moments",
        ),
        (
            lambda f: save_file(
                {"moments": torch.zeros(2, 8, 8, 8), "labels": torch.tensor([0, 3])}, f / "1.safetensors"
            ),
            "labels outside 0..2",
        ),
        (
            lambda f: save_file(
                {"moments": torch.zeros(2, 8, 4, 4), "labels": torch.tensor([0, 2])}, f / "1.safetensors"
            ),
            "one shape",
        ),
    ],
)
def test_a_folder_that_does_not_fit_is_refused_by_name(folder: Path, change, says: str):
    change(folder)
    with pytest.raises(UsageError, match=says):
        Latents.open(str(folder), flip=False)
    if says == "one shape":
        with pytest.raises(
            UsageError, match=r"no moments_flipped; encode both flips or set data\.flip=false"
        ):
            Latents.open(str(folder), flip=True)
