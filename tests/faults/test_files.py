"""Files that are corrupt or missing, disks that are full."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import jobs
import pytest
from jobs import start, start_ranks

from saved import identical, weights
from scaledit import checkpoint
from scaledit.errors import RunError

pytestmark = pytest.mark.faults


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 steps, checkpoints at 28, 35 and 40."""
    out = tmp_path_factory.mktemp("whole") / "run"
    job = start(out)
    assert job.wait() == 0, job.said()
    return out


@pytest.fixture(scope="module")
def sharded_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same run by two ranks, with sharded weights."""
    out = tmp_path_factory.mktemp("sharded") / "run"
    job = start_ranks(out, 2, "engine.parallel=fsdp")
    assert job.wait() == 0, job.said()
    return out


@pytest.mark.parametrize("kind", ["whole_run", "sharded_run"])
def test_flipped_bits(request: pytest.FixtureRequest, happened, repeats, kind: str):
    """A bit of a checkpoint flips"""
    folder = jobs.checkpoints(request.getfixturevalue(kind))[-1]
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    sizes, rng, count = [path.stat().st_size for path in files], random.Random(0), repeats(1000)
    for _ in range(count):
        path = rng.choices(files, sizes)[0] if rng.random() < 0.5 else rng.choice(files)
        data = path.read_bytes()
        bit = rng.randrange(8 * len(data))
        path.write_bytes(data[: bit // 8] + bytes([data[bit // 8] ^ 1 << bit % 8]) + data[bit // 8 + 1 :])
        with pytest.raises(RunError, match=f"{folder.name} is corrupt: .*{path.name}"):
            checkpoint.open_checkpoint(folder).verify()
        path.write_bytes(data)
    checkpoint.open_checkpoint(folder).verify()
    where = "the files of one process" if kind == "whole_run" else "the shards of two ranks"
    happened(
        f"{count:,} single-bit flips in {where}; half of the files drawn by size, half uniformly",
        f"{count:,} of {count:,} were detected, and the file was named.",
    )


@pytest.mark.parametrize("fault", ["cut short", "a bit flipped", "missing", "no manifest"])
@pytest.mark.parametrize("kind", ["whole_run", "sharded_run"])
def test_damaged_on_resume(tmp_path: Path, request: pytest.FixtureRequest, happened, kind: str, fault: str):
    """The newest checkpoint is corrupt on resume"""
    original: Path = request.getfixturevalue(kind)
    out = tmp_path / "run"
    shutil.copytree(original, out)
    folder = jobs.checkpoints(out)[-1]
    victim = sorted(folder.rglob("*.safetensors"), key=lambda path: path.stat().st_size)[-1]
    data = victim.read_bytes()
    if fault == "cut short":
        victim.write_bytes(data[: len(data) // 2])
    elif fault == "a bit flipped":
        victim.write_bytes(data[:-5] + bytes([data[-5] ^ 4]) + data[-4:])
    elif fault == "missing":
        victim.unlink()
    else:
        (folder / "manifest.json").unlink()
    named = "manifest.json" if fault == "no manifest" else str(victim.relative_to(folder))
    job = start(out) if kind == "whole_run" else start_ranks(out, 2, "engine.parallel=fsdp")
    code, said = job.wait(), " ".join(job.said().split())
    assert code == 0, said
    assert f"{folder} is corrupt: {named}" in said, said
    assert "resumed from step 35" in said
    assert (folder.parent / f"corrupt-{folder.name}").is_dir()
    assert identical(weights(out, 40), weights(original, 40))
    file = "a shard" if kind == "sharded_run" else "a file"
    ranks = "two ranks" if kind == "sharded_run" else "one process"
    how = {
        "cut short": f"a truncated {file.removeprefix('a ')}",
        "a bit flipped": f"a flipped bit in {file}",
        "missing": f"a missing {file.removeprefix('a ')}",
        "no manifest": f"a missing manifest, {ranks}",
    }
    happened(
        how[fault],
        "It was named and renamed, and the previous one was used. The final weights are bit-identical.",
    )


def test_all_damaged(tmp_path: Path, whole_run: Path, happened):
    """Every checkpoint is corrupt"""
    out = tmp_path / "run"
    shutil.copytree(whole_run, out)
    for folder in jobs.checkpoints(out):
        (folder / "model.safetensors").write_bytes(b"")
    before = jobs.contents(out)
    job = start(out)
    assert job.wait() == 1
    said = " ".join(job.said().split())
    assert "no checkpoint in" in said
    assert all(f"{folder} is corrupt" in said for folder in jobs.checkpoints(out)), said
    assert "Traceback" not in said
    assert jobs.contents(out) == before
    happened(
        "every model.safetensors emptied",
        "Exit code 1; each corrupt checkpoint is named. Training does not start over; nothing is written.",
    )


MEGABYTES = 1 << 20


@pytest.mark.parametrize("background", ["true", "false"])
@pytest.mark.parametrize("nproc", [1, 2])
def test_full_disk(tmp_path: Path, happened, background: str, nproc: int):
    """The disk is full during a save"""
    disk, wide = tmp_path / "disk", ("model.hidden_size=64", f"checkpoint.background={background}")
    wide = (*wide, "engine.parallel=fsdp") if nproc == 2 else wide
    begin = (lambda out: start(out, *wide)) if nproc == 1 else (lambda out: start_ranks(out, 2, *wide))
    undisturbed = begin(tmp_path / "whole")
    assert undisturbed.wait() == 0, undisturbed.said()
    size = sum(path.stat().st_size for path in jobs.checkpoints(tmp_path / "whole")[-1].rglob("*"))
    with jobs.small_disk(disk, int(2.6 * size)):
        job = begin(disk / "run")
        code, said = job.wait(), " ".join(job.said().split())
        assert code == 1, said
        assert "could not save" in said, said
        assert "No space left on device" in said
        assert "earlier checkpoints are intact" in said
        assert "Traceback" not in said, said
        saved = jobs.checkpoints(disk / "run")
        assert [folder.name for folder in saved] == ["step-00000007", "step-00000014"]
        for folder in saved:
            checkpoint.open_checkpoint(folder).verify()
        shutil.copytree(disk / "run", tmp_path / "moved")
    again = begin(tmp_path / "moved")
    assert again.wait() == 0, again.said()
    assert identical(weights(tmp_path / "moved", 40), weights(tmp_path / "whole", 40))
    how = "in the background" if background == "true" else "while training waits"
    who = "one process" if nproc == 1 else "shards of two ranks"
    happened(
        f"a file system with room for 2.6 checkpoints; written {how}, {who}",
        "Exit code 1 at the third save; both earlier checkpoints are complete. With free space again, the "
        "run resumes and ends bit-identical.",
    )
