"""Which files of a folder or an archive are the set, as which classes, and how the other files are reported.
Nothing is left out, joined or renumbered silently."""

from __future__ import annotations

import hashlib
import io
import json
import os
import tarfile
import tracemalloc
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pictures import N, encoded, parquet, shards, tree
from scaledit import assemble, checkpoint
from scaledit.autoencoders import open_autoencoder
from scaledit.autoencoders.cache import Encoding, encode
from scaledit.cli import main
from scaledit.config import RunConfig, differences
from scaledit.data import decode, splits
from scaledit.data.files import ImageFiles
from scaledit.data.latents import Latents
from scaledit.data.names import natural_key
from scaledit.data.sources import Source, numbered, open_source
from scaledit.errors import UsageError
from scaledit.files.shards import Shard
from scaledit.training.dit import train
from scaledit.training.events import Remarked
from scaledit.training.same_data import renumbered
from tiny import tiny

PNG = encoded(0)[1]
CASES = Path(__file__).parent / "cases"


def filled(folder: Path, *names: str, data: bytes = PNG) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


def tar(path: Path, entries: dict[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, data in entries.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    return path


def packed(path: Path, entries: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, data in entries.items():
            archive.writestr(name, data)
    return path


def table(path: Path, *, labels: object = None, images: object = None, count: int = 2) -> Path:
    import pyarrow as pa
    import pyarrow.parquet as pq

    path.parent.mkdir(parents=True, exist_ok=True)
    columns = {
        "image": pa.array([PNG] * count) if images is None else images,
        "label": list(range(count)) if labels is None else labels,
    }
    pq.write_table(pa.table(columns), path)
    return path


def unused(source: Source) -> dict[str, tuple[int, tuple[str, ...]]]:
    return {unused.reason: (unused.count, unused.examples) for unused in source.unused}


# Which layout a folder has


@pytest.mark.parametrize("below", ["", "a/", "a/deep/", "notes/"])
def test_class_folders_win_over_stray_files(below: str, tmp_path: Path):
    folder = filled(tmp_path / "set", "a/1.png", "b/1.png")
    tar(folder / f"{below}backup.TAR", {"x/1.png": PNG})
    table(folder / f"{below}old.parquet")
    packed(folder / f"{below}old.zip", {"c/1.png": PNG})
    filled(folder, f"{below}old.arrow", f"{below}index.csv", f"{below}data.tar.gz", data=b"anything")
    source = open_source(folder)
    assert (source.class_names, list(source.names)) == (("a", "b"), ["a/1.png", "b/1.png"])
    assert unused(source) == {
        "archives": (3, (f"{below}backup.TAR", f"{below}data.tar.gz", f"{below}old.zip")),
        "text files": (1, (f"{below}index.csv",)),
        "tables": (2, (f"{below}old.arrow", f"{below}old.parquet")),
    }
    assert len(source.notes) == (below == "notes/")


def test_two_layouts_that_may_be_meant_are_refused(tmp_path: Path):
    def refused(folder: Path, *words: str) -> None:
        with pytest.raises(UsageError) as error:
            open_source(folder)
        assert all(word in str(error.value) for word in words), str(error.value)

    both = filled(tmp_path / "both", "a/1.png")
    for k in range(2):
        tar(both / f"{k:04d}.tar", {"0.png": PNG, "0.cls": b"0"})
    refused(both, "class folders (a/1.png)", ".tar files (0000.tar, 0001.tar)")
    hub = filled(tmp_path / "hub", "assets/figure.png")
    table(hub / "data" / "train-00000-of-00001.parquet")
    refused(hub, "assets/figure.png", "train-00000-of-00001.parquet")
    loose = filled(tmp_path / "loose", "preview.png")
    tar(loose / "set.tar", {"0.png": PNG, "0.cls": b"0"})
    refused(loose, "preview.png", "set.tar")
    (loose / "set.tar").rename(loose / "0000.tar")
    tar(loose / "0001.tar", {"1.png": PNG, "1.cls": b"1"})
    source = open_source(loose)  # a series of shards is no stray file
    assert len(source) == 2
    assert unused(source) == {"images beside the shards or tables": (1, ("preview.png",))}


def test_inspect_and_encode_report_what_is_not_used(tmp_path: Path, capsys):
    folder = filled(
        tree(tmp_path / "tree"), ".DS_Store", "sky/.thumb.png", "__MACOSX/sky/._1.png", "sky/a.heic"
    )
    filled(folder, *(f"bark/{i:02d}.txt" for i in range(30)))
    assert main(["data", "inspect", str(folder), "--image-size", "16", "--json"]) == 0
    reported = {entry["reason"]: entry for entry in json.loads(capsys.readouterr().out)["unused"]}
    assert {reason: entry["count"] for reason, entry in reported.items()} == {
        "hidden": 3,
        "text files": 30,
        "pictures in formats that are not read": 1,
    }
    assert reported["hidden"]["examples"] == [".DS_Store", "__MACOSX", "sky/.thumb.png"]
    assert reported["text files"]["examples"] == [f"bark/{i:02d}.txt" for i in range(20)]
    assert main(["data", "inspect", str(folder), "--image-size", "16"]) == 0
    assert "text files: 30 (bark/00.txt, bark/01.txt, bark/02.txt, ...)" in capsys.readouterr().out
    out = str(tmp_path / "latents")
    where = ["encode", str(folder), "--autoencoder", "pixels", "--image-size", "16", "--out", out]
    assert main(where) == 0
    errors = capsys.readouterr().err
    assert "not used: " in errors
    assert "pictures in formats that are not read: 1 (sky/a.heic)" in errors


def test_links_are_followed_but_not_in_circles(tmp_path: Path):
    real = filled(tmp_path / "real", "1.png", "2.png")
    folder = filled(tmp_path / "set", "a/1.png")
    (folder / "b").symlink_to(real)
    (folder / "a" / "up").symlink_to(folder)
    (folder / "a" / "self").symlink_to(folder / "a")
    (folder / "a" / "loop").symlink_to("loop")
    (folder / "a" / "lost.png").symlink_to(tmp_path / "nowhere.png")
    source = open_source(folder)
    assert list(source.names) == ["a/1.png", "a/lost.png", "b/1.png", "b/2.png"]
    assert source.labels.tolist() == [0, 0, 1, 1]
    assert unused(source)["links back to a folder around them"] == (3, ("a/loop", "a/self", "a/up"))
    assert isinstance(ImageFiles(source, 16).read([1])[0], decode.BadImage)  # refused by name, not dropped
    (folder / "c").symlink_to(tmp_path / "unmounted")
    with pytest.raises(UsageError, match=r"set/c is a link to .*unmounted, which does not exist"):
        open_source(folder)


def test_links_that_fan_out_are_refused_at_once(tmp_path: Path):
    """Two links at each of 40 levels make 2^40 paths to one folder; a ring of folders that link to each other
    makes a path for every order of them."""
    fan, ring = tmp_path / "fan", tmp_path / "ring"
    filled(fan, "40/a/1.png")
    for level in reversed(range(40)):
        (fan / f"{level}").mkdir()
        for side in ("left", "right"):
            (fan / f"{level}" / side).symlink_to(fan / f"{level + 1}")
    for i in range(12):
        filled(ring, f"{i}/1.png")
        for k in range(12):
            (ring / f"{i}" / f"to{k}").symlink_to(ring / f"{k}")
    for folder in (fan, fan / "0", ring):
        with pytest.raises(UsageError, match=r"symbolic links that lead to \S+ by more than 16 paths"):
            open_source(folder)
    twice = filled(tmp_path / "twice", "a/1.png")
    (twice / "b").symlink_to(twice / "a")  # a folder may be two classes
    assert open_source(twice).class_names == ("a", "b")


def test_a_folder_without_images_is_refused_or_reported(tmp_path: Path):
    folder = filled(tmp_path / "set", "wrapped/a/1.png", "wrapped/b/1.png", "wrapped/c/1.heic")
    with pytest.raises(UsageError, match=r"class 'c' has no images that can be read .*c/1\.heic"):
        open_source(folder)
    (folder / "wrapped/c/1.heic").rename(folder / "wrapped/c/readme.txt")
    source = open_source(folder)
    assert (source.class_names, source.notes) == (
        ("a", "b"),
        ("the folder wrapped/c contains no images and is not used as a class",),
    )
    (folder / "wrapped/c/readme.txt").unlink()
    with pytest.raises(UsageError, match="class 'c' has no images"):
        open_source(folder)


def test_joined_folders_are_reported(tmp_path: Path):
    source = open_source(filled(tmp_path / "set", "a/x/1.png", "a/y/1.png", "b/1.png"))
    assert (source.class_names, source.labels.tolist()) == (("a", "b"), [0, 0, 1])
    (note,) = source.notes
    assert "a/x, a/y are all 'a'" in note


# Splits


def test_one_split_of_a_hub_data_set_is_read(tmp_path: Path, capsys):
    folder = parquet(tmp_path / "set")
    table(folder / "data" / "test-00000-of-00001.parquet", count=5)
    table(folder / "data" / "valid.parquet", count=3)
    for split, n, name in (("", N, "train"), ("test", 5, "test"), ("validation", 3, "validation")):
        source = open_source(folder, split)
        assert (len(source), source.split) == (n, name)
    assert unused(open_source(folder))["files of the split test"] == (
        1,
        ("data/test-00000-of-00001.parquet",),
    )
    with pytest.raises(UsageError, match=r"no split 'extra': it has test, train, validation"):
        open_source(folder, "extra")
    assert main(["data", "inspect", str(folder), "--headers", "--split", "test", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["images"], report["split"]) == (5, "test")
    (folder / "data" / "valid.parquet").unlink()
    for file in (folder / "data").glob("train-*"):
        file.unlink()
    assert open_source(folder).split == "test"  # the only one


def test_a_tree_of_splits_has_no_classes_train_and_val(tmp_path: Path):
    names = ["train/a/1.png", "train/b/1.png", "val2017/a/1.png", "test-images/b/1.png"]
    folder = filled(tmp_path / "set", *names)
    packed(tmp_path / "set.zip", dict.fromkeys((f"wrapped/{name}" for name in names), PNG))
    tar(tmp_path / "set.tar", dict.fromkeys(names, PNG))
    for path in (folder, tmp_path / "set.zip", tmp_path / "set.tar"):
        source = open_source(path)
        assert (source.class_names, source.labels.tolist(), source.split) == (("a", "b"), [0, 1], "train")
        assert {reason: count for reason, (count, _) in unused(source).items()} == {
            "images of the split validation": 1,
            "images of the split test": 1,
        }
        assert [open_source(path, "val").names[0].endswith("val2017/a/1.png")] == [True]
        everything = open_source(path, "all")
        assert (len(everything), everything.class_names) == (4, ("a", "b"))
    filled(folder, "stray/1.png")
    with pytest.raises(UsageError, match=r"look like splits, beside 'stray'"):
        open_source(folder)
    vehicles = filled(tmp_path / "vehicles", "car/1.png", "train/1.png", "train station/1.png")
    assert open_source(vehicles).class_names == ("car", "train", "train station")
    with pytest.raises(UsageError, match="no split 'test'"):
        open_source(vehicles, "test")


def test_splits_of_files_are_recognized_by_their_names():
    expected = {
        "data/train-00000-of-00001.parquet": "train",
        "train-00000-of-00001-a1b2c3.parquet": "train",
        "imdb-unsupervised-00000-of-00002.arrow": "unsupervised",
        "imagenet-val-000007.tar": "validation",
        "test/data-00000-of-00001.arrow": "test",
        "data-00000-of-00001.arrow": "",
        "0001.tar": "",
        "device-0001.tar": "",
    }
    assert {name: splits.of_file(name) for name in expected} == expected


def test_what_datasets_saved_beside_its_caches(tmp_path: Path):
    """A set with two splits written by save_to_disk; one split was mapped afterwards."""
    import pyarrow as pa

    for split, count in (("train", 3), ("test", 2)):
        for name, n in (("data-00000-of-00001", count), ("cache-12ab", 7)):
            file = tmp_path / "set" / split / f"{name}.arrow"
            file.parent.mkdir(parents=True, exist_ok=True)
            rows = pa.table({"image": [PNG] * n, "label": list(range(n))})
            with pa.OSFile(str(file), "wb") as sink, pa.ipc.new_stream(sink, rows.schema) as writer:
                writer.write_table(rows)
        state = {"_data_files": [{"filename": "data-00000-of-00001.arrow"}]}
        (file.parent / "state.json").write_text(json.dumps(state))
    source = open_source(tmp_path / "set")
    assert (len(source), source.split) == (3, "train")
    assert unused(source) == {
        "tables that their state.json does not name": (
            2,
            ("test/cache-12ab.arrow", "train/cache-12ab.arrow"),
        ),
        "files of the split test": (1, ("test/data-00000-of-00001.arrow",)),
    }


# Shards


def test_a_sample_has_one_image():
    source = open_source(CASES / "second-image-of-a-key.tar")
    assert [name.partition("/")[2] for name in source.names] == ["0.jpg", "1.jpg"]
    assert unused(source)["other images of a sample"] == (2, ("0.mask.png", "1.mask.png"))
    masks = open_source(CASES / "second-image-of-a-key.tar", image_key="mask.png")
    assert [name.partition("/")[2] for name in masks.names] == ["0.mask.png", "1.mask.png"]
    with pytest.raises(UsageError, match=r"no images of the key 'png' .*--image-key"):
        open_source(CASES / "second-image-of-a-key.tar", image_key="png")


def test_a_sample_with_an_ambiguous_image_is_refused(tmp_path: Path):
    for i, (one, other) in enumerate((("0.jpg", "0.png"), ("0.in.png", "0.out.png"), ("0.1.png", "0.2.png"))):
        path = tar(tmp_path / f"{i}.tar", {one: PNG, other: PNG, "0.cls": b"0"})
        with pytest.raises(UsageError, match=f"the sample 0 has several images .{one}, {other}"):
            open_source(path)
    # Without labels a dot in a name is no key's end.
    path = tar(tmp_path / "tree.tar", {"a/x.2019.png": PNG, "a/x.2020.png": PNG, "b/1.png": PNG})
    assert open_source(path).labels.tolist() == [0, 0, 1]


@pytest.mark.parametrize(
    "text",
    [b"1", b" 1\r\n", b"\xef\xbb\xbf1\n", "1\n".encode("utf-16"), b"+1"],
    ids=["plain", "CRLF", "BOM", "UTF-16", "sign"],
)
def test_a_number_as_editors_write_it(text: bytes, tmp_path: Path):
    path = tar(tmp_path / "0.tar", {"0.png": PNG, "0.cls": b"0", "1.png": PNG, "1.cls": text})
    assert open_source(path).labels.tolist() == [0, 1]


@pytest.mark.parametrize("text", [b"1_0", b"1.0", b"", b"0x1", b"9" * 5000, "１".encode()])
def test_a_label_that_is_no_number(text: bytes, tmp_path: Path):
    with pytest.raises(UsageError, match=r"0\.cls is not a whole number"):
        open_source(tar(tmp_path / "0.tar", {"0.png": PNG, "0.cls": text}))


def test_labels_beside_images_and_what_is_none(tmp_path: Path):
    """The .cls takes precedence over the .json; a description of the set is not a sample."""
    entries = {"0.png": PNG, "0.cls": b"0", "0.json": b'{"caption": "x"}', "info.json": b"[]", "1.txt": b""}
    source = open_source(tar(tmp_path / "0.tar", entries))
    assert source.labels.tolist() == [0]
    assert unused(source) == {"labels of no image": (1, ("info.json",)), "text files": (1, ("1.txt",))}
    source = open_source(tar(tmp_path / "tree.tar", {"a/1.png": PNG, "b/1.png": PNG, "a/notes.json": b"["}))
    assert source.class_names == ("a", "b")


@pytest.mark.parametrize(
    ("data", "guessed"),
    [
        ("été\r\n\r\nzoo\r\n".encode(), False),
        ("été\nzoo".encode("utf-8-sig"), False),
        ("été\nzoo\n".encode("utf-16"), False),
        ("été\nzoo\n".encode("utf-16-le"), False),
        ("été\rzoo\n\n".encode("latin-1"), True),
    ],
    ids=["CRLF", "BOM", "UTF-16", "UTF-16 without mark", "Latin-1"],
)
def test_class_lists_in_every_encoding(data: bytes, guessed: bool, tmp_path: Path):
    tar(tmp_path / "0.tar", {"0.png": PNG, "0.cls": b"0", "1.png": PNG, "1.cls": b"1"})
    (tmp_path / "classes.txt").write_bytes(data)
    source = open_source(tmp_path)
    assert source.class_names == ("été", "zoo")
    assert ["Latin-1" in note for note in source.notes] == [True] * guessed
    (tmp_path / "classes.txt").write_bytes(b"one\0\0\0\xff")
    with pytest.raises(UsageError, match=r"classes\.txt is not text"):
        open_source(tmp_path)


@pytest.mark.parametrize(
    "entries",
    [{"0.png": PNG, "0.json": b'{"label": "owl"}'}, {"owl/0.png": PNG, "elk/1.png": PNG}],
    ids=["words", "folders"],
)
def test_a_class_list_that_is_not_needed_is_reported(entries: dict[str, bytes], tmp_path: Path):
    tar(tmp_path / "0.tar", entries)
    (tmp_path / "classes.txt").write_text("zoo\n")
    source = open_source(tmp_path)
    assert "zoo" not in source.class_names
    assert f"{tmp_path / 'classes.txt'} is not used: the classes have names of their own" in source.remarks()


def test_links_and_odd_places_in_a_tar(tmp_path: Path):
    path = tmp_path / "0.tar"
    with tarfile.open(path, "w") as archive:
        for name, kind, target in (
            ("/a/1.png", tarfile.REGTYPE, ""),
            ("../b/1.png", tarfile.REGTYPE, ""),
            ("./b/hard.png", tarfile.LNKTYPE, "/a/1.png"),
            ("b/soft.png", tarfile.SYMTYPE, "../a/lost.png"),
            ("b/2.png", tarfile.FIFOTYPE, ""),
        ):
            entry = tarfile.TarInfo(name)
            entry.type, entry.linkname = kind, target
            entry.size = len(PNG) if kind == tarfile.REGTYPE else 0
            archive.addfile(entry, io.BytesIO(PNG))
    source = open_source(path)
    assert source.class_names == ("a", "b")
    assert len(source) == 3
    assert {source.read(i) for i in range(3)} == {PNG}
    assert unused(source) == {
        "neither files nor folders": (1, ("b/2.png",)),
        "links to what is not in the shard": (1, ("b/soft.png",)),
    }


def test_damage_inside_a_shard_loses_no_sample(tmp_path: Path):
    """Python's tarfile takes a corrupt header for the end of the archive."""
    path = shards(tmp_path / "shards") / "0000.tar"
    whole = path.read_bytes()
    with tarfile.open(path) as archive:
        at = archive.getmembers()[6].offset
    path.write_bytes(whole[: at + 3] + b"!" + whole[at + 4 :])
    with pytest.raises(UsageError, match=r"0000\.tar has data after the end of the archive"):
        open_source(tmp_path / "shards")
    path.write_bytes(whole + whole)
    with pytest.raises(UsageError, match="several archives were concatenated"):
        open_source(tmp_path / "shards")


# Zips


def test_names_in_a_zip(tmp_path: Path):
    assert open_source(CASES / "backslash-names.zip").class_names == ("a", "b")
    entries = {"a/1.png": PNG, "__MACOSX/a/._1.png": b"x", "b/1.JFIF": encoded(1)[1], "a/notes.txt": b""}
    source = open_source(packed(tmp_path / "upper.ZIP", entries))
    assert (source.class_names, list(source.names)) == (("a", "b"), ["a/1.png", "b/1.JFIF"])
    assert unused(source) == {"hidden": (1, ("__MACOSX/a/._1.png",)), "text files": (1, ("a/notes.txt",))}


def test_zips_that_cannot_be_read_are_refused_in_a_sentence(tmp_path: Path):
    path = packed(tmp_path / "set.zip", {"a/1.png": PNG, "b/1.png": PNG}, zipfile.ZIP_STORED)
    whole = path.read_bytes()
    directory = whole.index(b"PK\1\2")
    cases = {
        "is encrypted": (directory + 8, b"\1"),
        r"uses a compression that Python cannot read \(method 9\)": (directory + 10, b"\x09"),
        "is corrupt: it declares 7 entries but lists 2": (len(whole) - 12, b"\7"),
        "is not a .zip, or is cut short": (0, whole[: directory - 5]),
    }
    for says, (at, data) in cases.items():
        path.write_bytes(data if at == 0 else whole[:at] + data + whole[at + len(data) :])
        with pytest.raises(UsageError, match=says):
            open_source(path)


def test_a_zip_is_not_read_beyond_what_it_declares(tmp_path: Path):
    """16 MB of zeros that declare 100 bytes, and an entry that declares 300 MB."""
    path = packed(tmp_path / "bomb.zip", {"a/1.png": bytes(1 << 24)})
    data = bytearray(path.read_bytes())
    directory = data.index(b"PK\1\2")
    for declared, says in ((100, "Bad CRC-32"), (300_000_000, "300 MB")):
        data[directory + 24 : directory + 28] = declared.to_bytes(4, "little")
        path.write_bytes(data)
        source = open_source(path)
        tracemalloc.start()
        with pytest.raises(decode.BadImage, match=says):
            source.read(0)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 1 << 21


# Labels


def test_labels_that_are_no_classes_are_refused(tmp_path: Path):
    import pyarrow as pa

    cases = {
        r"column label is double; labels are whole numbers or words": [0.7, 1.2],
        r"column label is list": [[0], [1]],
        r"column label is bool": [True, False],
        r"has the label -1; classes are numbered from 0": [0, -1],
        r"has the label 18446744073709551615, which is not a class number": pa.array(
            [0, 2**64 - 1], pa.uint64()
        ),
        r"row 1 has no label": [0, None],
        r"class '1' has no images; its labels go up to 300000000": [0, 300_000_000],
    }
    for i, (says, labels) in enumerate(cases.items()):
        with pytest.raises(UsageError, match=says):
            open_source(table(tmp_path / f"{i}.parquet", labels=labels))
    for i, images in enumerate(([1, 2], ["a.png", "b.png"], [{"path": "a.png"}] * 2)):
        with pytest.raises(UsageError, match="not encoded images"):
            open_source(table(tmp_path / f"{i}.parquet", images=pa.array(images)))
    with pytest.raises(UsageError, match="some labels are numbers and some are words; use one kind"):
        numbered([0, "a"], None, tmp_path)
    with pytest.raises(UsageError, match=r"label 2; its classes are 0\.\.1"):
        numbered([0, 1, 2], {0: "a", 1: "b"}, tmp_path)


def test_a_label_in_a_tar_costs_no_memory(tmp_path: Path):
    """numpy would allocate counts for 10^15 classes."""
    for label in (b"1000000000000000", b"-1"):
        path = tar(tmp_path / "0.tar", {"0.png": PNG, "0.cls": b"0", "1.png": PNG, "1.cls": label})
        with pytest.raises(UsageError, match=r"class '1' has no images|has the label -1"):
            open_source(path)


# Names


def test_numbers_in_names_are_ordered_as_numbers(tmp_path: Path):
    names = ["class10", "2", "class2b", "10", "a", "class2", "02", "1" * 5000, "class"]
    natural = ["02", "2", "10", "1" * 5000, "a", "class", "class2", "class2b", "class10"]
    assert sorted(names, key=natural_key) == natural
    folder = filled(tmp_path / "set", *(f"{i}/x.png" for i in (1, 2, 10)))
    source = open_source(folder)
    assert source.class_names == ("1", "2", "10")
    assert dict(zip(source.names, source.labels.tolist(), strict=True)) == {
        "1/x.png": 0,
        "2/x.png": 1,
        "10/x.png": 2,
    }
    words = {
        f"{i}.{end}": data for i in (2, 10) for end, data in (("png", PNG), ("json", b'{"cls": "%d"}' % i))
    }
    assert open_source(tar(tmp_path / "words.tar", words)).class_names == ("2", "10")


def test_runs_and_encodings_of_earlier_versions_keep_their_numbers(tmp_path: Path):
    """Earlier versions numbered class folders as text: 1, 10, 2."""
    folder = tmp_path / "set"
    for i, name in enumerate(("1", "2", "10")):
        for k in range(3):
            filled(folder, f"{name}/{k}.png", data=encoded(3 * (3 * i + k))[1])
    new = ImageFiles(open_source(folder), 16)
    old = replace(new, source=new.source.legacy())
    assert (old.class_names, old.labels.tolist()) == (("1", "10", "2"), [0, 0, 0, 1, 1, 1, 2, 2, 2])
    listed = "".join(f"\0{name}\0{i // 3}" for i, name in enumerate(old.names))
    assert old.fingerprint == hashlib.sha256(("1\00010\0002" + listed).encode()).hexdigest()
    pixels, how = open_autoencoder("pixels", device="cpu"), Encoding(per_file=2)
    begun = encode(old, pixels, tmp_path / "latents", how, Shard(0, 2))
    assert not begun.complete
    assert encode(new, pixels, tmp_path / "latents", how).complete
    latents = Latents.open(tmp_path / "latents", flip=False)
    assert (latents.class_names, latents.labels.tolist()) == (old.class_names, old.labels.tolist())

    images = ("data.name=images", f"data.path={folder}", "data.image_size=16", "data.workers=0")
    small = (*images, "model.in_channels=3", "model.input_size=16", "model.num_classes=3")
    config, longer = (tiny(*small, f"train.steps={steps}") for steps in (1, 2))
    list(train(config, tmp_path / "run", device="cpu", dataset=old))
    list(train(longer, tmp_path / "run", device="cpu", resume="auto"))
    list(train(longer, tmp_path / "whole", device="cpu", dataset=old))
    resumed, whole = (
        checkpoint.open_checkpoint(tmp_path / run / "checkpoints" / "step-00000002")
        for run in ("run", "whole")
    )
    assert resumed.manifest["state"]["class_names"] == ["1", "10", "2"]
    assert resumed.manifest["files"] == whole.manifest["files"]  # bit for bit
    cached = renumbered(latents, new.class_names)
    assert isinstance(cached, Latents)
    assert (cached.class_names, cached.labels.tolist()) == (new.class_names, new.labels.tolist())


def test_training_reports_what_it_reads_and_old_configs_open(tmp_path: Path):
    folder = filled(tmp_path / "set", "train/a/1.png", "train/b/1.png", "val/a/1.png", "train/a/old.tar")
    images = ("data.name=images", f"data.path={folder}", "data.image_size=16", "data.workers=0")
    small = (*images, "model.in_channels=3", "model.input_size=16", "model.num_classes=2", "train.steps=1")
    events = list(train(tiny(*small), tmp_path / "run", device="cpu"))
    (remarked,) = (event for event in events if isinstance(event, Remarked))
    assert remarked.lines[0].endswith("the split train is read")
    assert (
        "archives: 1 (train/a/old.tar); images of the split validation: 1 (val/a/1.png)" in remarked.lines[1]
    )
    config = tiny(*small)
    before = config.to_json()
    assert not {"split", "image_key"} & before["data"].keys()  # at their defaults they are not written
    assert RunConfig.from_json(before) == config
    other = tiny(*small, "data.split=val")
    assert differences(config, other) == ["data.split: not set -> val"]
    with pytest.raises(UsageError, match=r"data\.split is a key for images in files"):
        assemble.dataset(tiny("data.split=test").data)


def test_names_that_are_not_utf8(tmp_path: Path, capsys):
    odd = os.fsdecode(b"caf\xe9")
    folder = filled(tmp_path / "set", f"{odd}/\udcff.png", "b/1.png")
    tar(tmp_path / "set.tar", {f"{odd}/\udcff.png": PNG, "b/1.png": PNG})
    for path in (folder, tmp_path / "set.tar"):
        source = open_source(path)
        assert source.class_names == ("b", "caf\\xe9")
        assert len(source.fingerprint) == 64
        assert [source.read(i) for i in range(2)] == [PNG, PNG]
        assert (
            main(["data", "inspect", str(path), "--image-size", "16", "--sheet", str(tmp_path / "s.png")])
            == 0
        )
        assert "caf\\xe9  1" in capsys.readouterr().out
    (folder / odd / "\udcff.png").write_bytes(b"none")
    out = tmp_path / "latents"
    where = ["encode", str(folder), "--autoencoder", "pixels", "--image-size", "16", "--out", str(out)]
    assert main([*where, "--on-bad", "skip"]) == 0
    assert "skipped: caf\\udce9/\\udcff.png" in capsys.readouterr().out
    assert json.loads((out / "index.json").read_bytes())["skipped"][0].startswith(f"{odd}/\udcff.png")
    assert main([*where, "--on-bad", "skip"]) == 0  # its own request is recognized


def test_more_formats(tmp_path: Path):
    from PIL import Image

    pixels = Image.open(io.BytesIO(PNG)).convert("RGB")
    for name, kind in (("1.jfif", "JPEG"), ("2.gif", "GIF"), ("3.JPE", "JPEG")):
        filled(tmp_path, f"a/{name}")
        more = {"save_all": True, "append_images": [Image.new("RGB", pixels.size)]} if kind == "GIF" else {}
        pixels.save(tmp_path / "a" / name, format=kind, **more)
    if "AVIF" in decode.FORMATS:
        pixels.save(tmp_path / "a" / "4.avif")
    files = ImageFiles(open_source(tmp_path), 16)
    assert len(files) == 3 + ("AVIF" in decode.FORMATS)
    expected = decode.crop(pixels, 16).astype(float) / 127.5 - 1
    for image in files.read(range(len(files))):
        assert not isinstance(image, decode.BadImage)
        assert np.abs(image.permute(1, 2, 0).numpy() - expected).mean() < 0.05
