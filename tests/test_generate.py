"""Very many samples: the same bytes whoever draws them and however often they are interrupted."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from processes import At, Gate, scaledit
from scaledit import load
from scaledit.cli import main
from scaledit.config import SampleConfig
from scaledit.diffusion.noise import Stream, uniform
from scaledit.evaluation.samples import open_samples
from scaledit.sampling.request import Request, labels_at
from tiny import TINY

NUM = 1100  # five parts, the last one short
DRAW = ["--num", str(NUM), "--steps", "4", "--seed", "7"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("generate") / "run"
    assert main(["train", "digits", "--out", str(out), *TINY, "train.steps=4"]) == 0
    return out


@pytest.fixture(scope="module")
def whole(run: Path) -> Path:
    """Drawn by one process without interruption."""
    out = run.parent / "whole.npz"
    assert main(["generate", str(run), *DRAW, "--out", str(out)]) == 0
    return out


def test_image_i_is_a_function_of_its_index(run: Path, whole: Path):
    file = np.load(whole)
    assert file["arr_0"].shape == (NUM, 8, 8, 3)
    labels = (uniform(7, range(NUM), Stream.SAMPLE_LABEL).numpy() * 10).astype(int)
    np.testing.assert_array_equal(file["arr_1"], labels)
    chosen = range(620, 640)
    alone = load(run)(labels[chosen].tolist(), seed=7, start=620, steps=4)
    np.testing.assert_array_equal(file["arr_0"][chosen], alone)
    origin = json.loads(str(file["origin"]))
    assert (origin["n"], origin["labels"], origin["seed"], origin["sampler"]["steps"]) == (
        NUM,
        "uniform",
        7,
        4,
    )
    assert open_samples(whole).n == NUM


def test_shards_make_the_same_file(run: Path, whole: Path, tmp_path: Path):
    out = tmp_path / "sharded.npz"
    words = ["generate", str(run), *DRAW, "--out", str(out)]
    for process in [scaledit(*words, "--shard", f"{i}/3", beside=tmp_path) for i in (2, 0, 1)]:
        assert process.wait() == 0, process.said()
    assert out.read_bytes() == whole.read_bytes()
    assert [path.name for path in tmp_path.iterdir()] == [out.name]  # nothing else is left


def test_killed_and_run_again_it_makes_the_same_file(run: Path, whole: Path, tmp_path: Path):
    out = tmp_path / "killed.npz"
    words = ["generate", str(run), *DRAW, "--out", str(out)]
    parts = tmp_path / "killed.npz.parts"
    for there in (1, 3):  # killed when so many parts are there, and the next one has no name yet
        gate = Gate(tmp_path / f"gate-{there}")
        process = scaledit(
            *words, beside=out, before=At("os:replace", gate, argument=f"*/part-{there:05}.npz")
        )
        gate.reached(process)
        process.kill()
        assert len(list(parts.glob("part-*.npz"))) == there
        assert list(parts.glob(f".part-{there:05}.npz.*"))
        assert not out.exists()
    before = {path: path.stat().st_mtime_ns for path in parts.glob("part-*.npz")}
    assert main(["generate", str(run), *DRAW, "--shard", "4/5", "--out", str(out)]) == 0  # not all of it
    assert all(path.stat().st_mtime_ns == when for path, when in before.items())
    assert main(["generate", str(run), *DRAW, "--out", str(out)]) == 0
    assert out.read_bytes() == whole.read_bytes()


def test_a_folder_of_parts_is_a_sample_set_once_it_is_complete(
    run: Path, whole: Path, tmp_path: Path, capsys
):
    out = tmp_path / "parts"
    assert main(["generate", str(run), *DRAW, "--shard", "0/2", "--out", str(out), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told.pop("seconds") > 0 and told.pop("images_per_second") > 0
    assert told == {"out": str(out), "images": 600, "generated": 600, "complete": False}
    assert main(["evaluate", str(out), "--reference", "digits"]) == 2
    assert "is incomplete: 2 of 5 parts are missing" in capsys.readouterr().err
    assert main(["generate", str(run), *DRAW, "--shard", "1/2", "--out", str(out)]) == 0
    batches = list(open_samples(out).batches())
    images, labels = (np.concatenate([batch[i] for batch in batches]) for i in (0, 1))
    np.testing.assert_array_equal(images, np.load(whole)["arr_0"])
    np.testing.assert_array_equal(labels, np.load(whole)["arr_1"])


def test_another_request_does_not_mix_with_what_is_there(run: Path, whole: Path, tmp_path: Path, capsys):
    other = [word if word != "7" else "8" for word in DRAW]
    assert main(["generate", str(run), *other, "--out", str(whole)]) == 2
    assert "contains other samples" in capsys.readouterr().err
    out = tmp_path / "parts"
    assert main(["generate", str(run), *DRAW, "--shard", "0/5", "--out", str(out)]) == 0
    assert main(["generate", str(run), *other, "--out", str(out)]) == 2
    assert "another request (seed: 7 -> 8)" in capsys.readouterr().err
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").touch()
    assert main(["generate", str(run), *DRAW, "--out", str(tmp_path / "mine")]) == 2
    assert "is not empty and contains no generated samples" in capsys.readouterr().err
    for arguments, says in (
        (["--shard", "3/3"], "--shard must be I/N with I from 0 to N-1"),
        (["--num", "1"], "--num must be at least 2"),
        (["--classes", "11"], "class 11 is out of range"),
    ):
        assert main(["generate", str(run), *arguments, "--out", str(tmp_path / "x.npz")]) == 2
        assert says in capsys.readouterr().err


def test_a_damaged_part_is_named(run: Path, tmp_path: Path, capsys):
    out = tmp_path / "corrupt.npz"
    assert main(["generate", str(run), *DRAW, "--shard", "0/2", "--out", str(out)]) == 0
    part = tmp_path / "corrupt.npz.parts" / "part-00002.npz"
    part.write_bytes(part.read_bytes()[:-50])
    assert main(["generate", str(run), *DRAW, "--out", str(out)]) == 1
    assert "part-00002.npz is corrupt" in capsys.readouterr().err
    assert not out.exists()
    part.unlink()
    assert main(["generate", str(run), *DRAW, "--out", str(out)]) == 0


def test_rules_of_labels():
    classes = (2, 5, 9)
    assert labels_at("equal", range(4, 8), classes, 0).tolist() == [5, 9, 2, 5]
    drawn = labels_at("uniform", range(30_000), classes, 3)
    assert drawn[100:200].tolist() == labels_at("uniform", range(100, 200), classes, 3).tolist()
    counts = np.array([(drawn == c).sum() for c in classes])
    assert counts.sum() == 30_000
    assert np.abs(counts - 10_000).max() < 5 * np.sqrt(30_000 * 2 / 9)
    real = Request((4, 4, 1), SampleConfig(), num=5, rule="real")
    assert real.labels() == [4, 4, 1, 4, 4]
