"""Encodings that grow: images are added, replaced and removed, and the cache always equals a fresh one."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from torch import Tensor

from pictures import encoded, tree
from scaledit.autoencoders.cache import Encoding, encode
from scaledit.autoencoders.pixels import Pixels
from scaledit.cli import main
from scaledit.data.files import ImageFiles
from scaledit.data.latents import INDEX, Latents
from scaledit.data.sources import open_source
from scaledit.errors import RunError, UsageError
from scaledit.files.manifest import sealed
from scaledit.files.shards import ALL, Shard
from scaledit.training.dit import train
from tiny import tiny

SIDE = 16


class Counting(Pixels):
    """Pixels that count the images that they encode."""

    def encode(self, images: Tensor) -> Tensor:
        encodings.append(len(images))
        return torch.cat([images / 2, torch.full_like(images, -4.0)], dim=1)


encodings: list[int] = []
COUNTING = Counting(name="counting", scale=1.0, sha256="a" * 64, encoder_sha256="b" * 64)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return tree(tmp_path / "tree")


def put(folder: Path, name: str, i: int) -> None:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(encoded(i)[1])


def grow(images: Path, out: Path, shard: Shard = ALL, update: bool = False, on_bad="stop", **kwargs) -> int:
    """Encodes and returns how many images were encoded (each twice: mirrored, too)."""
    encodings.clear()
    encoding = Encoding(per_file=5, dtype="float32", on_bad=on_bad, batch_size=4)
    encode(ImageFiles(open_source(images), SIDE), COUNTING, out, encoding, shard, update=update, **kwargs)
    return sum(encodings) // 2


def by_image(out: Path) -> set[tuple[str, bytes]]:
    """(class, moments and mirrored moments) of every image, in no order."""
    list(Latents.open(out, flip=True).verify())
    latents = Latents.open(out, flip=True)
    every = range(len(latents))
    both = [latents.moments(every, [flip] * len(latents)) for flip in (False, True)]
    return {
        (latents.class_names[label], a.numpy().tobytes() + b.numpy().tobytes())
        for label, a, b in zip(latents.labels.tolist(), *both, strict=True)
    }


def assert_as_fresh(images: Path, out: Path, on_bad: str = "stop") -> None:
    fresh = out.with_name(f"{out.name}-fresh-{len(list(out.parent.iterdir()))}")
    grow(images, fresh, on_bad=on_bad)
    assert by_image(out) == by_image(fresh)
    a, b = (Latents.open(folder, flip=True).index for folder in (out, fresh))
    assert (a.class_names, a.counts, set(a.skipped)) == (b.class_names, b.counts, set(b.skipped))
    assert a.mean == pytest.approx(b.mean, abs=1e-9) and a.std == pytest.approx(b.std, abs=1e-9)
    assert sum(shard.images for shard in a.shards) == sum(a.counts) == len(by_image(out))


def files_of(out: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in out.glob("*.safetensors")}


def test_only_added_images_are_encoded(images: Path, tmp_path: Path):
    out = tmp_path / "out"
    assert grow(images, out) == 12
    before = files_of(out)
    assert grow(images, out) == 0
    put(images, "chelsea/000b.png", 12)  # amid the others
    put(images, "birch/9.png", 15)  # a new class between the others
    put(images, "zebra/1.png", 18)
    assert grow(images, out) == 3
    assert {name: files_of(out)[name] for name in before} == before
    assert Latents.open(out, flip=True).class_names == ("bark", "birch", "chelsea", "sky", "zebra")
    assert_as_fresh(images, out)
    assert grow(images, out, repair=True) == 0
    (out / "000001.safetensors").write_bytes(b"")  # of the old numbers
    assert grow(images, out, repair=True) == 5
    assert_as_fresh(images, out)
    put(images, "apple/1.png", 21)  # and once more
    assert grow(images, out) == 1
    assert_as_fresh(images, out)
    assert grow(images, out) == 0


def test_replaced_and_removed_images_are_noticed(images: Path, tmp_path: Path):
    out = tmp_path / "out"
    grow(images, out)
    for path in images.rglob("*.*"):  # copied: another time, the same bytes
        os.utime(path, ns=(1, 1))
    assert grow(images, out) == 0
    put(images, "sky/002.png", 30)
    index = (out / INDEX).read_bytes()
    with pytest.raises(UsageError, match=r"contains another image under the name sky/002\.png; --update"):
        grow(images, out)
    (images / "bark/003.png").unlink()
    put(images, "sky/100.png", 33)
    with pytest.raises(UsageError, match=r"an image that is gone from .*: bark/003.png \(and .* 1 more file"):
        grow(images, out)
    assert (out / INDEX).read_bytes() == index
    assert grow(images, out, update=True) == 10  # eight of the two files, and the two new ones
    assert_as_fresh(images, out)
    assert sorted(files_of(out)) == sorted(s.file for s in Latents.open(out, flip=True).index.shards)
    (images / "sky/005.png").rename(images / "bark/005.png")
    with pytest.raises(UsageError, match=r"gone from .*: sky/005.png"):
        grow(images, out)


def test_interrupted_growth_leaves_the_old_cache(images: Path, tmp_path: Path):
    out = tmp_path / "out"
    grow(images, out)
    before = by_image(out)
    for i in range(8):
        put(images, f"more/{i}.png", 40 + i)

    class Killed(Exception): ...

    def after_a_file(done: int, total: int) -> None:
        if done > 17:
            raise Killed

    with pytest.raises(Killed):
        grow(images, out, progress=after_a_file)
    assert len(files_of(out)) == 4 and by_image(out) == before
    put(images, "more/8.png", 50)  # one more before it goes on
    assert grow(images, out) == 9 - 5
    assert_as_fresh(images, out)


def test_an_encoding_that_was_interrupted_may_grow(images: Path, tmp_path: Path):
    out = tmp_path / "out"
    assert grow(images, out, Shard(1, 2)) == 5
    put(images, "bark/000a.png", 60)
    assert grow(images, out, Shard(0, 2)) + grow(images, out, Shard(1, 2)) == 8
    assert_as_fresh(images, out)


def test_shards_share_the_growth(images: Path, tmp_path: Path):
    out = tmp_path / "out"
    grow(images, out)
    before = by_image(out)
    for i in range(12):
        put(images, f"more/{i}.png", 70 + i)
    assert grow(images, out, Shard(1, 2)) == 7
    assert by_image(out) == before
    assert grow(images, out, Shard(0, 2)) == 5
    assert_as_fresh(images, out)


def test_on_bad_may_change(images: Path, tmp_path: Path):
    out = tmp_path / "out"
    whole = (images / "bark/006.png").read_bytes()
    (images / "bark/006.png").write_bytes(whole[:100])
    with pytest.raises(RunError, match=r"006\.png is cut short"):
        grow(images, out)
    assert grow(images, out, on_bad="skip") == 11
    assert_as_fresh(images, out, on_bad="skip")
    assert grow(images, out, on_bad="skip") == 0  # stays left out
    before = files_of(out)
    with pytest.raises(RunError, match=r"006\.png is cut short"):
        grow(images, out)  # tried again
    assert len(by_image(out)) == 11
    assert grow(images, out, on_bad="skip") == 0 and files_of(out) == before
    (images / "bark/006.png").write_bytes(whole)
    assert grow(images, out, on_bad="skip") == 1  # mended
    assert {name: files_of(out)[name] for name in before} == before
    assert_as_fresh(images, out)
    assert Latents.open(out, flip=True).index.skipped == ()


def test_another_folder_is_not_growth(images: Path, tmp_path: Path, capsys):
    command = ["--autoencoder", "pixels", "--image-size", "16", "--out", str(tmp_path / "out")]
    assert main(["encode", str(images), *command]) == 0
    put(tmp_path / "other", "a/1.png", 1)
    assert main(["encode", str(tmp_path / "other"), *command]) == 2
    assert "is gone from" in (said := capsys.readouterr().err) and said.count("\n") == 1
    put(images, "sky/x.png", 3)
    assert main(["encode", str(images), *command]) == 0
    assert "13 encoded images in " in (said := capsys.readouterr().out) and "12 of them as before" in said
    # A folder that an earlier version encoded has no list of its images.
    for path in (tmp_path / "out" / "parts").iterdir():
        path.unlink()
    put(images, "sky/y.png", 3)
    assert main(["encode", str(images), *command]) == 0  # encoded again, as nothing is known of its files
    assert len(by_image(tmp_path / "out")) == 13  # x and y are one picture


def test_a_run_notices_that_its_cache_grew(images: Path, tmp_path: Path):
    out = tmp_path / "out"
    grow(images, out)
    shape = ("model.in_channels=3", f"model.input_size={SIDE}", "train.steps=1")
    config = tiny("data.name=latents", f"data.path={out}", "model.num_classes=3", *shape)
    list(train(config, tmp_path / "run", device="cpu"))
    put(images, "sky/x.png", 3)
    grow(images, out)
    with pytest.raises(UsageError, match="12 images before, 13 images now"):
        list(train(config, tmp_path / "run", resume="auto", device="cpu"))


def test_a_wrong_numbering_is_refused(images: Path, tmp_path: Path):
    out = tmp_path / "out"
    grow(images, out)
    put(images, "alder/1.png", 15)
    grow(images, out)
    for wrong in ([0, 1, 4], [True, 1, 2], "abc", [1]):
        value = json.loads((out / INDEX).read_text())
        assert value["format"] == 2 and value.pop("sha256")
        value["shards"][0]["classes"] = wrong
        (out / "wrong").mkdir(exist_ok=True)
        (out / "wrong" / INDEX).write_bytes(sealed(value))
        for path in out.glob("*.safetensors"):
            (out / "wrong" / path.name).write_bytes(path.read_bytes())
        with pytest.raises(RunError, match="--repair"):
            Latents.open(out / "wrong", flip=True)


def test_held_out_images_stay_held_out(tmp_path: Path, capsys: pytest.CaptureFixture):
    """And encoded ones stay encoded, although the added images change which names come first."""
    from scaledit.data.held_out import HeldOut

    folder, out = tmp_path / "tree", tmp_path / "latents"
    for i in range(10):
        put(folder, f"a/{i}.png", i)
    words = ["encode", str(folder), "--image-size", "16", "--autoencoder", "pixels", "--out", str(out)]
    assert main([*words, "--holdout", "0.3"]) == 0
    first = HeldOut.read(out)
    assert first is not None and len(first.names) == first.images == 3
    for i in range(10, 40):
        put(folder, f"a/{i}.png", i)
    assert main([*words, "--holdout", "0.3"]) == 0
    grown = HeldOut.read(out)
    assert grown is not None and set(first.names) < set(grown.names)
    assert (grown.images, len(Latents.open(out, flip=True))) == (12, 28)
    capsys.readouterr()
    assert main([*words, "--holdout", "0.4"]) == 2
    assert "was begun with --holdout 0.3; keep that share" in capsys.readouterr().err
    plain = [*words[:-1], str(tmp_path / "plain")]
    assert main(plain) == 0
    assert main([*plain, "--holdout", "0.3"]) == 2
    assert "was begun without --holdout" in capsys.readouterr().err
