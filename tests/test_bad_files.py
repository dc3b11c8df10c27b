"""Files of odd make that people hand in, one of each kind: a sentence that names the file and what is wrong.

`faults/test_readers.py` tries thousands; here are those that once ended in a traceback or were believed.
"""

from __future__ import annotations

import gzip
import io
import json
import struct
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from scaledit import config as configs
from scaledit.config import RunConfig
from scaledit.errors import RunError, UsageError, reading, shown
from scaledit.evaluation import digits as judged
from scaledit.evaluation import samples
from scaledit.evaluation.dinov2 import load as load_dinov2
from scaledit.evaluation.reference import open_reference
from scaledit.evaluation.result import MetricValue, Result
from scaledit.evaluation.samples import open_samples
from scaledit.files.reading import read_json
from scaledit.scaling import study as studies
from scaledit.scaling import table as tables
from scaledit.scaling.collect import collect
from scaledit.scaling.queue import QUEUE, RESULTS, Job, Queue
from scaledit.scaling.work import jobs

IMAGES = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 3), dtype=np.uint8)


def refused(says: str, call: Callable[[], object], error: type[Exception] = UsageError) -> None:
    with pytest.raises(error, match=says) as caught:
        call()
    assert len(str(caught.value).splitlines()) == 1 and len(str(caught.value)) < 1000


# The shared parts


def test_what_a_parser_says_becomes_one_short_line(tmp_path: Path):
    def parse(what: Exception) -> None:
        with reading(tmp_path / "x", "a thing", "mend it"):
            raise what

    refused("x cannot be read as a thing: one two; mend it$", lambda: parse(ValueError("one\ntwo")), RunError)
    refused(r"x cannot be read as a thing: a{300}\.\.\.; ", lambda: parse(ValueError("a" * 9000)), RunError)
    refused("x cannot be read as a thing: KeyboardError|EOFError", lambda: parse(EOFError()), RunError)
    assert shown([int("9" * 4000) ** 2]) == "a value of type list that is too large to show"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (b"[" * 100_000, "nested too deeply"),
        (b'{"a": ' * 80 + b"0" + b"}" * 80, "nested more than 50 deep"),
        (b'{"a": 1, "a": 2}', "has the key 'a' twice"),
        (b'{"a": ' + b"9" * 5000 + b"}", "integer string conversion"),
        ('{"a": 1}'.encode("utf-16")[:-1], "truncated data"),
        (b"[1]", "contains no JSON object"),
    ],
)
def test_json_of_odd_make(text: bytes, says: str, tmp_path: Path):
    (tmp_path / "x.json").write_bytes(text)
    refused(
        f"x.json cannot be read as a thing: .*{says}",
        lambda: read_json(tmp_path / "x.json", "a thing"),
        RunError,
    )


# Recipes and configs


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("train.steps = " + "9" * 5000, "cannot be read as TOML: Exceeds the limit"),
        (
            "train.steps = " + "9" * 4000,
            r"train.steps must fit into 64 bits, got 9{100}\.\.\.$",
        ),
        ("train.steps = 0x" + "f" * 5000, "fit into 64 bits, got a value of type int"),
        ("optimizer.betas = " + "[" * 3000 + "]" * 3000, "nested too deeply"),
        ("train" + ".x" * 400 + " = 1", "nested more than 50 deep"),
        ('trains = ["model"]', "trains is"),
        ("optimizer.clip = " + "1" * 400, "fit into 64 bits"),
        ("train.steps.x = 1", "train.steps must be a whole number, got {'x': 1}"),
        ("name = 3", "name must be a string, got 3"),
        ("name.x = 3", "name must be a string"),
        ('data.path = "a\\u0000b"', "data.path must be text without zero bytes that UTF-8 can encode"),
        ("data.name = ['digits']", r"data.name must be a string, got \['digits'\]"),
    ],
)
def test_recipes_of_odd_make(text: str, says: str, tmp_path: Path):
    (tmp_path / "mine.toml").write_text(f'extends = "digits"\n{text}\n')
    refused(says, lambda: configs.load(str(tmp_path / "mine.toml")))


@pytest.mark.parametrize(
    "value", [[], 3, {"model": []}, {"model": {"depth": "x"}}, {"train": {"steps": 10**400}}]
)
def test_configs_that_are_none(value: Any):
    refused("must be|must fit|lacks", lambda: RunConfig.from_json(value))


def test_overrides_of_odd_make():
    refused(
        "train.steps cannot be .*nested too deeply",
        lambda: configs.load("digits", ["train.steps=" + "[" * 5000]),
    )
    refused("train.steps cannot be", lambda: configs.load("digits", ["train.steps=" + "9" * 5000]))
    refused("text without zero bytes", lambda: configs.load("digits", ["data.path=a\0b"]))


# Studies


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("recipe = 3", "recipe must be a string, got 3"),
        ("sizes = 3", "sizes must be a table of keys, got 3"),
        ("sizes.S = 3", "sizes.S must be a table of keys, got 3"),
        ("common = []", "common must be a table"),
        ("extends = ['x']", "extends must be the name or the path of a study"),
        ("[[measure]]\nwhere = 3", "where must be a table"),
        ("[[measure]]\nsample = 3", "sample must be a table"),
        (
            "[[measure]]\nsample.steps = [" + "1," * 300 + "]\nsample.seed = [" + "1," * 300 + "]",
            "10,000 measurements",
        ),
        ("common.train.steps = 2020-01-01", "train.steps cannot be datetime.date"),
    ],
)
def test_declarations_of_odd_make(text: str, says: str, tmp_path: Path):
    given = "\n".join(line for line in text.splitlines())
    rest = "" if text.startswith("recipe") else 'recipe = "digits-paper"\n'
    runs = "[[runs]]\nmodel.patch_size = 4\n"
    (tmp_path / "mine.toml").write_text(rest + (given + "\n" + runs if "[[" not in given else runs + given))
    refused(says, lambda: studies.load(str(tmp_path / "mine.toml")))


def study_folder(folder: Path) -> Path:
    from made_tables import study

    whole = study()
    tables.write(tables.Table(whole.about, whole.rows[:5], whole.losses[:5]), folder)
    return folder


@pytest.mark.parametrize(
    ("file", "old", "new", "says"),
    [
        ("table.csv", "S/1,final", "S/1\xff,final", "table.csv cannot be read as a study's table: 'utf-8'"),
        ("table.csv", "adaln_zero,64,", "adaln_zero,0,", "line 2: tokens is 0, which must be above 0"),
        (
            "table.csv",
            "adaln_zero,64,",
            "adaln_zero,6.5,",
            "tokens must be a whole number of at least 0, got '6.5'",
        ),
        ("table.csv", "adaln_zero,64,", "adaln_zero,64,1,2,3,4,5,6,7,8,9,0,", "must be|more cells than"),
        ("table.csv", "name,part,", "name,name,", "the column 'name' appears twice"),
        ("table.csv", "S/1,final", "a" * 200_000 + ",final", "field larger than field limit"),
        ("losses.csv", "S/1,20,", "S/1,20,nan", "line 2: loss must be a finite number"),
        ("losses.csv", "name,steps,loss", "name,steps", "line 2 lacks one of"),
        ("study.json", '"sizes": [', '"sizes": [{}, ', r"sizes is \[{}"),
        ("study.json", '"protocols": {}', '"protocols": {"x": 0.5}', "protocols is {'x': 0.5}"),
        ("study.json", '"floor": 1.9', '"floor": NaN', "floor is nan"),
        ("study.json", '"title": "Digits"', '"title": "\\ud800"', "surrogates not allowed"),
    ],
)
def test_studies_of_odd_make(file: str, old: str, new: str, says: str, tmp_path: Path):
    path = study_folder(tmp_path) / file
    text = path.read_text()
    assert old in text
    path.write_bytes(text.replace(old, new, 1).encode("latin-1"))
    refused(says, lambda: tables.read(tmp_path))


def test_more_multiply_adds_than_64_bits_reach_sql(tmp_path: Path):
    """A whole number of SQLite's has 64 bits; the paper's XL/2 takes 2.5e19 multiply-adds."""
    import sqlite3
    from dataclasses import replace

    from made_tables import study

    whole = study()
    table = tables.Table(whole.about, (replace(whole.rows[0], train_macs=24790309640601600000),))
    tables.write(table, tmp_path / "study")
    assert tables.read(tmp_path / "study").rows == table.rows
    tables.to_sqlite(table, tmp_path / "study.sqlite")
    with sqlite3.connect(tmp_path / "study.sqlite") as base:
        assert base.execute("SELECT train_macs FROM results").fetchall() == [(24790309640601600000.0,)]


DECLARED = """
recipe = "digits-paper"
[common]
train.steps = 4
[[runs]]
model.patch_size = 4
"""


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"seconds": "x"}, "seconds is 'x'"),
        ({"losses": [[1]]}, "not enough values"),
        ({"loss_at": {"4": float("nan")}}, "4 is nan"),
        ({"evaluations": [{"step": 4}]}, "it lacks 'protocol'"),
        ({"pictures": "../../../secret.png"}, "is outside of"),
        ({"pictures": None, "evaluations": [{"step": 4, "protocol": 3}]}, "is not iterable|has no attribute"),
    ],
)
def test_results_of_jobs_of_odd_make(changes: dict[str, Any], says: str, tmp_path: Path):
    (tmp_path / "mine.toml").write_text(DECLARED)
    (tmp_path / "secret.png").write_bytes(b"secret")
    study = studies.load(str(tmp_path / "mine.toml"))
    [job, _] = jobs(study)
    queue = Queue(tmp_path / "out", [job])
    found = {"evaluations": [], "losses": [], "loss_at": {}, "pictures": None, "seconds": 1.0}
    (tmp_path / "out" / RESULTS).mkdir(parents=True)
    queue.finish(job, {**found, **changes})
    refused(
        f"{job.key}.json cannot be read as the result of a job: .*{says}.*; delete it",
        lambda: collect(study, queue, ""),
        RunError,
    )


@pytest.mark.parametrize(
    ("wrote", "share"), [("NaN", 0), ("1e999", 0), ("7", 1), ("-1", 0), ('"0.5"', 0.5), ("[]", 0)]
)
def test_how_far_a_job_is(wrote: str, share: float, tmp_path: Path):
    (tmp_path / QUEUE).mkdir()
    (tmp_path / QUEUE / "x.json").write_text(f'{{"share": {wrote}}}')
    assert Queue(tmp_path, [Job("x", {}, 1.0)]).progress("x") == share


# Sample sets


def rewritten(path: Path, name: str, array: bytes) -> Path:
    """An .npz of IMAGES with another member, whose checksum fits."""
    np.savez(path, arr_0=IMAGES, arr_1=np.arange(5))
    with zipfile.ZipFile(path) as archive:
        members = {info.filename: archive.read(info) for info in archive.infolist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for member, data in {**members, name: array}.items():
            archive.writestr(member, data)
    return path


def header(text: str, data: bytes = b"") -> bytes:
    return b"\x93NUMPY\x02\x00" + struct.pack("<I", len(text)) + text.encode() + data


def npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.lib.format.write_array(file, array, allow_pickle=True)
    return file.getvalue()


ZEROS = bytes(6 * 16 * 16 * 3)
PLAIN = "{'descr': '|u1', 'fortran_order': False, 'shape': "


@pytest.mark.parametrize(
    ("name", "data", "says"),
    [
        ("arr_0", header(PLAIN + "(6, -16, -16, 3)}", ZEROS), "its shape is"),
        ("arr_0", header(PLAIN + "(6, 0, 16, 3)}"), r"the shape \(6, 0, 16, 3\)"),
        ("arr_0", header(PLAIN + "(6, 1"), "no readable header"),
        ("arr_0", header("(" * 5000), "no readable header"),
        ("arr_0", header(" " * (1 << 24)), "arr_0 has a header of 16777216 bytes"),
        ("arr_0", npy(IMAGES.astype(">u2")), "arr_0 has the type >u2; a batch is uint8"),
        ("arr_0", npy(IMAGES / 255), "arr_0 has the type float64; a batch is uint8"),
        ("arr_0", npy(np.asfortranarray(IMAGES)), "Fortran order"),
        ("arr_0", npy(np.array([{}] * 5, dtype=object)), "Python objects, which are never unpickled"),
        ("arr_1", npy(np.array([None] * 5, dtype=object)), "Python objects, which are never unpickled"),
        ("arr_1", npy(np.array([0.5] * 5)), "must be 5 whole numbers"),
        ("arr_1", header(PLAIN + "(0, 1" + "0" * 30 + ")}"), "cannot be read"),
        ("arr_1", npy(np.arange(5)) + bytes(1 << 20), "does not have the length"),
        ("origin", npy(np.array("{")), "says how it was made .origin.: Expecting"),
        ("origin", npy(np.array("[]")), r"origin.: it says \[\]"),
    ],
)  # fmt: skip
def test_arrays_of_odd_make(name: str, data: bytes, says: str, tmp_path: Path):
    path = rewritten(tmp_path / "x.npz", f"{name}.npy", data)
    refused(says, lambda: list(open_samples(path).batches()))


def test_an_array_is_not_overlooked_because_its_name_is_damaged(tmp_path: Path):
    """The directory's own bytes have no checksum: labels would be lost without a word."""
    np.savez(tmp_path / "x.npz", arr_0=IMAGES, arr_1=np.arange(5))
    data = (tmp_path / "x.npz").read_bytes()
    at = data.rindex(b"arr_1.npy")
    (tmp_path / "x.npz").write_bytes(data[:at] + b"arr_7.npy" + data[at + 9 :])
    refused("arr_7", lambda: open_samples(tmp_path / "x.npz"))


def test_labels_and_features_of_the_other_order_of_bytes(tmp_path: Path):
    np.savez(tmp_path / "x.npz", arr_0=IMAGES, arr_1=np.arange(5).astype(">i4"))
    [batch] = open_samples(tmp_path / "x.npz").batches()
    assert (
        batch.labels is not None
        and batch.labels.dtype == np.int64
        and batch.labels.tolist() == [0, 1, 2, 3, 4]
    )
    mu, pool = np.arange(3.0), np.random.default_rng(0).normal(size=(9, 3))
    np.savez(
        tmp_path / "ref.npz", mu=mu.astype(">f4"), sigma=np.eye(3).astype(">f8"), pool=pool.astype(">f4")
    )
    reference = open_reference(tmp_path / "ref.npz", judged.trained(), needs_images=True)
    assert reference.statistics is not None and reference.pool is not None
    assert reference.statistics.mean.tolist() == mu.tolist() and reference.pool.dtype == np.float32
    np.testing.assert_array_equal(reference.pool, pool.astype(np.float32))


def test_a_batch_of_large_images_is_read_in_smaller_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(samples, "IN_MEMORY", 2 * IMAGES[0].nbytes + 1)
    np.savez(tmp_path / "x.npz", arr_0=IMAGES)
    for path in (tmp_path / "x.npz", tarred(tmp_path / "x.tar", tuple(range(5)))):
        batches = list(open_samples(path).batches())
        assert [len(batch.images) for batch in batches] == [2, 2, 1]
        np.testing.assert_array_equal(np.concatenate([batch.images for batch in batches]), IMAGES)


def tarred(path: Path, labels: tuple[object, ...] = (0, 1, 2), packed: bool = False) -> Path:
    from scaledit import images

    with tarfile.open(path, "w:gz" if packed else "w", format=tarfile.USTAR_FORMAT) as archive:
        for i, label in enumerate(labels):
            images.save_png(path.parent / "one.png", IMAGES[i], {"class": label})
            archive.add(path.parent / "one.png", f"{i}.png")
    (path.parent / "one.png").unlink()
    return path


@pytest.mark.parametrize("packed", [False, True])
def test_a_tar_ends_where_its_end_is(packed: bool, tmp_path: Path):
    """tarfile takes a corrupt header, and the end of a file, for the archive's end."""
    path = tarred(tmp_path / ("x.tar.gz" if packed else "x.tar"), packed=packed)
    assert open_samples(path).n == 3
    data = gzip.decompress(path.read_bytes()) if packed else path.read_bytes()
    third = data.index(b"2.png")
    for corrupt, says in (
        (data[:third] + b"X" + data[third + 1 :], "is corrupt after 2 entries; a tar archive ends in zeros"),
        (data[:third], "is cut short after 2 entries"),
        (data[: third + 100], "is corrupt|is cut short after 2"),
    ):
        path.write_bytes(gzip.compress(corrupt) if packed else corrupt)
        refused(says, lambda: open_samples(path))
    path.write_bytes(b"\x1f\x8b" + data[:600])
    refused("cannot be read as a tar archive: Unknown compression method", lambda: open_samples(path))


def test_a_length_that_a_tars_header_claims_is_not_decompressed(tmp_path: Path):
    """A header of extended attributes is read whole, here 2 GB of zeros in 2 MB."""
    entry = tarfile.TarInfo("x")
    entry.type, entry.size = tarfile.XHDTYPE, 2 << 30
    with gzip.open(tmp_path / "x.tar.gz", "wb", compresslevel=1) as file:
        file.write(entry.tobuf())
        file.write(bytes(1 << 20))
    refused("claims 2147483648 bytes", lambda: open_samples(tmp_path / "x.tar.gz"))


@pytest.mark.parametrize("label", ["x", 1.5, True, -1, [1], 10**30])
def test_a_class_in_a_picture_is_a_whole_number(label: object, tmp_path: Path):
    opened = open_samples(tarred(tmp_path / "x.tar", (0, label, 2)))
    refused("1.png says that its class is", lambda: list(opened.batches()))


def test_pixels_of_a_png_are_held_against_its_checksum(tmp_path: Path):
    """Pillow reads the checksums of all chunks but those with the pixels: another image's are shown."""
    (tmp_path / "set").mkdir()
    for i in range(3):
        Image.fromarray(IMAGES[i]).save(tmp_path / f"set/{i}.png", compress_level=0)
    [batch] = open_samples(tmp_path / "set").batches()
    np.testing.assert_array_equal(batch.images, IMAGES[:3])
    one, other = ((tmp_path / f"set/{i}.png").read_bytes() for i in (1, 2))
    begin, end = one.index(b"IDAT") + 4, one.index(b"IEND") - 8
    corrupt = one[:begin] + other[begin:end] + one[end:]
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(corrupt))), IMAGES[2])
    (tmp_path / "set/1.png").write_bytes(corrupt)
    opened = open_samples(tmp_path / "set")
    refused("1.png cannot be read as a PNG: its chunk 'IDAT' does not match", lambda: list(opened.batches()))
    for k in range(0, len(one), 7):
        (tmp_path / "set/1.png").write_bytes(one[:k])
        refused("1.png cannot be read as a PNG", lambda: list(open_samples(tmp_path / "set").batches()))


def test_a_part_with_other_images_than_it_should_have(tmp_path: Path):
    for k, n in enumerate((2, 1)):
        np.savez(tmp_path / f"part-{k:05d}.npz", arr_0=IMAGES[:n], arr_1=np.arange(n))
    (tmp_path / "request.json").write_text(json.dumps({"n": 4, "part": 2}))
    refused("part-00001.npz contains 1 image instead of 2", lambda: list(open_samples(tmp_path).batches()))


# References, results, extractors


def reference(path: Path, **changes: Any) -> Path:
    rows = np.random.default_rng(0).normal(size=(9, 3)).astype(np.float32)
    arrays = {"mu": rows.mean(0), "sigma": np.cov(rows.T).astype(np.float32), "pool": rows}
    np.savez(path, **{**arrays, **changes})
    return path


ASYMMETRIC = np.eye(3)
ASYMMETRIC[0, 1] = 0.5


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"sigma": ASYMMETRIC}, "sigma is not a covariance, because it is not symmetric"),
        (
            {"sigma": np.diag([1.0, -0.5, 1.0])},
            "sigma is not a covariance, because it has negative eigenvalues",
        ),
        ({"sigma": np.full((3, 3), np.nan)}, "sigma must be finite floating-point numbers"),
        ({"mu": np.array([1e300, 0, 0])}, "numbers that are too large for features"),
        ({"mu": np.zeros((3, 1))}, r"pool has the shape \(9, 3\)"),
        ({"sigma": np.eye(4)}, "are not a mean and a covariance"),
        ({"mu": np.arange(3)}, "mu must be finite floating-point numbers"),
        ({"pool": np.zeros((9, 4))}, r"pool has the shape \(9, 4\)"),
        ({"pool": np.full((9, 3), np.inf)}, "pool must be finite floating-point numbers"),
        ({"pool": np.array([None] * 3)}, "Python objects, which are never unpickled"),
        ({"origin": np.array('{"n": -1}')}, "says that it was made of -1 images"),
        ({"origin": np.array('{"n": true}')}, "says that it was made of True images"),
        ({"origin": np.array('{"n')}, "says how it was made .origin."),
    ],
)
def test_references_of_odd_make(changes: dict[str, Any], says: str, tmp_path: Path):
    path = reference(tmp_path / "ref.npz", **changes)
    refused(f"ref.npz.*{says}", lambda: open_reference(path, judged.trained(), needs_images=True))


def test_a_covariance_may_be_rounded_and_of_few_images(tmp_path: Path):
    """Of 9 images in 64 dimensions, in float32: most eigenvalues are 0 but for rounding, some below."""
    rows = np.random.default_rng(0).normal(size=(9, 64)) * np.geomspace(1e-3, 1e3, 64)
    path = reference(tmp_path / "a.npz", mu=rows.mean(0), sigma=np.cov(rows.T).astype(np.float32), pool=rows)
    assert np.linalg.eigvalsh(np.load(path)["sigma"].astype(np.float64)).min() < 0
    assert open_reference(path, judged.trained(), needs_images=True).statistics is not None


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"fid": "x"}, "its fid is 'x'"),
        ({"fid": True}, "its fid is True"),
        ({"fid": None}, "its fid is None"),
        ({"fid": 10**400}, r"its fid is 10{99}\.\.\."),
        ({"fid_std": [1]}, r"its fid_std is \[1\]"),
        ({"protocol": []}, r"its protocol is \[\]"),
        ({"protocol": {"image_size": 64}}, "its image_size is 64"),
        ({"protocol": {"image_size": [[], 64]}}, "its image_size is"),
        ({"warnings": "x"}, "its warnings are 'x'"),
        ({"name": 3}, "its name is 3"),
    ],
)
def test_results_of_odd_make(changes: dict[str, Any], says: str, tmp_path: Path):
    good = Result("a", {"fid": MetricValue(2.5, 0.1, 1.0)}, {"image_size": [8, 8]}, ["few"])
    path = tmp_path / "x.json"
    path.write_text(json.dumps(good.to_json()))
    assert Result.read(path) == good
    path.write_text(json.dumps({**good.to_json(), **changes}))
    refused(
        f"x.json cannot be read as a result of scaledit evaluate --json: {says}", lambda: Result.read(path)
    )


@pytest.mark.parametrize(
    ("figure", "written"),
    [
        (MetricValue(6.518, 0.987), "6.52 ± 0.99"),
        (MetricValue(6.518, 0.0), "6.518 ± 0"),
        (MetricValue(6.518, float("nan")), "6.518 ± nan"),
        (MetricValue(float("inf"), float("inf")), "inf ± inf"),
        (MetricValue(1e300, 1e-300), "1e+300 ± 1e-300"),
    ],
)
def test_figures_of_odd_size_are_written(figure: MetricValue, written: str):
    assert str(figure) == written


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"num_hidden_layers": 10**9}, "num_hidden_layers 1000000000, but its weights have 1"),
        ({"hidden_size": 16}, "hidden_size 16, but its weights have 8"),
        ({"num_attention_heads": 0}, "cannot be read as a DINOv2"),
        ({"model_type": ["x"]}, r"contains a model of the type \['x'\]"),
    ],
)
def test_dinov2_of_another_size(changes: dict[str, Any], says: str, tmp_path: Path):
    from transformers import Dinov2Config, Dinov2Model

    small = Dinov2Config(hidden_size=8, num_hidden_layers=1, num_attention_heads=2, image_size=28)
    Dinov2Model(small).save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    refused(says, lambda: load_dinov2(str(tmp_path)))


def test_dinov2_without_a_weight_is_not_filled_with_random_numbers(tmp_path: Path):
    from safetensors.torch import load_file, save_file
    from transformers import Dinov2Config, Dinov2Model

    small = Dinov2Config(hidden_size=8, num_hidden_layers=1, num_attention_heads=2, image_size=28)
    Dinov2Model(small).save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    del weights["layernorm.weight"]
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    refused("lacks layernorm.weight", lambda: load_dinov2(str(tmp_path)))
