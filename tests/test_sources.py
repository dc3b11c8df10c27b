"""Every layout gives the same images and classes; errors name the image that is wrong."""

from __future__ import annotations

import io
import json
import struct
import sys
import tarfile
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

from pictures import CLASSES, LABELS, LAYOUTS, N, encoded, order, picture, shards, tree
from scaledit.cli import main
from scaledit.data import decode
from scaledit.data.files import ImageFiles
from scaledit.data.sets import digits
from scaledit.data.sources import open_source
from scaledit.errors import RunError, UsageError


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_holds_the_same(layout: str, tmp_path: Path):
    source = open_source(LAYOUTS[layout](tmp_path))
    assert len(source) == N
    assert source.class_names == CLASSES
    assert source.labels.tolist() == sorted(LABELS)
    for at in (5, 0, 11, 7):  # in any order
        assert source.read(at) == encoded(order()[at])[1]
    files = ImageFiles(source, 32)
    x0, y = files.batch(np.array([3, 9]), range(2), seed=0)
    assert x0.shape == (2, 3, 32, 32)
    assert y.tolist() == [source.labels[3], source.labels[9]]


def test_the_digits_are_those_of_scikit_learn():
    """Their file is read without importing scikit-learn."""
    images, labels = load_digits(return_X_y=True)
    for held_out in (False, True):
        chosen = (np.arange(1797) % 5 == 4) == held_out
        subset = digits(held_out=held_out)
        assert torch.equal(subset.labels, torch.from_numpy(labels[chosen]))
        assert torch.equal(
            ((subset.images.double() + 1) * 8).reshape(-1, 64), torch.from_numpy(images[chosen])
        )


def test_adm_crop():
    """200 x 100 to 20 by hand: halved with BOX to 50 x 25, BICUBIC to 40 x 20, then the middle."""
    image = Image.fromarray(picture(0, 200, 100))
    halved = image.resize((100, 50), Image.Resampling.BOX).resize((50, 25), Image.Resampling.BOX)
    small = np.asarray(halved.resize((40, 20), Image.Resampling.BICUBIC))
    np.testing.assert_array_equal(decode.crop(image, 20), small[:, 10:30])
    upright = Image.fromarray(picture(0, 31, 57))
    assert decode.crop(upright, 64).shape == (64, 64, 3)
    exact = Image.fromarray(picture(1, 32, 32))
    np.testing.assert_array_equal(decode.crop(exact, 32), picture(1, 32, 32))


def test_pixels_and_flips(tmp_path: Path):
    source = open_source(tree(tmp_path / "tree"))
    plain, flipping = ImageFiles(source, 36), ImageFiles(source, 36, flip=True, threads=2)
    x0, _ = plain.batch(np.arange(4), range(4), seed=1)
    by_hand = decode.crop(Image.open(io.BytesIO(source.read(2))), 36)
    torch.testing.assert_close(x0[2], torch.from_numpy(by_hand / 127.5 - 1).permute(2, 0, 1).float())
    repeated, _ = flipping.batch(np.zeros(200, int), range(200), seed=1)
    mirrored = (repeated == x0[0].flip(-1)).flatten(1).all(1)
    straight = (repeated == x0[0]).flatten(1).all(1)
    assert bool((mirrored ^ straight).all())
    assert 60 < int(mirrored.sum()) < 140
    apart = torch.cat([flipping.batch(np.zeros(1, int), range(i, i + 1), seed=1).x0 for i in range(20)])
    assert torch.equal(apart, repeated[:20])  # independent of the batch


def bomb() -> bytes:
    """A PNG of a few bytes that declares 30,000 x 30,000 pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 30_000, 30_000, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b"\0"))
        + chunk(b"IEND", b"")
    )


def bad_images() -> dict[str, tuple[str, bytes]]:
    """{text of the message: (name and bytes of a file)}."""
    (_, png), (_, jpeg) = encoded(0), encoded(1)
    inside = bytearray(png)
    inside[len(png) // 2] ^= 0xFF
    return {
        "is cut short": ("cut.png", png[: len(png) // 2]),
        "cut.jpg is cut short": ("cut.jpg", jpeg[:-200]),
        "declares": ("bomb.png", bomb()),
        "is corrupt": ("inside.png", bytes(inside)),
        "is empty": ("empty.png", b""),
        "is not a readable image": ("text.jpg", b"<html>not found</html>" * 20),
    }


@pytest.mark.parametrize("says", bad_images())
def test_a_bad_image_fails_by_name(says: str, tmp_path: Path, capsys):
    name, data = bad_images()[says]
    folder = tree(tmp_path / "tree")
    (folder / "sky" / name).write_bytes(data)
    files = ImageFiles(open_source(folder), 32)
    at = list(files.names).index(f"sky/{name}")
    with pytest.raises(RunError, match=says):
        files.batch(np.array([at]), range(1), seed=0)
    with pytest.raises(RunError, match=f"sky/{name}"):
        files.batch(np.array([at]), range(1), seed=0)
    assert main(["data", "inspect", str(folder), "--image-size", "32", "--json"]) == 1
    report = json.loads(capsys.readouterr().out)
    assert [name in line and says.rsplit("jpg ")[-1] in line for line in report["refused"]] == [True]
    assert report["images"] == N + 1
    assert report["classes"] == {"bark": 4, "chelsea": 4, "sky": 5}


def test_inspect_counts_and_shows(tmp_path: Path, capsys):
    folder, sheet = tree(tmp_path / "tree"), tmp_path / "sheet.png"
    turned = Image.Exif()
    turned[decode.ORIENTATION] = 6
    Image.fromarray(picture(3)).save(folder / "sky" / "turned.jpg", exif=turned)
    assert main(["data", "inspect", str(folder), "--image-size", "64", "--sheet", str(sheet)]) == 0
    output = capsys.readouterr().out
    for part in (
        "13",
        "PNG 8, JPEG 5",
        "44 to 44",
        "13 images are smaller than 64",
        "1 image is turned on the side",
    ):
        assert part in output
    contact_sheet = np.asarray(Image.open(sheet))
    thumbnail = decode.crop(Image.open(folder / "bark" / "000.png").convert("RGB"), 64)
    np.testing.assert_array_equal(contact_sheet[:64, 150 : 150 + 64], thumbnail)


def without(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).unlink()
    return folder


def rewritten(path: Path, entries: dict[str, bytes]) -> Path:
    path.parent.mkdir(exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, data in entries.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    return path


def test_invalid_sets_are_refused(tmp_path: Path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="contains no images"):
        open_source(tmp_path / "empty")
    folder = tree(tmp_path / "tree")
    (folder / "dogs").mkdir()
    with pytest.raises(UsageError, match="class 'dogs' has no images"):
        open_source(folder)
    (folder / "dogs").rmdir()
    (folder / "stray.png").write_bytes(encoded(0)[1])
    with pytest.raises(UsageError, match=r"stray.png is beside the class folders"):
        open_source(folder)
    with pytest.raises(UsageError, match="does not exist"):
        open_source(tmp_path / "nowhere")
    (tmp_path / "a.tar.gz").touch()
    with pytest.raises(UsageError, match="unpack it"):
        open_source(tmp_path / "a.tar.gz")
    (tmp_path / "text.zip").write_text("no archive")
    with pytest.raises(UsageError, match=r"text.zip is not a .zip"):
        open_source(tmp_path / "text.zip")
    (tmp_path / "text.parquet").write_text("no table")
    with pytest.raises(UsageError, match=r"text.parquet cannot be read"):
        open_source(tmp_path / "text.parquet")
    (tmp_path / "words.txt").touch()
    with pytest.raises(UsageError, match="is not a set of images"):
        open_source(tmp_path / "words.txt")


def test_shards_that_are_wrong_are_named(tmp_path: Path):
    png = encoded(0)[1]
    cases = {
        "0.png has no label": {"0.png": png, "1.png": png, "1.cls": b"0"},
        "0.cls is not a whole number": {"0.png": png, "0.cls": b"cat"},
        "0.json is not a JSON object with label": {"0.png": png, "0.json": b"{}"},
        "has the label 5; its classes are 0..1": {"0.png": png, "0.cls": b"5", "1.png": png, "1.cls": b"1"},
        "class 'two' has no images": {"0.png": png, "0.cls": b"0"},
    }
    for i, (says, entries) in enumerate(cases.items()):
        path = rewritten(tmp_path / f"case{i}" / "0.tar", entries)
        if "classes" in says or "'two'" in says:
            (path.parent / "classes.txt").write_text("one\ntwo\n")
        with pytest.raises(UsageError, match=says):
            open_source(path.parent)
    words = {"0.png": png, "0.json": b'{"label": "cat"}', "1.png": png, "1.json": b'{"label": "ant"}'}
    assert open_source(rewritten(tmp_path / "words" / "0.tar", words)).class_names == ("ant", "cat")
    folder = shards(tmp_path / "cut")
    whole = (folder / "0001.tar").read_bytes()
    (folder / "0001.tar").write_bytes(whole[:3000])
    with pytest.raises(UsageError, match=r"0001.tar"):
        open_source(folder)


def test_tables_that_are_wrong_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    import pyarrow as pa
    import pyarrow.parquet as pq

    png = encoded(0)[1]
    cases = {
        "no column of images": {"picture": [png], "label": [0]},
        "no column of labels": {"image": [png], "caption": ["a cat"]},
        "row 1 has no label": {"image": [png, png], "label": [0, None]},
        "class '0' has no images": {"image": [png], "label": [1]},
    }
    for i, (says, columns) in enumerate(cases.items()):
        pq.write_table(pa.table(columns), tmp_path / f"{i}.parquet")
        with pytest.raises(UsageError, match=says):
            open_source(tmp_path / f"{i}.parquet")
    with monkeypatch.context() as without:
        without.setitem(sys.modules, "pyarrow", None)
        with pytest.raises(UsageError, match=r"pip install .scaledit\[parquet\]"):
            open_source(tmp_path / "0.parquet")
    pq.write_table(
        pa.table({"image": [{"bytes": None, "path": "x.png"}], "label": [0]}), tmp_path / "p.parquet"
    )
    with pytest.raises(decode.BadImage, match="has no bytes"):
        open_source(tmp_path / "p.parquet").read(0)
