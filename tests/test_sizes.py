"""A trained model at other sizes than that of its training: noise, files, protocols, refusals."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from scaledit import DiT, Pipeline
from scaledit.autoencoders.decoder import Decoder
from scaledit.cli import main
from scaledit.data.latents import AutoencoderInfo
from scaledit.diffusion import ClassifierFree, LearnedRange, NetDenoiser, Noise, sample
from scaledit.errors import UsageError
from scaledit.images import to_uint8
from scaledit.models.positions import Position
from scaledit.training.dit import train
from tiny import tiny


def made(*overrides: str) -> Pipeline:
    run = tiny(*overrides)
    torch.manual_seed(0)
    net = DiT(run.model).eval()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(torch.randn(parameter.shape) * 0.02)
    return Pipeline(run, net, torch.device("cpu"), tuple("0123456789"), {"run": "tiny", "step": 0})


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("run") / "run"
    list(train(tiny("train.steps=2", "model.position=rotary"), out, device="cpu"))
    return out


@pytest.mark.parametrize("position", ["sincos", "rotary", "relative_bias"])
@pytest.mark.parametrize("kind", ["", "paper"])
def test_images_of_another_size_come_from_keyed_noise_of_that_size(position: str, kind: str):
    learned = ["diffusion.schedule=linear", "diffusion.prediction=epsilon", "diffusion.objective=hybrid"]
    pipeline = made(f"model.position={position}", "sample.cfg_scale=1.5", *(learned if kind else []))
    config = pipeline.config
    images = pipeline([3, 1, 7], seed=5, start=2, size=(8, 12), batch_size=2)
    assert images.shape == (3, 8, 12, 3)
    if kind:
        assert isinstance(config.diffusion.parameterization, LearnedRange)
    inside = NetDenoiser(pipeline.net, config.diffusion.schedule, config.diffusion.parameterization)
    noise, y = Noise(5, range(2, 5), (1, 8, 12)), torch.tensor([3, 1, 7])
    wanted = sample(ClassifierFree(inside, 1.5), config.sample.sampler, noise, y)
    assert np.abs(images.astype(int) - to_uint8(wanted)).max() <= 1  # batches may round
    assert np.array_equal(pipeline([3], size=8), pipeline([3]))
    assert pipeline.at((8, 12)).image_size == (8, 12) and pipeline.at((8, 8)).size is None
    assert pipeline.at((8, 12)).at(8).size is None


def test_sizes_in_latents_are_those_of_the_images():
    pipeline = made("model.position=rotary")
    info = AutoencoderInfo("ae", "", "", 1.0, 1, 8)
    latent = replace(pipeline, decoder=Decoder("ae", info, "cpu"))
    assert latent.image_size == (64, 64) and latent.at((64, 96)).model.shape == (1, 8, 12)
    assert latent.at((64, 96)).latents([1], latent.settings()).shape == (1, 1, 8, 12)
    said = (
        r"50x64 \(height x width\) is not possible: both sides must be multiples of 32, the model's patch "
        r"size 4 times the autoencoder's downsampling 8; the nearest sizes are 32x64 and 64x64$"
    )
    with pytest.raises(UsageError, match=said):
        latent.at((50, 64))
    with pytest.raises(UsageError, match=r"multiples of 4, the model's patch size; the nearest size is 4x8$"):
        pipeline.at((2, 8))
    with pytest.raises(UsageError, match="the nearest sizes are 8x12, 8x16, 12x12 and 12x16"):
        pipeline.at((9, 14))
    for wrong in ((0, 8), (8,), 8.5):
        with pytest.raises(UsageError, match=r"size"):
            pipeline.at(wrong)  # type: ignore[arg-type]


class Fixed(Position):
    """An encoding that is defined on the grid of the training only."""

    def table(self, config) -> Tensor:
        return torch.zeros(config.tokens, config.hidden_size)


def test_what_cannot_be_sampled_at_another_size_is_refused_at_once():
    pipeline = made()
    config = replace(pipeline.config.model, position=Fixed())
    fixed = replace(pipeline, config=replace(pipeline.config, model=config), net=DiT(config))
    assert fixed.at(8) is not None
    with pytest.raises(UsageError, match=r"accepts inputs of 8x8 only, since its position encoding .*Fixed"):
        fixed.at(16)
    with pytest.raises(UsageError, match="accepts inputs of 8x8 only"):
        fixed.net(torch.zeros(1, 1, 16, 16), torch.zeros(1), None)
    with pytest.raises(UsageError, match=r"tokens of an image of 400000x400000 would take"):
        pipeline.at(400_000)


def test_the_commands_write_and_record_the_size(run: Path, tmp_path: Path, capsys):
    npz, parts, grid = tmp_path / "a.npz", tmp_path / "b.npz", tmp_path / "c.png"
    words = ["--size", "8x16", "--steps", "2", "-q"]
    assert main(["sample", str(run), "--out", str(npz), "--num", "20", "--seed", "1", *words]) == 0
    assert main(["sample", str(run), "--out", str(grid), "--classes", "3,5", "--per-class", "2", *words]) == 0
    assert main(["generate", str(run), "--out", str(parts), "--num", "20", "--labels", "equal",
                 "--seed", "1", *words]) == 0  # fmt: skip
    with np.load(npz) as a, np.load(parts) as b:
        assert a["arr_0"].shape == (20, 8, 16, 3) and np.array_equal(a["arr_0"], b["arr_0"])
        assert json.loads(str(a["origin"]))["size"] == json.loads(str(b["origin"]))["size"] == [8, 16]
    with Image.open(grid) as image:
        assert image.width > image.height
    assert (
        main(["sample", str(run), "--out", str(grid), "--steps", "1,2", "--classes", "3", "--size", "16"])
        == 0
    )
    assert main(["sample", str(run), "--out", str(npz), "--num", "2", "--size", "8", "-q"]) == 0
    with np.load(npz) as a:
        assert "size" not in json.loads(str(a["origin"]))
    folder = tmp_path / "real"
    folder.mkdir()
    for i in range(7):
        Image.fromarray(np.full((8, 16, 3), 40 * i, np.uint8)).save(folder / f"{i}.png")
    capsys.readouterr()
    assert main(["evaluate", str(run), "--reference", str(folder), "--num", "7", "--metrics", "precision",
                 "--labels", "equal",
                 "--extractor", "efficientnet-lite0-random", "--json", *words]) == 0  # fmt: skip
    assert json.loads(capsys.readouterr().out)["protocol"]["image_size"] == [8, 16]


@pytest.mark.parametrize("text", ["8x", "x8", "8x8x8", "8.5", "-8", "0x8", "1234567"])
def test_sizes_that_are_none_are_refused(text: str, run: Path, capsys):
    assert main(["sample", str(run), "--out", "a.npz", f"--size={text}"]) == 2
    assert "--size" in capsys.readouterr().err
