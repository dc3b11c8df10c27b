"""Small things that stop people: numbers as people write them, ~, typing errors, sets of one."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch

from pictures import encoded, tree
from scaledit import config as configs
from scaledit.autoencoders.config import AutoencoderRun
from scaledit.cli import main
from scaledit.commands import common
from scaledit.config import RunConfig
from scaledit.config.tables import section_types
from scaledit.data.decode import Header
from scaledit.data.inspection import usual_side
from scaledit.errors import UsageError, near_path
from scaledit.evaluation import digits
from scaledit.evaluation.protocol import incomparable
from scaledit.values import hints, own_fields, whole


@pytest.mark.parametrize(
    ("text", "value"), [("1e3", 1000), ("2_000", 2000), ("5E4", 50_000), ("12.0", 12), ("-1e1", -10)]
)
def test_whole_numbers_as_people_write_them(text: str, value: int, tmp_path: Path):
    assert whole(text) == common.integer(-100, 10**6)(text) == common.whole(text) == value
    if value < 1:
        return
    (tmp_path / "mine.toml").write_text(f'extends = "digits"\ntrain.steps = {text.lower()}\n')
    for config in (
        configs.load("digits", [f"train.steps={text.lower()}"]),
        configs.load(str(tmp_path / "mine.toml")),
    ):
        assert config.train.steps == value and type(config.train.steps) is int
    steps = configs.load("digits", [f"sample.sampler.steps={text.lower()}"]).sample.sampler.steps
    assert (steps, type(steps)) == (value, int)


@pytest.mark.parametrize("text", ["1.5e0", "1e400", "true", "nan", "1e3x", "1e30"])
def test_what_is_no_whole_number_is_one_sentence(text: str, capsys):
    with pytest.raises(UsageError, match=r"train\.steps must (be a whole number|fit into 64 bits), got"):
        configs.load("digits", [f"train.steps={text}"])
    assert main(["evaluate", "x", "--num", text]) == 2
    said = capsys.readouterr().err
    assert "--num must be" in said and said.count("\n") == 1


def test_the_home_folder_in_every_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "mine.toml").write_text(
        'extends = "~/base.toml"\nautoencoder.path = "~/ae"\nevaluate.dinov2 = "~/dino"\n'
    )
    (tmp_path / "base.toml").write_text('extends = "digits"\ndata.path = "~/images"\n')
    config = configs.load("~/mine.toml", ["evaluate.reference=~/real"])
    paths = (config.data.path, config.autoencoder.path, config.evaluate.dinov2, config.evaluate.reference)
    assert paths == tuple(str(tmp_path / name) for name in ("images", "ae", "dino", "real"))
    assert configs.load("digits", ["data.path=a~b"]).data.path == "a~b"
    tree(tmp_path / "images")
    out = ["--autoencoder", "pixels", "--image-size", "16", "--out=~/latents"]
    assert main(["encode", "~/images", *out]) == 0
    assert (tmp_path / "latents" / "index.json").is_file()
    assert main(["data", "inspect", "~/imagse"]) == 2
    assert f"{tmp_path}/imagse does not exist; did you mean {tmp_path}/images?" in capsys.readouterr().err


def test_every_key_that_is_a_path_says_so():
    """Keys that name files or folders expand ~."""
    for kind in (RunConfig, AutoencoderRun):
        for section, cls in section_types(kind).items():
            for item in own_fields(cls):
                doc = item.metadata.get("doc", "")
                is_path = re.search(r"\b(file|folder|folders|\.npz)\b", doc) and hints(cls)[item.name] is str
                if is_path and item.name not in ("image_key",):
                    assert item.metadata.get("path"), f"{section}.{item.name}: {doc}"


@pytest.mark.parametrize(
    "command",
    [
        ["data", "inspect", "pictrues"],
        ["encode", "pictrues", "--autoencoder", "pixels", "--out", "x"],
        ["train", "digits", "data.name=images", "data.path=pictrues", "data.image_size=8"],
        ["evaluate", "pictrues", "--reference", "digits"],
        ["evaluate", "pictures", "--reference", "pictrues"],
        ["reference", "pictrues", "--out", "x.npz"],
        ["sample", "pictrues", "--out", "x.png"],
        ["convert", "pictrues", "x", "--to", "scaledit"],
    ],
)
def test_a_mistyped_path_is_answered_with_the_nearest(
    command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pictures" / "a").mkdir(parents=True)
    for i in (0, 3):
        (tmp_path / "pictures" / "a" / f"{i}.png").write_bytes(encoded(i)[1])
    assert main(command) == 2
    said = capsys.readouterr().err
    assert "did you mean pictures?" in said and said.count("\n") == 1
    assert near_path("pictrues/a/3.png") == "; did you mean pictures/a/3.png?"
    assert near_path("pictrues/b") == near_path("x/y") == ""


def test_sets_of_one_in_the_right_grammar(tmp_path: Path, capsys):
    (tmp_path / "one" / "only").mkdir(parents=True)
    (tmp_path / "one" / "only" / "1.png").write_bytes(encoded(0)[1])
    out = ["--autoencoder", "pixels", "--image-size", "8", "--out", str(tmp_path / "latents")]
    for command in (
        ["data", "inspect", str(tmp_path / "one")],
        ["encode", str(tmp_path / "one"), *out],
        ["data", "inspect", str(tmp_path / "latents")],
        ["plan", "digits", "train.steps=1", "model.num_classes=1"],
    ):
        assert main(command) == 0
        said = "".join(capsys.readouterr())
        wrong = re.search(r"(?<![\d,.])1 (images|classes|files|steps|workers|runs|jobs|devices)\b", said)
        assert wrong is None and "(s)" not in said, said


def test_inspect_chooses_a_size_that_most_images_reach(tmp_path: Path, capsys):
    def of(*sides: int) -> int:
        return usual_side([Header("PNG", side, 500, "RGB", False) for side in sides])

    assert of(*[300] * 9, 100) == 256  # one in ten may be smaller
    assert of(*[300] * 8, 100, 100) == 64
    assert (of(40), of(8), of(5000)) == (32, 8, 256)
    assert main(["data", "inspect", str(tree(tmp_path / "tree")), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["image size"].startswith("32, which 9 in 10 images reach") and not report["warnings"]
    assert main(["data", "inspect", str(tmp_path / "tree"), "--image-size", "64"]) == 0
    assert "12 images are smaller than 64 pixels" in capsys.readouterr().out


def test_results_that_cannot_be_compared_say_so():
    one = {"n": 1000, "image_size": [8, 8], "reference": "digits", "reference_sha256": "a", "extractor": "x"}
    assert incomparable({"a": one, "b": dict(one)}) == []
    other = {**one, "n": 50_000, "reference_sha256": "b", "image_size": [64, 64], "extractor": "y"}
    said = incomparable({"a": one, "b": other})
    assert len(said) == 4
    assert (
        said[0]
        == "these results have different numbers of images, so do not compare them (a: 1000, b: 50000)"
    )
    assert incomparable({"a": one, "b": {**one, "n": None}}) == []  # not stated


def test_the_digits_extractor_refuses_colors():
    colored = torch.zeros(2, 3, 8, 8, dtype=torch.uint8)
    colored[1, 2, 3, 3] = 255
    with pytest.raises(UsageError, match="needs gray images, but these are colored"):
        digits.trained()(colored)


def test_forgotten_classes_are_one_sentence_to_paste(tmp_path: Path, capsys):
    images = tree(tmp_path / "tree")
    small = ["data.image_size=16", "model.input_size=16", "model.in_channels=3", "train.steps=1"]
    words = [
        "train",
        "digits",
        "data.name=images",
        f"data.path={images}",
        *small,
        "--out",
        str(tmp_path / "r"),
    ]
    assert main(words) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "set model.num_classes=3" in said and not (tmp_path / "r").exists()
