"""A run folder when things go wrong around it: other data, corrupt files, full disks, signals, other jobs."""

from __future__ import annotations

import dataclasses
import errno
import fcntl
import json
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from demos import SCALEDIT
from processes import Job, scaledit
from saved import identical, weights
from scaledit import checkpoint, cli
from scaledit.config import RunConfig
from scaledit.data.sets import Images, digits
from scaledit.errors import RunError, UsageError
from scaledit.files.atomic import atomic_write, partial_beside
from scaledit.files.manifest import sealed
from scaledit.files.writer import Writer
from scaledit.training import log
from scaledit.training.dit import train
from scaledit.training.events import DataChanged, DataRecorded, Event, Finished, Saved, Started
from scaledit.training.folder import CONFIG, STATUS, lock
from scaledit.training.log import JsonLog
from scaledit.training.same_data import fingerprint
from scaledit.training.watch import Watch
from tiny import TINY, tiny

QUIET = ("evaluate.reference=", "train.steps=12", "checkpoint.every=4", "checkpoint.background=false")


def run(config: RunConfig, out: Path, **options) -> list[Event]:
    events, listen = [], JsonLog(out)
    for event in train(config, out, device="cpu", **options):
        listen(event)
        events.append(event)
    return events


def until_saved(config: RunConfig, out: Path, **options) -> None:
    """To the first checkpoint; the loop is abandoned there, as by a kill."""
    listen = JsonLog(out)
    for event in train(config, out, device="cpu", **options):
        listen(event)
        if isinstance(event, Saved):
            return


def start(out: Path, *overrides: str, before: Callable[[], None] | None = None) -> Job:
    words = ["train", "digits", "--device", "cpu", "--resume", "auto", "--out", str(out)]
    return scaledit(*words, *TINY, *QUIET, *overrides, beside=out, before=before)


def resume_of(out: Path) -> str:
    """How a job that `start` started says it is resumed, by its folder."""
    return f"to resume, run: scaledit train {out} --device cpu"


def status(out: Path) -> dict:
    return json.loads((out / STATUS).read_text())


def until(what: Callable[[], object]) -> None:
    deadline = time.monotonic() + 120
    while not what():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.005)


def contents(folder: Path) -> dict[str, bytes]:
    """Every file but the locks and those of ranks."""
    files = (path for path in folder.rglob("*") if path.is_file() and ".run" not in path.parts)
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


# Other data


def pictures(folder: Path, classes: tuple[str, ...] = ("ant", "bee", "cat"), seed: int = 0) -> Path:
    for label, name in enumerate(classes):
        (folder / name).mkdir(parents=True)
        for i in range(4):
            rng = np.random.default_rng((seed, label, i))
            image = Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8))
            image.save(folder / name / f"{i}.png")
    return folder


def of_pictures(folder: Path, *overrides: str, classes: int = 3) -> RunConfig:
    data = ("data.name=images", "data.image_size=8", f"data.path={folder}", "data.workers=0")
    model = ("model.in_channels=3", f"model.num_classes={classes}")
    return tiny(*QUIET, *data, *model, *overrides)


def renamed(folder: Path) -> None:
    (folder / "bee").rename(folder / "bug")


def added(folder: Path) -> None:
    shutil.copytree(folder / "cat", folder / "dog")


def removed(folder: Path) -> None:
    (folder / "cat" / "3.png").unlink()


def swapped(folder: Path) -> None:
    """Class names and numbers stay; what they mean does not."""
    (folder / "ant").rename(folder / "was ant")
    (folder / "bee").rename(folder / "ant")
    (folder / "was ant").rename(folder / "bee")


def painted(folder: Path) -> None:
    shutil.rmtree(folder)
    pictures(folder, seed=1)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (renamed, "class 1 was 'bee' and is now 'bug'"),
        (added, r"3 classes before, 4 now \(new: 'dog'\); 12 images before, 16 images now"),
        (removed, "12 images before, 11 images now"),
        (swapped, r"as many images \(12\) in the same classes, but other images"),
        (painted, r"as many images \(12\) in the same classes, but other images"),
    ],
)
def test_other_data_is_named_and_refused(tmp_path: Path, change: Callable[[Path], None], named: str):
    """Nothing is written; where the model fits, data.changed=accept goes on, which the log tells."""
    folder, out = pictures(tmp_path / "data"), tmp_path / "run"
    until_saved(of_pictures(folder), out)
    change(folder)
    before = contents(out)
    with pytest.raises(UsageError, match=rf"trained on up to step 4: {named}.*data.changed=accept"):
        run(of_pictures(folder), out, resume="auto")
    assert contents(out) == before
    accepting = of_pictures(folder, "data.changed=accept")
    if change is added:
        with pytest.raises(UsageError, match="the model has 3"):
            run(accepting, out, resume="auto")
        return
    events = run(accepting, out, resume="auto")
    assert [type(event) for event in events[:2]] == [DataChanged, Started]
    (line,) = [line for line in log.read(out) if line["event"] == "datachanged"]
    assert line["step"] == 4 and len(line["changes"]) == 1
    assert isinstance(run(of_pictures(folder), out, resume="auto")[0], Started)  # what it is by now


def test_a_moved_folder_is_the_same_data(tmp_path: Path):
    """Also one of a single class, which is named after its folder."""
    folder = pictures(tmp_path / "data", classes=("ant",))
    config = lambda path: of_pictures(path, classes=1)  # noqa: E731
    until_saved(config(folder / "ant"), tmp_path / "run")
    moved = folder.rename(tmp_path / "elsewhere") / "ant"
    moved = moved.rename(moved.with_name("ants"))
    events = run(config(moved), tmp_path / "run", resume="auto")
    assert isinstance(events[0], Started) and isinstance(events[-1], Finished)


def unrecorded(out: Path) -> None:
    """Makes the checkpoints those of a run made before data was recorded."""
    for folder in checkpoint.find(out / "checkpoints"):
        manifest = json.loads((folder / "manifest.json").read_bytes())
        del manifest["sha256"], manifest["state"]["data"]
        (folder / "manifest.json").write_bytes(sealed(manifest))


def test_a_run_of_old_is_said_to_have_no_record_and_gets_one(tmp_path: Path):
    folder, out = pictures(tmp_path / "data"), tmp_path / "run"
    until_saved(of_pictures(folder), out)
    unrecorded(out)
    events = run(of_pictures(folder), out, resume="auto")
    assert [type(event) for event in events[:2]] == [DataRecorded, Started]
    assert isinstance(run(of_pictures(folder), out, resume="auto")[0], Started)  # once
    painted(folder)
    with pytest.raises(UsageError, match="but other images"):
        run(of_pictures(folder), out, resume="auto")


def test_a_run_of_old_keeps_its_classes(tmp_path: Path):
    """Their names are in its checkpoints: classes in another order are told, and never trained on."""
    out = tmp_path / "run"
    images = dataclasses.replace(digits(), class_names=tuple("abcdefghij"))
    until_saved(tiny(*QUIET), out, dataset=images)
    unrecorded(out)
    other = dataclasses.replace(images, class_names=tuple("abdcefghij"))
    with pytest.raises(UsageError, match=r"another order \(class 2 was 'c' and is now 'd'\)"):
        run(tiny(*QUIET), out, resume="auto", dataset=other)


def test_what_a_fingerprint_depends_on():
    """Pixels and labels, bit by bit; not the names of classes, which are compared apart."""
    images = digits()
    pixels, labels = images.images.clone(), images.labels.clone()
    pixels[-1, 0, 7, 7] += 2**-20
    labels[0] = 9 - labels[0]
    others = [dataclasses.replace(images, images=pixels), dataclasses.replace(images, labels=labels)]
    assert len({fingerprint(one) for one in (images, *others)}) == 3
    names = dataclasses.replace(images, class_names=tuple("abcdefghij"), flip=True)
    assert fingerprint(names) == fingerprint(images)


def test_an_autoencoder_run_compares_its_data(tmp_path: Path, group_umask: None):
    pytest.importorskip("diffusers")
    from scaledit import config as configs
    from scaledit.autoencoders.config import AutoencoderRun
    from scaledit.training import autoencoder

    model = ("model.widths=[8, 8, 8]", "model.groups=4", "train.crop=0", "train.batch_size=6")
    overrides = [*model, "train.steps=4", "checkpoint.every=2", "evaluate.num=2", "optimizer.decay=constant"]
    config = configs.load("photos-ae", [*overrides, "checkpoint.background=false"], AutoencoderRun)
    x = torch.rand(6, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    images = Images(x, torch.zeros(6, dtype=torch.int64), ("all",))
    of = lambda dataset: autoencoder.train(  # noqa: E731
        config, tmp_path / "run", resume="auto", device="cpu", dataset=dataset, held_out=images
    )
    for event in of(images):
        if isinstance(event, Saved):
            break
    with pytest.raises(UsageError, match=r"up to step 2.*but other images"):
        list(of(dataclasses.replace(images, images=-x)))
    assert isinstance(list(of(images))[-1], Finished)
    files = [*(tmp_path / "run" / "autoencoder").iterdir()]
    assert {path.stat().st_mode & 0o777 for path in files} == {0o664}, files


# The log and the status

DAMAGE = {
    "no JSON": b"step 3",
    "a list": b"[1, 2]",
    "a number": b"3",
    "no step": b'{"event": "stepped", "loss": 0.5}',
    "no event": b'{"step": 2}',
    "a step in words": b'{"event": "stepped", "step": "2", "loss": 0.5, "seconds": 1}',
    "a step below 0": b'{"event": "stepped", "step": -2, "loss": 0.5, "seconds": 1}',
    "true for a step": b'{"event": "stepped", "step": true, "loss": 0.5, "seconds": 1}',
    "a loss that is a list": b'{"event": "stepped", "step": 2, "loss": [0.5], "seconds": 1}',
    "no loss": b'{"event": "stepped", "step": 2, "seconds": 1}',
    "another file's path": b'{"event": "sampled", "step": 2, "path": "/etc/passwd"}',
    "a path too long": b'{"event": "sampled", "step": 2, "path": "' + b"a" * 256 + b'.png"}',
    "a path out of the folder": b'{"event": "sampled", "step": 2, "path": "../a.png"}',
    "a result without a protocol": b'{"event": "evaluated", "step": 2, "fd_digits": 1}',
    "NUL bytes": b"\0" * 500,
    "bytes that are not UTF-8": b'{"event": "stepped", "step": 2, "loss": 0.5, "seconds": 1, "a": "\xff"}',
    "nested too deep": b"[" * 100_000,
    "a number too long": b'{"event": "stepped", "step": ' + b"1" * 5000 + b"}",
}


def test_damaged_lines_of_the_log_are_set_aside(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    """Between the good lines, which all count; the run goes on as if nothing had been."""
    whole, out = tmp_path / "whole", tmp_path / "run"
    run(tiny(*QUIET), whole)
    until_saved(tiny(*QUIET), out)
    path = out / log.LOG
    good = path.read_bytes().splitlines()
    bad = list(DAMAGE.values())
    mixed = [line for pair in zip(bad, good * len(bad), strict=False) for line in pair]
    mixed = [*dict.fromkeys(mixed)]  # each once
    path.write_bytes(b"\n".join([*mixed, b'{"event": "stepped", "st']))
    before = log.read(out)
    assert [json.dumps(line).encode() for line in before] == [line for line in mixed if line in good]
    caplog.clear()
    events = run(tiny(*QUIET), out, resume="auto")
    assert isinstance(events[-1], Finished)
    assert identical(weights(out), weights(whole))
    steps = [
        [line["step"] for line in log.read(folder) if line["event"] == "stepped"] for folder in (out, whole)
    ]
    assert steps[0] == steps[1] == list(range(1, 13))
    assert (out / log.CORRUPT).read_bytes().splitlines() == bad
    assert f"{path} is corrupt: {len(bad)} lines are set aside in {log.CORRUPT}" in caplog.text
    assert caplog.text.count("is corrupt") == 1


def test_a_run_with_a_damaged_log_makes_its_report(tmp_path: Path):
    """The command line, from a log of which every kind of line was hurt."""
    out = tmp_path / "run"
    job = start(out, "sample.every=4")
    assert job.wait() == 0, job.said()
    path = out / log.LOG
    lines = path.read_bytes().splitlines()
    path.write_bytes(b"\n".join([b"\0" * 9, *(line[:-9] for line in lines), lines[2], b"nonsense"]) + b"\n")
    again = start(out, "sample.every=4", "train.steps=14")
    assert again.wait() == 0, again.said()
    assert "Traceback" not in again.said()
    assert "set aside in log.jsonl.corrupt" in " ".join(again.said().split())
    assert status(out)["state"] == "finished"
    assert (out / "report.html").is_file()


def limited() -> None:
    """No file beyond 20,000 bytes, as where the disk is full."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))


def tightly_limited() -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (5_000, 5_000))


@pytest.mark.parametrize(
    ("limit", "overrides", "named"),
    [
        (limited, ("train.steps=4000", "checkpoint.every=4000"), "log.jsonl: File too large"),
        (
            tightly_limited,
            ("sample.every=1", "sample.per_class=30", "checkpoint.every=4000"),
            "samples/step-00000001.png: File too large",
        ),
    ],
)
def test_a_full_disk_is_named_and_told(tmp_path: Path, limit, overrides: tuple[str, ...], named: str):
    """Beside a checkpoint that stays: exit 1, the file, status.json; with room again it goes on."""
    out = tmp_path / "run"
    if limit is limited:
        until_saved(tiny(*QUIET), out)
    job = start(out, *overrides, before=limit)
    assert job.wait() == 1, job.said()
    said = " ".join(job.said().split())
    assert f"scaledit: {out}/{named}" in said
    assert f"the checkpoints are intact; {resume_of(out)}" in said
    assert "Traceback" not in said
    found = status(out)
    assert (found["state"], found["exit_code"]) == ("failed", 1)
    assert named in found["reason"]
    assert isinstance(run(tiny(*QUIET), out, resume="auto")[-1], Finished)


class Held:
    """Hooks into a job, before it begins: what happens when its training is at step 5."""

    def __init__(self, *what: str):
        self.what = what

    def __call__(self) -> None:
        from scaledit.training.learner import Learner

        advance = Learner.train_step
        watches: list[Watch] = []
        look = Watch._look

        def looking(watch: Watch) -> None:
            watches[:] = [watch]
            watch.interval, watch.clock.longest = 0.1, 0.2  # as of a time-out of 2 seconds
            self.looks += 1
            look(watch)

        def advancing(learner, stop: bool = False):
            if learner.step == 5 and not self.done:
                self.done = True
                for name in self.what:
                    getattr(self, name)(*watches)
            return advance(learner, stop)

        self.looks, self.done = 0, False
        Watch._look = looking
        Learner.train_step = advancing  # pyright: ignore[reportAttributeAccessIssue]

    def paused(self, watch: Watch) -> None:
        """Stopped for longer than the time-out; training moves only after the watch has looked twice."""
        watch.heartbeat("held", 5)
        patient, watch.timeout = watch.timeout, 1.0
        os.kill(os.getpid(), signal.SIGSTOP)
        looks = self.looks
        while self.looks < looks + 2:
            time.sleep(0.01)
        watch.timeout = patient

    def interrupted(self, watch: Watch) -> None:
        os.kill(os.getpid(), signal.SIGINT)

    def killed(self, watch: Watch) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def faulty(self, watch: Watch) -> None:
        raise ValueError("nobody expected this")


def test_a_job_that_was_stopped_and_continued_goes_on(tmp_path: Path):
    """SIGSTOP for two and a half times engine.timeout, then SIGCONT."""
    out = tmp_path / "run"
    job = start(out, before=Held("paused"))
    until(lambda: not job.running() or is_stopped(job.pid))
    time.sleep(2.5)  # the fault itself
    os.kill(job.pid, signal.SIGCONT)
    assert job.wait() == 0, job.said()
    assert status(out)["state"] == "finished"


def is_stopped(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"


def test_ctrl_c_saves_and_says_how_to_go_on(tmp_path: Path):
    out, whole = tmp_path / "run", tmp_path / "whole"
    job = start(out, before=Held("interrupted"))
    assert job.wait() == 75, job.said()
    said = " ".join(job.said().split())
    assert "Ctrl-C again leaves at once" in said
    assert f"stopped by SIGINT after step 7, which is saved; {resume_of(out)}" in said
    assert status(out) | {"time": ""} == {
        "state": "stopped",
        "step": 7,
        "time": "",
        "ranks": 1,
        "reason": "SIGINT",
        "exit_code": 75,
    }
    run(tiny(*QUIET), out, resume="auto")
    run(tiny(*QUIET), whole)
    assert identical(weights(out), weights(whole))


def test_ctrl_c_twice_leaves_at_once(tmp_path: Path):
    out = tmp_path / "run"
    job = start(out, before=Held("interrupted", "interrupted"))
    assert job.wait() == 130, job.said()
    assert f"left at once; {resume_of(out)}" in " ".join(job.said().split())
    found = status(out)
    assert (found["state"], found["exit_code"]) == ("failed", 130)
    assert [path.name for path in checkpoint.find(out / "checkpoints")] == ["step-00000004"]


SITE = """
import os, signal, sys
class Interrupting:
    def find_spec(self, name, path=None, target=None):
        if name == "numpy.exceptions":  # asked for by numpy's part that is written in C
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Interrupting())
"""


@pytest.mark.parametrize("nproc", [1, 2])
def test_ctrl_c_while_libraries_load_is_one_line(tmp_path: Path, nproc: int):
    (tmp_path / "sitecustomize.py").write_text(SITE)
    path = os.pathsep.join([str(tmp_path), *sys.path[2:], str(Path(cli.__file__).parents[1])])
    command = [*SCALEDIT, "train", "digits", "--out", str(tmp_path / "run")]
    if nproc > 1:
        command += ["--nproc", str(nproc)]
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (130, "scaledit: interrupted\n")
    assert not (tmp_path / "run").exists()


def test_a_running_job_says_who_it_is_and_a_failed_one_that_it_failed(tmp_path: Path):
    out = tmp_path / "run"
    job = start(out, before=Held("killed"))
    assert job.wait() == -signal.SIGKILL
    found = status(out)
    assert (found["state"], found["process"], found["host"]) == ("running", job.pid, socket.gethostname())
    job = start(out, before=Held("faulty"))
    assert job.wait() != 0
    assert status(out)["state"] == "failed"
    assert status(out)["reason"] == "ValueError: nobody expected this"


def test_a_life_that_begins_does_not_leave_the_last_ones_word(tmp_path: Path):
    """status.json says "running" before the first event comes."""
    from scaledit.commands.rank import Rank
    from scaledit.training.ranks import Ranks

    out, config = tmp_path / "run", tiny(*QUIET)
    seen: list[dict] = []

    def events(around):
        for event in train(config, out, resume="auto", context=around):
            seen.append(status(out))
            yield event

    handlers = {
        number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
    }
    try:
        for _ in range(2):
            seen.clear()
            assert Rank(config, out, Ranks(torch.device("cpu"))).run(events, lambda: None) == 0
            assert seen[0]["state"] == "running"
            assert status(out)["state"] == "finished"
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


# Locks and leftovers


def test_a_refused_second_job_leaves_the_first_ones_files_alone(tmp_path: Path):
    out = tmp_path / "run"
    events = train(tiny(*QUIET), out, device="cpu")
    next(events)
    (out / ".run" / "rank-0.json").write_text("the first one's")
    (out / STATUS).write_text("the first one's")
    second = start(out)
    assert second.wait() == 2, second.said()
    assert f"another job is training in {out} (process {os.getpid()} on " in " ".join(second.said().split())
    assert (out / ".run" / "rank-0.json").read_text() == (out / STATUS).read_text() == "the first one's"
    events.close()


def without_locks(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    def lockf(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "lockf", lockf)


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_file_system_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int):
    """One job all the same; a job that was killed is replaced, one of another machine is not."""
    without_locks(monkeypatch, number)
    monkeypatch.setattr("scaledit.training.folder.TRIES", 2)
    out, config = tmp_path / "run", tiny(*QUIET)
    held, _ = lock(config, out, "auto")
    holder = out / ".run" / "lock.holder"
    with pytest.raises(UsageError, match=rf"process {os.getpid()} on .* has no locks: .* delete {holder}"):
        lock(config, out, "auto")
    held.release()
    assert not holder.exists()
    killed = subprocess.run(
        [sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True
    )
    here = Writer.here()
    holder.write_text(f"{here._replace(process=int(killed.stdout), began=1)} 00\n")
    lock(config, out, "auto")[0].release()
    # The same number, given to another process since.
    holder.write_text(f"{here._replace(began=here.began - 1)} 00\n")
    lock(config, out, "auto")[0].release()
    for other in (f"{here._replace(machine='0' * 8, process=int(killed.stdout))} 00\n", "", "nonsense"):
        holder.write_text(other)
        with pytest.raises(UsageError, match="another job is training"):
            lock(config, out, "auto")


def test_trouble_with_a_lock_is_not_another_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    without_locks(monkeypatch, errno.EIO)
    with pytest.raises(RunError, match=r"could not write into .*lock: Input/output error"):
        lock(tiny(*QUIET), tmp_path / "run", "auto")


KILLED = """
import os, signal, sys
from pathlib import Path
from scaledit.files.atomic import atomic_write
with atomic_write(Path(sys.argv[1])) as file:
    file.write(b"half")
    file.flush()
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_killed_programs_had_begun_to_write_is_removed(tmp_path: Path):
    """And what programs write that still run, or run elsewhere, is not; nor is what has another name."""
    out = tmp_path / "a.json"
    path = os.pathsep.join([str(Path(cli.__file__).parents[1]), *sys.path[2:]])
    env = {**os.environ, "PYTHONPATH": path}
    done = subprocess.run([sys.executable, "-c", KILLED, str(out)], env=env)
    assert done.returncode == -signal.SIGKILL
    (left,) = tmp_path.iterdir()
    ours = partial_beside(out)
    ours.write_bytes(b"by this process")
    elsewhere = tmp_path / f".a.json.{'0' * 8}-1-1.{'0' * 8}.partial"
    elsewhere.write_bytes(b"in another container, whose processes are counted alike")
    other = tmp_path / left.name.replace("a.json", "b.json")
    other.write_bytes(b"of another file")
    with atomic_write(out) as file:
        file.write(b"whole")
    assert {path.name for path in tmp_path.iterdir()} == {out.name, ours.name, elsewhere.name, other.name}
    assert out.read_bytes() == b"whole"


def test_a_claimed_folder_is_cleared_of_all_partial_files(tmp_path: Path):
    """Of whatever machine, and of names that were given before: nobody else writes there now."""
    out = tmp_path / "run"
    until_saved(tiny(*QUIET), out)
    names = [".config.json.7.partial", f".status.json.{'0' * 8}-1-1.{'0' * 8}.partial", "log.partial"]
    for name in names:
        (out / name).write_bytes(b"half")
    (out / ".run" / ".rank-0.json.7.partial").write_bytes(b"half")
    (out / "mine.partial").write_bytes(b"somebody's own")
    run(tiny(*QUIET), out, resume="auto")
    assert [path.name for path in out.rglob("*partial*")] == ["mine.partial"]


@pytest.fixture
def group_umask():
    before = os.umask(0o002)
    yield
    os.umask(before)


def test_a_folder_of_a_group_is_writable_for_the_group(tmp_path: Path, group_umask: None):
    out = tmp_path / "run"
    run(tiny(*QUIET, "sample.every=4"), out)
    modes = {path: path.stat().st_mode & 0o777 for path in out.rglob("*")}
    assert {modes[path] for path in modes if path.is_dir()} == {0o775}
    assert {modes[path] for path in modes if path.is_file()} == {0o664}
    assert modes[out / ".run" / "lock"] == 0o664


def test_an_old_checkpoint_that_was_moved_and_linked(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    out = tmp_path / "run"
    until_saved(tiny(*QUIET, "checkpoint.keep=2"), out)
    (first,) = checkpoint.find(out / "checkpoints")
    moved = first.rename(tmp_path / "archive")
    first.symlink_to(moved)
    assert isinstance(run(tiny(*QUIET, "checkpoint.keep=2"), out, resume="auto")[-1], Finished)
    assert sorted(path.name for path in (out / "checkpoints").iterdir()) == ["step-00000008", "step-00000012"]
    checkpoint.open_checkpoint(moved).verify()
    assert f"{first} was a link; the link was removed, and {moved} was kept" in caplog.text


# What others may have written


NONSENSE = {
    "step": ["3", -1, 2.5, True, None, [4], 10**30, 5],
    "config": [None, [], "x", 3],
    "state": [None, [], 3],
    "files": [None, [], 3, {"../x": {"size": 1, "sha256": "0"}}, {"/etc/passwd": {"size": 1, "sha256": "0"}}],
    "state.skipped": ["1", -1, None, 10**30],
    "state.seconds": ["1", None, [], 10**400],
    "state.losses": [1, ["a"], [None], {"a": 1}],
    "state.skipped_batches": [1.5, -1, "a"],
    "state.position": [1.5, -1, "a"],
    "state.micro_batch": [0, -1, "a", None],
    "state.accumulate": [0, "a"],
    "state.class_names": [1, [1], "abc", {"a": 1}],
    "state.data": [1, "a", [1]],
    "state.autoencoder_info": [1, "a", [1]],
    "world": ["a", -1, None],
    "version": [1, None],
    "files.model.safetensors": [1, None, {}, {"size": "1", "sha256": "a"}, {"size": 3}],
}


def test_a_manifest_of_nonsense_is_one_sentence(tmp_path: Path):
    """The manifest is sealed again, so its hash is correct. The run resumes from the previous checkpoint."""
    out = tmp_path / "run"
    run(tiny(*QUIET), out)
    folder = checkpoint.find(out / "checkpoints")[-1]
    path = folder / "manifest.json"
    original = json.loads(path.read_bytes())
    del original["sha256"]
    tried = 0
    for key, values in NONSENSE.items():
        for value in values:
            manifest = json.loads(json.dumps(original))
            section, _, name = key.partition(".")
            if name:
                manifest[section][name] = value
            else:
                manifest[section] = value
            path.write_bytes(sealed(manifest))
            found = checkpoint.latest(out / "checkpoints")
            assert found.checkpoint is not None and found.checkpoint.step == 8, (key, value)
            assert found.corrupt[folder].startswith(f"checkpoint {folder} is corrupt: "), (key, value)
            tried += 1
    assert tried > 50


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "3",
        "{",
        "\0\0",
        '{"name": 3, "model": 4}',
        '{"model": {"depth": []}}',
        '{"model": 1.5}',
        '{"model": {"mlp_ratio": 1e999}}',
    ],
)
def test_a_config_of_nonsense_is_one_sentence(tmp_path: Path, text: str):
    out = tmp_path / "run"
    until_saved(tiny(*QUIET), out)
    (out / CONFIG).write_text(text)
    with pytest.raises(
        UsageError, match=rf"{out / CONFIG} cannot be read as a run's config: .*another --out"
    ):
        run(tiny(*QUIET), out, resume="auto")


@pytest.mark.parametrize("text", ["", "[]", "{", "3", '{"rank": 1}', '{"rank": 1, "moves": "a"}'])
def test_damaged_files_of_ranks_are_looked_past(tmp_path: Path, text: str):
    from scaledit.training.ranks import Ranks

    watch = Watch(tmp_path, Ranks(torch.device("cpu"), world=2), 10.0, pytest.fail)
    (tmp_path / ".run").mkdir()
    (tmp_path / ".run" / "rank-1.json").write_text(text)
    watch._look()
    assert list(watch._seen) == [0]


@pytest.mark.parametrize("text", ["", "[]", '{"tests": 3}', '{"tests": "../../x"}'])
def test_damaged_ids_of_wandb_are_one_sentence(tmp_path: Path, text: str):
    pytest.importorskip("wandb")
    from scaledit.training.trackers.wandb import WeightsAndBiases

    tracker = WeightsAndBiases(tiny("log.wandb=tests", "log.wandb_mode=offline"), tmp_path)
    (tmp_path / "wandb").mkdir()
    (tmp_path / "wandb" / "ids.json").write_text(text)
    with pytest.raises(RunError, match=r"ids.json cannot be read as the ids of W&B's runs.*delete it"):
        tracker._id()
