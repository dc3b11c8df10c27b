"""Judging a run by its own data: held-out images, extractors, accuracy by class, nearest training images."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from scaledit import assemble, config, images
from scaledit.autoencoders.decoder import Decoder, autoencoder_info
from scaledit.cli import main
from scaledit.config import EvaluateConfig, RunConfig
from scaledit.data.held_out import ARRAYS, RECORD, HeldOut
from scaledit.data.holdout import class_ranks, evenly, split
from scaledit.data.latents import Latents
from scaledit.data.sources import open_source
from scaledit.errors import RunError, UsageError
from scaledit.evaluation import efficientnet, inception, nearest
from scaledit.evaluation.choice import NO_VERDICT, choose
from scaledit.evaluation.extractors.efficientnet import EfficientNetFeatures
from scaledit.evaluation.judge import open_run_judge
from scaledit.evaluation.metrics import frechet_distance
from scaledit.evaluation.metrics.class_means import by_class, class_means, nearest_mean
from scaledit.evaluation.nearest import TrainingImages
from scaledit.evaluation.own import OwnImages, Readable, own_images
from scaledit.evaluation.protocol import is_conclusive
from scaledit.evaluation.result import Result, class_table
from scaledit.evaluation.samples import InMemory
from scaledit.training import log
from tiny import TINY

SIDE = 8
FAST = '''
from dataclasses import dataclass

from torch.nn.functional import adaptive_avg_pool2d

from scaledit.evaluation.extractors import Extractor


class Network:
    name, sha256, resize = "means", "0" * 64, "none"

    def __call__(self, images):
        return {"pool": adaptive_avg_pool2d(images.float(), 2).flatten(1)}


@dataclass(frozen=True)
class Means(Extractor):
    """Means of the quarters of an image: 12 features, in no time."""

    suffix = "means"

    def load(self, device="cpu"):
        return Network()
'''
NAMES = ("blue", "green", "red")


def picture(label: int, i: int) -> np.ndarray:
    """Noise in which the channel of the class is brighter."""
    pixels = np.random.default_rng([label, i]).integers(0, 120, (SIDE + 4, SIDE, 3))
    pixels[..., 2 - label] += 130
    return pixels.astype(np.uint8)


def tree(folder: Path, each: int = 10, first: int = 0) -> Path:
    for label, name in enumerate(NAMES):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for i in range(first, each):
            Image.fromarray(picture(label, i)).save(folder / name / f"{i:02d}.png")
    return folder


@pytest.fixture(scope="module", autouse=True)
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("own-data")
    tree(folder / "mine")
    (folder / "fast.py").write_text(FAST)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        yield folder


SHAPE = (
    *TINY,
    f"model.input_size={SIDE}",
    "model.in_channels=3",
    "model.num_classes=3",
    "sample.classes=3",
    "evaluate.reference=held-out",
    "evaluate.extractor=fast:Means",
    "evaluate.num=9",
    "evaluate.seeds=1",
    "evaluate.labels=equal",
    "train.steps=2",
    "checkpoint.every=2",
)
MINE = ("data.name=images", "data.path=mine", f"data.image_size={SIDE}", "data.holdout=0.3")


def run_config(*overrides: str) -> RunConfig:
    return config.load("digits", [*SHAPE, *MINE, *overrides])


@pytest.fixture(scope="module")
def trained(here: Path) -> Path:
    words = ["train", "digits", "--out", "run", *SHAPE, *MINE, "evaluate.every=2", "data.flip=true"]
    assert main(words) == 0
    return here / "run"


# The reference


def test_the_distance_is_that_of_the_features_of_the_held_out_images():
    """On EfficientNet-Lite0; the floor is that of as many training images."""
    run = run_config("evaluate.extractor=efficientnet-lite0", "data.holdout=0.1", "evaluate.metrics=")
    held_out = split(open_source("mine"), 0.1).held_out
    assert len(held_out) == 3
    read = own_images(run, NAMES)
    pixels = read.held_out.read(np.arange(3))
    crops = [np.asarray(Image.open(Path("mine") / name))[2:-2] for name in held_out.names]
    assert np.array_equal(pixels, np.stack(crops))
    # Few training images, so that the test is quick.
    few = replace(read, training=read.training.subset(np.array([0, 1, 9, 10, 18])))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("scaledit.evaluation.judge.own_images", lambda *_: few)
        judge = open_run_judge(run, NAMES)
    samples = np.stack([picture(label, 99)[2:-2] for label in (0, 1, 2)])
    network = EfficientNetFeatures().load()
    expected, real = (
        frechet_distance(*(network(torch.from_numpy(x).permute(0, 3, 1, 2))["pool"].numpy() for x in pair))
        for pair in ((pixels, samples), (pixels, few.training_like_held_out()[0].read(np.arange(3))))
    )
    result = judge.evaluate([InMemory("x", samples, np.arange(3), {})])
    assert result.metrics["fd_efficientnet_lite0"].value == pytest.approx(expected, rel=1e-6)
    assert result.metrics["fd_efficientnet_lite0"].real == pytest.approx(real, rel=1e-6)
    assert "kd_efficientnet_lite0" in result.metrics and "inception_score" not in result.metrics
    assert not {"fid", "precision"} & set(result.metrics)


def test_a_run_states_its_reference_and_training_on_leaves_it_as_it_is(trained: Path, capsys):
    [event] = [event for event in log.read(trained) if event["event"] == "evaluated"]
    protocol = event["protocol"]
    assert protocol["reference"] == "mine, held out" and protocol["reference_n"] == 9
    assert protocol["reference_images"] == "9 of 9 held-out images, not trained on"
    assert protocol["real"] == "9 training images, as in training"
    assert protocol["extractor"] == "means" and protocol["extractor_choice"] == "it was named"
    assert protocol["class_means_n"] == 21
    assert event["nearest_mean_accuracy_real"] == 1.0  # channels make the classes obvious
    assert [one["name"] for one in event["by_class"]] == list(NAMES)
    assert sum(one["samples"] for one in event["by_class"]) == 9
    warnings = " ".join(event["warnings"])
    assert "9 held-out images are no more than the 12 features" in warnings
    assert "not which of two good models is better" in warnings

    copy = trained.with_name("longer")
    shutil.copytree(trained, copy)
    words = ["train", "digits", "--out", str(copy), "--resume", "auto", *SHAPE, *MINE, "evaluate.every=2"]
    assert main([*words, "data.flip=true", "train.steps=4"]) == 0
    hashes = {e["protocol"]["reference_sha256"] for e in log.read(copy) if e["event"] == "evaluated"}
    assert hashes == {protocol["reference_sha256"]}

    capsys.readouterr()
    assert (
        main(["evaluate", "run", "--json", "--num", "6", "--allow-import", "fast"]) == 0
    )  # the run's own reference
    value = json.loads(capsys.readouterr().out)
    assert value["protocol"]["reference_sha256"] == protocol["reference_sha256"]
    assert Result.from_json(value).to_json() == value
    assert "at equal numbers: evaluate.num=9 (--num 9)" in " ".join(value["warnings"])


def test_the_report_shows_classes_and_nearest_training_images(trained: Path):
    page = (trained / "report.html").read_text()
    for text in (
        "real, training",
        "By class",
        "Nearest training images",
        "all 21 training images, also mirror",
    ):
        assert text in page
    assert page.count("a sample of green and its nearest training image") == 2  # sample.per_class


@pytest.mark.parametrize("n", [0, 2, 3, 5])
def test_each_class_has_a_row_of_its_own_whatever_is_held_out(n: int):
    """Beside the names of the rows, a class with few images must not share one with the next class."""
    pictures = np.stack([picture(0, i) for i in range(5)])
    line = images.row(pictures[:n], 3)
    assert len(line) == 3
    assert np.array_equal(line[:n], pictures[: min(n, 3)]) and (line[n:] == 255).all()


@pytest.mark.parametrize(
    ("held_out", "message"),
    [(0, "data.holdout is 0; set a share"), (1, "has 1 held-out image; metrics need at least two")],
)
def test_too_few_held_out_images_are_refused_with_the_fix(held_out: int, message: str, tmp_path: Path):
    for i in range(6):
        (tmp_path / "one").mkdir(exist_ok=True)
        Image.fromarray(picture(0, i)).save(tmp_path / "one" / f"{i}.png")
    run = run_config(f"data.path={tmp_path}", f"data.holdout={held_out * 0.2}")
    with pytest.raises(UsageError, match=message):
        open_run_judge(run, ("one",))


def test_two_held_out_images_are_enough_for_what_can_be_computed(tmp_path: Path):
    folder = tmp_path / "one"
    folder.mkdir()
    for i in range(10):
        Image.fromarray(picture(0, i)).save(folder / f"{i}.png")
    judge = open_run_judge(run_config(f"data.path={tmp_path}", "data.holdout=0.2"), ("one",))
    result = judge.evaluate([InMemory("x", np.stack([picture(0, i)[2:-2] for i in range(9)]), None, {})])
    assert {"fd_means", "kd_means"} <= set(result.metrics) and not {"precision", "coverage"} & set(
        result.metrics
    )
    assert "left out, because they need more than 2 images: precision, recall, density" in " ".join(
        result.warnings
    )
    assert result.by_class == []  # the samples have no classes


def test_references_of_other_sets_are_refused_before_the_first_step(here: Path, capsys):
    words = ["train", "digits", "--out", "wrong", *SHAPE, *MINE, "evaluate.extractor="]
    assert main([*words, "evaluate.reference=digits"]) == 2
    assert main([*words, "evaluate.reference=digits", "data.holdout=0"]) == 2
    first, second = capsys.readouterr().err.splitlines()
    assert "classes (0, 1 and 2, ...) are not those of your data (blue, green and red)" in first
    assert (
        "set evaluate.reference=held-out, or turn evaluation off with evaluate.every=0 evaluate.refer"
        in first
    )
    assert "set evaluate.reference=held-out data.holdout=0.1, or" in second
    assert not (here / "wrong").exists()
    assert main(["evaluate", "mine", "--reference", "held-out"]) == 2
    assert "so pass the run, not samples" in capsys.readouterr().err


# Latents


def test_encode_holds_out_what_it_does_not_encode(here: Path, capsys):
    encode = ["encode", "--image-size", str(SIDE), "--autoencoder", "pixels", "--dtype", "float32"]
    assert main([*encode, "mine", "--out", "latents", "--holdout", "0.3"]) == 0
    assert "stored 9 held-out images as pixels" in capsys.readouterr().out
    halves = split(open_source("mine"), 0.3)
    for name in halves.training.names:
        (here / "rest" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(here / "mine" / name, here / "rest" / name)
    assert main([*encode, "rest", "--out", "of-rest"]) == 0
    for file in ("000000.safetensors", "index.json", "request.json"):
        assert (here / "latents" / file).read_bytes() == (here / "of-rest" / file).read_bytes()

    run = run_config("data.name=latents", "data.path=latents", "data.image_size=0", "data.holdout=0")
    latents = assemble.dataset(run.data)
    assert isinstance(latents, Latents)
    from scaledit.autoencoders import open_autoencoder

    decoder = Decoder("pixels", autoencoder_info(open_autoencoder("pixels")))
    own = own_images(run, NAMES, decoder)
    direct = own_images(run_config(), NAMES)
    for ours, theirs in ((own.held_out, direct.held_out), (own.training, direct.training)):
        assert np.array_equal(ours.labels, theirs.labels)
        assert np.array_equal(ours.read(np.arange(len(ours))), theirs.read(np.arange(len(theirs))))
    assert own.training_made == "decoded from their latents"

    before = (here / "latents" / ARRAYS).stat().st_mtime_ns
    assert main([*encode, "mine", "--out", "latents", "--holdout", "0.3"]) == 0
    assert (here / "latents" / ARRAYS).stat().st_mtime_ns == before
    with pytest.raises(UsageError, match=r"encoded without --holdout: encode the images again"):
        own_images(replace(run, data=replace(run.data, path="of-rest")), NAMES, decoder)
    data = bytearray((here / "latents" / ARRAYS).read_bytes())
    data[400] ^= 1
    (here / "latents" / ARRAYS).write_bytes(data)
    with pytest.raises(RunError, match=r"held-out.npz does not match its SHA-256; run scaledit encode again"):
        own_images(run, NAMES, decoder)
    assert main([*encode, "mine", "--out", "latents", "--holdout", "0.3"]) == 0  # makes it again
    own_images(run, NAMES, decoder)
    (here / "latents" / RECORD).write_text("{}")
    with pytest.raises(RunError, match=r"held-out\.json"):
        HeldOut.read(here / "latents")
    assert main(["encode", "photos", "--autoencoder", "pixels", "--out", "x", "--holdout", "0.1"]) == 2
    assert "photos has held-out images of its own" in capsys.readouterr().err


def test_a_cap_is_even_over_the_classes_and_nested():
    labels = np.repeat([0, 1, 2], [50, 3, 20])
    few, more = evenly(labels, 9), evenly(labels, 30)
    assert np.bincount(labels[few]).tolist() == [3, 3, 3] and set(few) <= set(more)
    assert np.bincount(labels[more]).tolist() == [14, 3, 13]
    assert sorted(class_ranks(labels)[labels == 2]) == list(range(20))


# A reference of photographs


def test_a_reference_is_resized_and_cropped_as_for_training(here: Path, capsys):
    words = ["reference", "mine", "--image-size", str(SIDE), "--holdout", "0.3", "--extractor", "fast:Means"]
    assert main([*words, "--out", "ref.npz"]) == 0
    assert "statistics of 9 images on means" in capsys.readouterr().out
    stored, own = np.load("ref.npz")["pool"], own_images(run_config(), NAMES)
    pixels = torch.from_numpy(own.held_out.read(np.arange(9))).permute(0, 3, 1, 2).float()
    expected = torch.nn.functional.adaptive_avg_pool2d(pixels, 2).flatten(1)
    assert np.allclose(stored, expected)
    assert main(["reference", "mine", "--out", "x.npz", "--holdout", "0.3"]) == 2
    assert "--holdout needs --image-size S" in capsys.readouterr().err


# Extractors


def test_the_extractor_is_the_best_at_hand_and_says_why(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv(inception.VARIABLE, raising=False)
    monkeypatch.setattr(inception, "is_found", lambda: True)
    assert choose(EvaluateConfig()).extractor.NAME == "inception"
    assert choose(EvaluateConfig(), "efficientnet-lite0").extractor.NAME == "efficientnet-lite0"
    monkeypatch.setattr(inception, "is_found", lambda: False)
    chosen = choose(EvaluateConfig())
    assert chosen.extractor.NAME == "efficientnet-lite0" and "there is no FID" in chosen.remarks[0]
    assert choose(EvaluateConfig(), "inception-2015-12-05").extractor.NAME == "inception"
    assert choose(EvaluateConfig(dinov2="x")).extractor.NAME == "dinov2"
    monkeypatch.setattr(efficientnet, "weights_file", lambda: None)
    twin = choose(EvaluateConfig())
    assert twin.extractor.NAME == "efficientnet-lite0-random" and twin.remarks[0] == NO_VERDICT
    assert choose(EvaluateConfig(extractor="efficientnet-lite0-random")).remarks == [NO_VERDICT]
    with pytest.raises(UsageError, match=r"evaluate.extractor: .*did you mean 'inception'"):
        choose(EvaluateConfig(extractor="incepton"))
    with pytest.raises(UsageError, match="weights of dinov2 were named; leave one out"):
        choose(EvaluateConfig(extractor="inception", dinov2="x"))
    assert not is_conclusive({"extractor": "efficientnet-lite0-random"})
    assert is_conclusive({"extractor": ["photos", "photos-random"]}) and is_conclusive({})


# Classes


def test_accuracy_by_class_on_constructed_features():
    means = class_means(np.array([[0.0, 0], [2, 0], [10, 10]]), np.array([0, 0, 2]), 3)
    assert means[0].tolist() == [1, 0] and np.isnan(means[1]).all()
    pool = np.array([[1.5, 0], [9, 9], [0, 0], [5, 5]])
    assert nearest_mean(pool, means).tolist() == [0, 2, 0, 0]
    rows = by_class(
        ("a", "b", "c"), means, (pool, np.array([0, 2, 0, 2])), [(pool[:2], np.array([0, 0]))] * 2
    )
    assert [tuple(row) for row in rows] == [
        ("a", 2, 1.0, 4, 0.5),
        ("b", 0, None, 0, None),
        ("c", 2, 0.5, 0, None),
    ]
    table = class_table(rows, 1)
    assert table.rows == [["a", "2", "1", "4", "0.5"]] and "1 classes" in table.left_out[0]


# Nearest training images


def test_copies_are_found_and_new_images_are_not():
    rng = np.random.default_rng(0)
    training, held_out, new = (rng.integers(0, 256, (n, 40, 48, 3), np.uint8) for n in (12, 6, 4))

    def all_of(x: np.ndarray) -> Readable:
        return Readable("x", np.zeros(len(x), np.int64), lambda numbers: x[numbers])

    own = OwnImages("x", ("a",), all_of(held_out), 6, all_of(training), "as in training", flip=True)
    images = TrainingImages.of(own)
    copies = np.stack([training[7], training[3][:, ::-1], new[0]])
    found = images.nearest(copies)
    assert found.number[:2].tolist() == [7, 3] and found.mirrored[:2].tolist() == [False, True]
    assert found.distance[:2].tolist() == [0, 0] and found.distance[2] > 10
    assert np.array_equal(images.shown(found)[:2], copies[:2])
    far = images.nearest(held_out).distance
    assert nearest.share_nearer(found.distance[:2], far) == 1.0
    straight = replace(images, flip=False).nearest(copies)
    assert straight.distance[0] == 0 and straight.distance[1] > 10
    assert nearest.reduced(training).shape == (12, 3 * 32 * 32)
    black, white = np.zeros((1, 8, 8, 3), np.uint8), np.full((1, 8, 8, 3), 255, np.uint8)
    distance = TrainingImages.of(replace(own, training=all_of(black), flip=False)).nearest(white).distance
    assert distance.tolist() == [255.0]
