"""Caches of encoded images: what training reads, how they are made, and that damage is always detected."""

from __future__ import annotations

import json
import os
import random
import resource
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from pictures import CLASSES, LABELS, LAYOUTS, N, tree
from processes import At, Gate, scaledit
from scaledit import load
from scaledit.autoencoders import open_autoencoder
from scaledit.autoencoders.cache import Encoding, encode
from scaledit.autoencoders.config import AutoencoderConfig
from scaledit.autoencoders.encoded import EncodedImages
from scaledit.autoencoders.pixels import Pixels
from scaledit.cli import main
from scaledit.data.files import ImageFiles
from scaledit.data.latents import INDEX, Latents
from scaledit.data.sources import open_source
from scaledit.errors import RunError, UsageError
from scaledit.files.manifest import sealed
from scaledit.training.autoencoder_state import build
from scaledit.training.dit import train
from scaledit.training.events import Stepped
from tiny import TINY, tiny

SIDE = 32
SCALE = 0.7
LATENT = ("model.in_channels=4", "model.input_size=8", "model.num_classes=3")
SMALL = ("model.in_channels=3", f"model.input_size={SIDE}", "model.num_classes=3", "train.steps=2")


class Gaussian(Pixels):
    """Moments by a formula: the mean is half the image, the log variance -4."""

    def encode(self, images: Tensor) -> Tensor:
        return torch.cat([images / 2, torch.full_like(images, -4.0)], dim=1)


GAUSSIAN = Gaussian(name="gaussian", scale=SCALE, sha256="a" * 64, encoder_sha256="b" * 64)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tree(tmp_path_factory.mktemp("images") / "tree")


@pytest.fixture(scope="module")
def autoencoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random f4 autoencoder with four channels, as diffusers saves it."""
    return saved_autoencoder(tmp_path_factory.mktemp("autoencoder") / "random", seed=0)


def saved_autoencoder(path: Path, seed: int) -> Path:
    net = build(AutoencoderConfig(widths=(8, 8, 8)), SIDE, seed=seed)
    net.register_to_config(scaling_factor=SCALE)
    net.save_pretrained(path)
    return path


def files(images: Path, side: int = SIDE, flip: bool = False) -> ImageFiles:
    return ImageFiles(open_source(images), side, flip)


@pytest.fixture
def cache(images: Path, tmp_path: Path) -> Path:
    """Five images per file: 5, 5, 2."""
    encoded = encode(files(images), GAUSSIAN, tmp_path / "cache", Encoding(per_file=5, dtype="float32"))
    assert encoded.complete
    return encoded.out


# What training reads


def test_latents_are_drawn_from_the_posterior_and_scaled(cache: Path, images: Path):
    latents = Latents.open(cache, flip=False)
    assert (len(latents), latents.shape, latents.class_names) == (N, (3, SIDE, SIDE), CLASSES)
    indices = np.array([9, 0, 5, 4, 6])
    x0, y = latents.batch(indices, range(100, 105), seed=3)
    assert y.tolist() == [sorted(LABELS)[i] for i in indices]
    pixels = files(images).batch(indices, range(5), seed=0).x0
    drawn = x0 / SCALE - pixels / 2
    assert drawn.std().item() == pytest.approx(np.exp(-2), rel=0.02)
    assert drawn.mean().item() == pytest.approx(0, abs=0.01)
    again, _ = latents.batch(indices[2:3], range(102, 103), seed=3)  # another batch, same position
    assert torch.equal(again[0], x0[2])
    later, _ = latents.batch(indices[2:3], range(202, 203), seed=3)  # drawn again when seen again
    assert not torch.equal(later[0], x0[2])


def test_from_the_cache_as_from_the_images(cache: Path, images: Path):
    """Flips and random numbers are equal; the moments are stored in float32 here."""
    cached = Latents.open(cache, flip=True)
    fly = EncodedImages(files(images, flip=True), GAUSSIAN)
    assert (fly.shape, fly.class_names, len(fly)) == (cached.shape, cached.class_names, len(cached))
    indices = np.arange(40) % N
    a, b = (dataset.batch(indices, range(1000, 1040), seed=5) for dataset in (cached, fly))
    assert torch.equal(a.x0, b.x0)
    assert torch.equal(a.y, b.y)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_is_read_back(dtype: str, images: Path, tmp_path: Path):
    encode(files(images), GAUSSIAN, tmp_path / "half", Encoding(dtype=dtype))
    moments = Latents.open(tmp_path / "half", flip=False).moments([3, 11], [False, True])
    pixels = files(images).batch(np.array([3, 11]), range(2), seed=0).x0
    expected = torch.cat([pixels / 2, torch.full_like(pixels, -4.0)], 1)
    expected[1] = expected[1].flip(-1)
    assert torch.equal(moments, expected.to(getattr(torch, dtype)))


def test_index_tells_what_is_inside(cache: Path, images: Path):
    index = Latents.open(cache, flip=True).index
    x = files(images).batch(np.arange(N), range(N), seed=0).x0.double() / 2
    assert index.counts == (4, 4, 4)
    assert [shard.images for shard in index.shards] == [5, 5, 2]
    assert index.mean == pytest.approx(x.mean(dim=(0, 2, 3)).tolist(), abs=1e-7)
    spread = x.var(dim=(0, 2, 3), correction=0) + np.exp(-4)
    assert index.std == pytest.approx(spread.sqrt().tolist(), rel=1e-6)
    assert index.autoencoder.scale == SCALE
    assert index.image_size == (SIDE, SIDE)


# Encoding


def contents(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir() if p.is_file()}


def command(images: Path, autoencoder: Path | str, out: Path, *more: str) -> list[str]:
    where = ["encode", str(images), "--autoencoder", str(autoencoder), "--out", str(out)]
    return [*where, "--image-size", str(SIDE), "--per-file", "2", "--batch-size", "2", *more]


def test_two_shards_make_what_one_process_makes(images: Path, autoencoder: Path, tmp_path: Path):
    assert main(command(images, autoencoder, tmp_path / "one")) == 0
    shards = [command(images, autoencoder, tmp_path / "two", "--shard", f"{i}/2") for i in (1, 0)]
    both = [scaledit(*words, beside=tmp_path / "two") for words in shards]
    assert [process.wait() for process in both] == [0, 0], both[0].said()
    assert contents(tmp_path / "two") == contents(tmp_path / "one")
    assert len(contents(tmp_path / "one")) == N // 2 + 2


def test_killed_and_run_again_it_makes_the_same(images: Path, autoencoder: Path, tmp_path: Path):
    assert main(command(images, autoencoder, tmp_path / "one")) == 0
    out = tmp_path / "killed"
    # Killed when `there` files exist: before the next file or its record is renamed.
    for there, point in ((1, "000001.safetensors"), (4, "000003.json")):
        gate = Gate(tmp_path / f"gate-{there}")
        before = At("os:replace", gate, argument=f"*/{point}")
        running = scaledit(*command(images, autoencoder, out), beside=out, before=before)
        gate.reached(running)
        running.kill()
        assert len(list(out.glob("0*.safetensors"))) == there
        assert list(out.rglob(f".{point}.*"))
        assert not (out / INDEX).exists()
        with pytest.raises(UsageError, match="contains no encoded images"):
            Latents.open(out, flip=False)
    before = {p: p.stat().st_mtime_ns for p in (out / "parts").glob("0*.json")}
    assert main(command(images, autoencoder, out)) == 0
    assert all(p.stat().st_mtime_ns == when for p, when in before.items())  # existing files are kept
    named = contents(out)
    assert {k: v for k, v in named.items() if not k.startswith(".")} == contents(tmp_path / "one")
    after = {p: p.stat().st_mtime_ns for p in out.iterdir()}
    assert main(command(images, autoencoder, out)) == 0  # nothing to do
    assert {p: p.stat().st_mtime_ns for p in out.iterdir()} == after


@pytest.mark.parametrize("layout", ["tar shards", "parquet"])
def test_other_layouts_give_the_same_latents(layout: str, images: Path, autoencoder: Path, tmp_path: Path):
    assert main(command(images, autoencoder, tmp_path / "tree")) == 0
    assert main(command(LAYOUTS[layout](tmp_path), autoencoder, tmp_path / "other")) == 0
    from_tree, other = contents(tmp_path / "tree"), contents(tmp_path / "other")
    shards = [name for name in from_tree if name.endswith(".safetensors")]
    assert len(shards) == N // 2
    assert all(from_tree[name] == other[name] for name in shards)


def test_bad_images_stop_it_or_are_left_out(images: Path, tmp_path: Path, capsys):
    folder = tree(tmp_path / "tree")
    for name in ("001", "007"):
        path = folder / "chelsea" / f"{name}.jpg"
        path.write_bytes(path.read_bytes()[:300])
    out = tmp_path / "out"
    assert main(command(folder, "pixels", out)) == 1
    assert "chelsea/001.jpg is cut short" in capsys.readouterr().err
    assert not (out / INDEX).exists()
    skipping = ["--on-bad", "skip", "--max-bad"]
    assert main(command(folder, "pixels", tmp_path / "capped", *skipping, "1")) == 1
    assert "chelsea/007.jpg is cut short" in capsys.readouterr().err
    capsys.readouterr()
    assert main(command(folder, "pixels", tmp_path / "skipped", *skipping, "2", "--json")) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["images"], len(report["skipped"])) == (N - 2, 2)
    index = Latents.open(tmp_path / "skipped", flip=False).index
    assert index.counts == (4, 2, 4)
    assert [name.split()[0] for name in index.skipped] == ["chelsea/001.jpg", "chelsea/007.jpg"]


def test_another_request_does_not_mix_with_existing_files(images: Path, tmp_path: Path, capsys):
    out = tmp_path / "out"
    assert main(command(images, "pixels", out)) == 0
    for more, says in (
        (["--no-flip"], "flip: True -> False"),
        (["--dtype", "float32"], "dtype"),
        (["--image-size", "16"], "image_size"),
    ):
        assert main(command(images, "pixels", out, *more)) == 2
        assert says in capsys.readouterr().err
    assert main(command(images, "pixels", tmp_path / "x", "--image-size", "0")) == 2
    assert main(command(images, "nowhere", tmp_path / "x")) == 2
    assert main(command(tmp_path / "nowhere", "pixels", tmp_path / "x")) == 2
    assert main(command(Path("photos"), "pixels", tmp_path / "x")) == 2
    assert "the images of photos have 64x64 pixels; leave --image-size out" in capsys.readouterr().err


def test_images_that_do_not_fit_the_autoencoder(images: Path, autoencoder: Path, tmp_path: Path, capsys):
    assert main(command(images, autoencoder, tmp_path / "x", "--image-size", "30")) == 2
    assert "encodes multiples of 4 pixels; the images are 30x30" in capsys.readouterr().err
    assert not (tmp_path / "x").exists()


def test_a_full_disk_leaves_no_file_that_looks_whole(images: Path, tmp_path: Path):
    """Files may have 20 kB here, but a shard has 49 kB, so writing fails as on a full disk."""
    out = tmp_path / "full"

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))

    code = (
        "import signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); "
        "from scaledit.cli import main; sys.exit(main(sys.argv[1:]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *command(images, "pixels", out)],
        preexec_fn=limit,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1, done.stderr
    assert "could not write" in done.stderr
    assert not list(out.glob("*.safetensors")) and not (out / INDEX).exists()
    assert main(command(images, "pixels", out)) == 0
    list(Latents.open(out, flip=True).verify())


# Damage


def flipped_byte(path: Path, at: int, value: int) -> bytes:
    data = bytearray(path.read_bytes())
    before = bytes(data)
    data[at] ^= value
    path.write_bytes(data)
    return before


def test_every_flipped_byte_is_detected(cache: Path):
    """200 flipped bytes anywhere in the shards and the index; a fifth of them in headers and labels."""
    rng = random.Random(0)
    paths = [*sorted(cache.glob("*.safetensors")), cache / INDEX]
    for i in range(200):
        path = rng.choice(paths)
        size = path.stat().st_size
        at = rng.randrange(min(size, 400)) if i % 5 == 0 else rng.randrange(size)
        before = flipped_byte(path, at, rng.randrange(1, 256))
        with pytest.raises((RunError, UsageError), match=path.name):
            list(Latents.open(cache, flip=True).verify())
        path.write_bytes(before)
    list(Latents.open(cache, flip=True).verify())


def test_every_truncated_shard_is_named_without_reading_it(cache: Path, capsys):
    for path in sorted(cache.glob("*.safetensors")):
        whole = path.read_bytes()
        for keep in (0, 7, 100, len(whole) - 1):
            path.write_bytes(whole[:keep])
            with pytest.raises(RunError, match=f"{path.name} has {keep} bytes"):
                Latents.open(cache, flip=True)
            assert main(["data", "inspect", str(cache)]) == 1
            assert f"{path.name} has {keep} bytes" in capsys.readouterr().out
        path.unlink()
        with pytest.raises(RunError, match=f"{path.name} is missing"):
            Latents.open(cache, flip=True)
        path.write_bytes(whole)


def test_repair_encodes_what_is_damaged_and_only_that(images: Path, tmp_path: Path, capsys):
    out = tmp_path / "out"
    assert main(command(images, "pixels", out)) == 0
    whole = contents(out)
    flipped_byte(out / "000001.safetensors", 5000, 1)
    (out / "000003.safetensors").write_bytes(b"")
    (out / "000004.safetensors").unlink()
    untouched = {k: (out / f"00000{k}.safetensors").stat().st_mtime_ns for k in (0, 2, 5)}
    capsys.readouterr()
    assert main(["data", "inspect", str(out), "--json"]) == 1
    assert len(json.loads(capsys.readouterr().out)["refused"]) == 3
    assert main(command(images, "pixels", out, "--repair")) == 0
    assert contents(out) == whole
    assert {k: (out / f"00000{k}.safetensors").stat().st_mtime_ns for k in untouched} == untouched
    flipped_byte(out / INDEX, 30, 1)
    assert main(command(images, "pixels", out, "--repair")) == 0
    assert contents(out) == whole


def edited(path: Path, change: Callable[[dict], None], seal: bool) -> None:
    """Changes a record or an index by hand, and seals it again or not."""
    value = json.loads(path.read_text())
    value.pop("sha256", None)
    change(value)
    path.write_bytes(sealed(value) if seal else json.dumps(value).encode())


def miscounted(record: dict) -> None:
    record["counts"] = record["counts"][::-1]
    record["sums"][0][1] += 1000.0


@pytest.mark.parametrize("seal", [False, True])
def test_records_are_trusted_only_if_sealed_and_right(seal: bool, images: Path, tmp_path: Path, capsys):
    """Records of the first versions were not sealed: they are computed again, but not the files."""
    one, out = tmp_path / "one", tmp_path / "out"
    assert main(command(images, "pixels", one)) == 0
    assert main(command(images, "pixels", out, "--shard", "0/2")) == 0
    edited(out / "parts" / "000000.json", miscounted, seal)
    edited(out / "parts" / "000002.json", lambda record: None, seal=False)
    mtime = (out / "000000.safetensors").stat().st_mtime_ns
    capsys.readouterr()
    if (
        seal
    ):  # a sealed wrong record is noticed before the index is written, because it contradicts the labels
        assert main(command(images, "pixels", out)) == 1
        assert "000000.safetensors" in (said := capsys.readouterr().err) and "--repair" in said
        assert not (out / INDEX).exists()
        assert main(command(images, "pixels", out, "--repair")) == 0
    else:
        assert main(command(images, "pixels", out)) == 0
    assert "counted again" in capsys.readouterr().out or seal
    assert contents(out) == contents(one)
    assert (out / "000000.safetensors").stat().st_mtime_ns == mtime
    assert {p.name: p.read_bytes() for p in (out / "parts").iterdir()} == {
        p.name: p.read_bytes() for p in (one / "parts").iterdir()
    }


def test_a_record_of_another_file_is_not_trusted(images: Path, tmp_path: Path):
    """A file that changed beside an unsealed record is encoded again."""
    one, out = tmp_path / "one", tmp_path / "out"
    assert main(command(images, "pixels", one)) == 0
    assert main(command(images, "pixels", out, "--shard", "0/2")) == 0
    flipped_byte(out / "000002.safetensors", 5000, 1)
    edited(out / "parts" / "000002.json", lambda record: None, seal=False)
    assert main(command(images, "pixels", out)) == 0
    assert contents(out) == contents(one)


def test_repair_finds_a_wrong_index(images: Path, tmp_path: Path, capsys):
    """The index is sealed, so only --repair notices wrong counts, mean, std, class names or hashes."""
    out = tmp_path / "out"
    assert main(command(images, "pixels", out)) == 0
    right = contents(out)

    def swap(key: str) -> Callable[[dict], None]:
        return lambda index: index.update({key: index[key][::-1]})

    def count(index: dict) -> None:
        index["counts"] = [3, 5, 4]

    def other_file(index: dict) -> None:
        index["shards"][0]["sha256"] = index["shards"][1]["sha256"]

    for change in (count, swap("mean"), swap("std"), swap("class_names"), other_file):
        edited(out / INDEX, change, seal=True)
        assert contents(out) != right
        capsys.readouterr()
        assert main(command(images, "pixels", out, "--repair")) == 0
        assert f"{INDEX} was wrong" in capsys.readouterr().out
        assert contents(out) == right
    # The same with records that contradict their files.
    edited(out / "parts" / "000001.json", miscounted, seal=True)
    edited(out / "parts" / "000002.json", lambda record: record["file"].update(sha256="0" * 64), seal=True)
    edited(out / "parts" / "000003.json", lambda record: record["file"].update(sha256=[]), seal=True)
    (out / INDEX).unlink()
    assert main(command(images, "pixels", out, "--repair")) == 0
    assert contents(out) == right
    capsys.readouterr()
    assert main(command(images, "pixels", out, "--repair")) == 0
    assert "again" not in capsys.readouterr().out


NONSENSE = {
    "negative counts": lambda index: index.update(counts=[-1, 9, 4]),
    "other counts": lambda index: index.update(counts=[4, 4, 5]),
    "words for counts": lambda index: index.update(counts=["4", "4", "4"]),
    "a shape": lambda index: index.update(shape=[6, SIDE, 16]),
    "a huge shape": lambda index: index.update(shape=[6, 10**9, 10**9], image_size=[10**9, 10**9]),
    "no shape": lambda index: index.pop("shape"),
    "a number for shards": lambda index: index.update(shards=3),
    "no shards": lambda index: index.update(shards=[], counts=[0, 0, 0]),
    "a path": lambda index: index["shards"][0].update(file="../../etc/passwd"),
    "an absolute path": lambda index: index["shards"][0].update(file="/etc/passwd"),
    "a shard twice": lambda index: index["shards"][1].update(index["shards"][0]),
    "negative images": lambda index: index["shards"][0].update(images=-5),
    "more images than bytes": lambda index: index["shards"][0].update(images=10**12),
    "a mean too few": lambda index: index["mean"].pop(),
    "infinite": lambda index: index.update(std=[1e999, 1.0, 1.0]),
    "no scale": lambda index: index["autoencoder"].pop("scale"),
    "zero scale": lambda index: index["autoencoder"].update(scale=0),
    "another key": lambda index: index.update(more=1),
    "a type": lambda index: index.update(dtype="float8"),
    "null": lambda index: index.update(class_names=None),
    "nested": lambda index: index.update(skipped=[["x"]]),
}


@pytest.mark.parametrize("what", NONSENSE)
def test_a_sealed_index_of_nonsense_is_one_sentence(what: str, cache: Path, capsys):
    edited(cache / INDEX, NONSENSE[what], seal=True)
    with pytest.raises(
        RunError, match=r"index.json cannot be read as an index of encoded images: .*--repair"
    ):
        Latents.open(cache, flip=False)
    assert main(["data", "inspect", str(cache)]) == 1
    assert capsys.readouterr().err.count("\n") == 1


def test_repair_with_changed_images_is_refused(tmp_path: Path, capsys):
    folder, out = tree(tmp_path / "tree"), tmp_path / "out"
    assert main(command(folder, "pixels", out)) == 0
    (out / "000000.safetensors").unlink()
    first = sorted((folder / "bark").iterdir())[0]
    first.write_bytes(sorted((folder / "sky").iterdir())[0].read_bytes())
    assert main(command(folder, "pixels", out, "--repair")) == 1
    assert "would not be encoded as before" in capsys.readouterr().err


def test_training_does_not_start_on_damage(cache: Path, tmp_path: Path):
    flipped_byte(cache / "000001.safetensors", 5000, 1)
    config = tiny("data.name=latents", f"data.path={cache}", *SMALL)
    with pytest.raises(RunError, match=r"000001.safetensors does not match its SHA-256.*--repair"):
        list(train(config, tmp_path / "run", device="cpu"))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("shape", [6]),
        ("counts", [12, 0]),
        ("counts", [4, 4, 5]),
        ("mean", [None, 0.0, 0.0]),
        ("autoencoder", {"name": "x"}),
        ("shards", [{"file": "../../else.safetensors", "images": 12, "size": 9, "sha256": ""}]),
        ("class_names", "abc"),
        ("unknown", 1),
    ],
)
def test_an_index_that_cannot_be_meant_is_refused(key: str, value: object, cache: Path):
    """Its hash is right, but another program wrote it."""
    index = json.loads((cache / INDEX).read_bytes())
    del index["sha256"]
    (cache / INDEX).write_bytes(sealed({**index, key: value}))
    with pytest.raises(
        RunError, match=r"index\.json cannot be read as an index of encoded images: .*--repair"
    ):
        Latents.open(cache, flip=False)


# From images to samples


def losses(config) -> list[float]:
    return [
        event.loss for event in train(config, Path(config.name), device="cpu") if isinstance(event, Stepped)
    ]


def test_the_same_loss_from_the_cache_and_from_images(images: Path, autoencoder: Path, tmp_path: Path):
    """With the same seed; the cache rounds moments to float16."""
    out = tmp_path / "cache"
    assert main(command(images, autoencoder, out)) == 0
    shape = [
        "model.in_channels=4",
        "model.input_size=8",
        "model.num_classes=3",
        "train.steps=6",
        "data.flip=true",
    ]
    cached = tiny(*shape, "data.name=latents", f"data.path={out}")
    fly = tiny(
        *shape,
        "data.name=images",
        f"data.path={images}",
        f"data.image_size={SIDE}",
        f"autoencoder.path={autoencoder}",
    )
    ours, theirs = (losses(replace(c, name=str(tmp_path / n))) for c, n in ((cached, "a"), (fly, "b")))
    assert len(ours) == 6
    assert ours == pytest.approx(theirs, rel=2**-8)  # bfloat16's rounding
    assert ours == pytest.approx(theirs, rel=1e-3)


@pytest.mark.parametrize("where", ["cache", "images"])
def test_from_a_folder_to_decoded_samples(
    where: str, images: Path, autoencoder: Path, tmp_path: Path, capsys
):
    """The README's example: inspect, encode, train, sample, decode; classes by their names."""
    assert main(["data", "inspect", str(images), "--image-size", str(SIDE)]) == 0
    out, run = tmp_path / "latents", tmp_path / "run"
    if where == "cache":
        assert main(command(images, autoencoder, out)) == 0
        data = ["data.name=latents", f"data.path={out}"]
    else:
        data = ["data.name=images", f"data.path={images}", f"data.image_size={SIDE}"]
        data.append(f"autoencoder.path={autoencoder}")
    shape = [*LATENT, "train.steps=10"]
    few = ["sample.every=5", "sample.classes=2", "evaluate.reference="]
    assert main(["train", "digits", "--out", str(run), *TINY, *data, *shape, *few]) == 0
    assert (run / "samples" / "step-00000005.png").is_file()
    assert (run / "report.html").is_file()
    file = tmp_path / "s.npz"
    assert main(["sample", str(run), "--classes", "chelsea,0", "--num", "4", "--out", str(file)]) == 0
    made = np.load(file)
    assert made["arr_0"].shape == (4, SIDE, SIDE, 3)
    assert made["arr_1"].tolist() == [1, 0, 1, 0]
    pipeline = load(run)
    x = pipeline.latents([1, 0, 1, 0], pipeline.settings())
    opened = open_autoencoder(str(autoencoder))
    by_hand = (127.5 * opened.decode(x) + 128).clamp(0, 255).byte().permute(0, 2, 3, 1)
    np.testing.assert_array_equal(made["arr_0"], by_hand.numpy())
    assert opened.sha256[:16] in json.loads(str(made["origin"]))["decoder"]
    capsys.readouterr()
    # Another decoder of the same encoder is taken; another autoencoder is not.
    swapped = saved_with_other_decoder(autoencoder, tmp_path / "swapped")
    again = ["sample", str(run), "--classes", "chelsea,0", "--num", "4", "--out", str(tmp_path / "t.npz")]
    assert main([*again, "--decoder", str(swapped)]) == 0
    assert not np.array_equal(np.load(tmp_path / "t.npz")["arr_0"], made["arr_0"])
    assert main([*again, "--decoder-precision", "bf16", "--tiled"]) == 0
    rough = np.load(tmp_path / "t.npz")["arr_0"].astype(int) - made["arr_0"]
    assert 0 < np.abs(rough).max() <= 16
    other = saved_autoencoder(tmp_path / "other", seed=1)
    assert main([*again, "--decoder", str(other)]) == 2
    assert "has a different encoder from" in capsys.readouterr().err


def saved_with_other_decoder(autoencoder: Path, path: Path) -> Path:
    from scaledit.autoencoders import kl

    net = kl.diffusers_class().from_pretrained(autoencoder)
    with torch.no_grad():
        net.decoder.conv_out.weight.mul_(-1)
    net.save_pretrained(path)
    return path


def test_a_run_refuses_another_autoencoders_latents(images: Path, tmp_path: Path, capsys):
    first, second = (saved_autoencoder(tmp_path / f"ae{seed}", seed=seed) for seed in (0, 1))
    for i, path in enumerate((first, second)):
        assert main(command(images, path, tmp_path / f"cache{i}")) == 0
    shape = [*LATENT, "checkpoint.every=2"]
    run = ["train", "digits", "--out", str(tmp_path / "run"), "--resume", "auto", *TINY, *shape]
    run += ["data.name=latents", "evaluate.reference="]
    assert main([*run, f"data.path={tmp_path / 'cache0'}", "train.steps=2"]) == 0
    capsys.readouterr()
    assert main([*run, f"data.path={tmp_path / 'cache1'}", "train.steps=4"]) == 2
    assert "a different encoder; choose another --out" in capsys.readouterr().err
    assert main([*run, f"data.path={tmp_path / 'cache0'}", "train.steps=4"]) == 0
    # And an autoencoder that is not the cache's is refused before the first step.
    fresh = [word if word != str(tmp_path / "run") else str(tmp_path / "fresh") for word in run]
    wrong = [
        f"data.path={tmp_path / 'cache0'}",
        f"autoencoder.path={second}",
        "sample.every=1",
        "train.steps=2",
    ]
    assert main([*fresh, *wrong]) == 2
    assert "has a different encoder from" in capsys.readouterr().err
    assert not (tmp_path / "fresh").exists()


def test_pictures_of_latents_whose_autoencoder_is_gone(images: Path, tmp_path: Path, capsys):
    path = saved_autoencoder(tmp_path / "ae", seed=0)
    assert main(command(images, path, tmp_path / "cache")) == 0
    os.rename(path, tmp_path / "elsewhere")
    shape = [*LATENT, "train.steps=2"]
    run = ["train", "digits", *TINY, *shape, "data.name=latents", f"data.path={tmp_path / 'cache'}"]
    run += ["evaluate.reference=", "--out", str(tmp_path / "run"), "sample.every=1"]
    assert main(run) == 2
    assert "sample.every=0 evaluate.every=0" in capsys.readouterr().err
    assert main([*run, f"autoencoder.path={tmp_path / 'elsewhere'}"]) == 0


READ = ["data.name=images", "data.path=IMAGES"]


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["data.name=latents"], "data.path=FOLDER"),
        (["data.name=images"], "data.path=PATH"),
        (READ, "data.image_size=256"),
        (["data.name=latents", "data.path=IMAGES"], "contains no encoded images"),
        (
            ["data.name=images", "data.path=IMAGES", "data.image_size=8"],
            "set model.in_channels|model accepts 1x8x8",
        ),
        (
            [
                "data.name=images",
                "data.path=IMAGES",
                "data.image_size=8",
                "model.in_channels=3",
                "model.num_classes=2",
            ],
            "the data has 3 classes, but the model has 2",
        ),
    ],
)
def test_data_that_does_not_fit_the_model(overrides: list[str], says: str, images: Path, tmp_path: Path):
    overrides = [word.replace("IMAGES", str(images)) for word in overrides]
    with pytest.raises(UsageError, match=says):
        list(train(tiny(*overrides), tmp_path / "run", device="cpu"))
    assert not (tmp_path / "run").exists()
