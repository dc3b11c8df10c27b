"""The names of ImageNet's classes, for models that were trained on it elsewhere."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from layouts import HEADS, config, official_state, random_dit
from scaledit import load
from scaledit.cli import main
from scaledit.data import imagenet

SHAPE = config(depth=1, num_classes=1000)


def test_the_names_are_in_the_order_of_ilsvrc():
    names, lemmas = imagenet.names(), imagenet.lemmas()
    assert len(names) == len(lemmas) == 1000
    expected = {0: "tench", 88: "macaw", 207: "golden retriever", 360: "otter", 387: "lesser panda"}
    expected |= {417: "balloon", 974: "geyser", 979: "valley", 999: "toilet tissue"}
    assert {number: names[number] for number in expected} == expected
    assert lemmas[0] == "tench, Tinca tinca"
    twice = {name: [i for i, one in enumerate(names) if one == name] for name in names}
    twice = {name: numbers for name, numbers in twice.items() if len(numbers) > 1}
    assert twice == {"crane": [134, 517], "maillot": [638, 639]}
    assert all(name == name.strip() and name for name in names)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """official.pt, and xl2 converted from it: a model of pixels in the official layout."""
    where = tmp_path_factory.mktemp("imagenet")
    torch.save(official_state(random_dit(replace(SHAPE, in_channels=3))), where / "official.pt")
    return where


@pytest.fixture(scope="module")
def converted(folder: Path) -> Path:
    words = ["convert", str(folder / "official.pt"), str(folder / "xl2"), "--heads", str(HEADS)]
    assert main([*words, "--to", "scaledit", "--quiet"]) == 0
    return folder / "xl2"


def test_a_conversion_says_whose_names_the_classes_have(folder: Path, tmp_path: Path, capsys):
    words = ["convert", str(folder / "official.pt"), str(tmp_path / "a"), "--heads", str(HEADS)]
    assert main([*words, "--to", "scaledit"]) == 0
    assert "class names: ImageNet's (1,000 classes)\n" in capsys.readouterr().out
    state = json.loads((tmp_path / "a" / "manifest.json").read_text())["state"]
    assert tuple(state["class_names"]) == imagenet.names()
    other = random_dit(config(depth=1, in_channels=3, num_classes=5))
    torch.save(official_state(other), tmp_path / "five.pt")
    words = ["convert", str(tmp_path / "five.pt"), str(tmp_path / "five"), "--heads", str(HEADS)]
    assert main([*words, "--num-classes", "5", "--to", "scaledit"]) == 0
    assert "class names" not in capsys.readouterr().out
    assert load(tmp_path / "five").class_names == tuple("01234")


def test_images_are_sampled_by_name_as_by_number(converted: Path, tmp_path: Path):
    words = ["sample", str(converted), "--per-class", "1", "--steps", "2", "--quiet"]
    for classes in ("golden retriever,macaw", "207,88"):
        out = str(tmp_path / f"{classes}.npz")
        assert main([*words, "--classes", classes, "--out", out]) == 0
    by_name, by_number = (np.load(path) for path in sorted(tmp_path.glob("*.npz"), reverse=True))
    assert by_name["arr_1"].tolist() == [207, 88]
    assert np.array_equal(by_name["arr_0"], by_number["arr_0"])


@pytest.mark.parametrize(
    ("classes", "says"),
    [
        ("crane", "2 classes are called 'crane'; choose one by its number: 134 or 517"),
        ("maillot", "2 classes are called 'maillot'; choose one by its number: 638 or 639"),
        ("golden retreiver", "unknown class 'golden retreiver'; did you mean 'golden retriever'?"),
        ("xyzzy", "unknown class 'xyzzy'; the model has 1,000 classes, such as tench and toilet tissue"),
        ("1000", "class 1000 is out of range"),
    ],
)
def test_a_name_that_is_not_one_class_is_refused(
    converted: Path, classes: str, says: str, tmp_path: Path, capsys
):
    words = ["sample", str(converted), "--classes", classes, "--out", str(tmp_path / "x.png")]
    assert main(words) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert says in error and len(error) < 200


def test_a_folder_of_diffusers_names_classes_as_its_pipeline_finds_them(tmp_path: Path, capsys):
    torch.save(official_state(random_dit(SHAPE)), tmp_path / "official.pt")
    words = ["convert", str(tmp_path / "official.pt"), str(tmp_path / "pipe"), "--heads", str(HEADS)]
    assert main([*words, "--to", "diffusers"]) == 0
    assert "class names: ImageNet's" in capsys.readouterr().out
    index = tmp_path / "pipe" / "model_index.json"
    values = json.loads(index.read_text())
    assert values["id2label"]["0"] == "tench, Tinca tinca"
    assert load(tmp_path / "pipe").class_names == imagenet.names()
    (tmp_path / "pipe" / "scaledit.json").unlink()  # as a folder that scaledit did not write
    assert load(tmp_path / "pipe").class_names == imagenet.names()
    values["id2label"] = {str(i): f"thing {i}, object {i}" for i in range(1000)}
    index.write_text(json.dumps(values))
    assert load(tmp_path / "pipe").class_names[:2] == ("thing 0", "thing 1")
    index.write_text("{")
    assert load(tmp_path / "pipe").class_names == imagenet.names()


def test_a_model_exported_before_keeps_its_numbers(converted: Path, tmp_path: Path):
    from scaledit.checkpoint import MANIFEST
    from scaledit.files.manifest import sealed

    for path in converted.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    manifest = json.loads((tmp_path / MANIFEST).read_text())
    manifest["state"]["class_names"] = [str(i) for i in range(1000)]
    del manifest["sha256"]  # of the manifest itself
    (tmp_path / MANIFEST).write_bytes(sealed(manifest))
    assert load(tmp_path).class_names[207] == "207"
