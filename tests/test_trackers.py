"""TensorBoard and W&B, the real packages: what they hold in the end is what log.jsonl says."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from PIL import Image

from demos import SCALEDIT
from scaledit import cli, config
from scaledit.autoencoders.config import AutoencoderRun
from scaledit.errors import RunError
from scaledit.evaluation.result import MetricValue, Result
from scaledit.training import log
from scaledit.training.dit import train
from scaledit.training.events import Evaluated, Reconstructed, Saved, Skipped, Started, Stepped
from scaledit.training.log import JsonLog
from scaledit.training.trackers import trackers
from scaledit.training.trackers.base import scalars
from scaledit.training.trackers.wandb import WeightsAndBiases
from tiny import tiny
from tracked import shown_training

BOTH = ("log.tensorboard=true", "log.wandb=tests", "log.wandb_mode=offline")
Curves = dict[str, list[tuple[int, float]]]


def curves_of_log(out: Path) -> Curves:
    found: Curves = {}
    for record in log.read(out):
        for name, value in scalars(record).items():
            found.setdefault(name, []).append((record["step"], value))
    return found


def read_tensorboard(out: Path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(out / "tensorboard"), size_guidance={"scalars": 0, "images": 0})
    events.Reload()
    return events


def curves_of_tensorboard(out: Path) -> Curves:
    events = read_tensorboard(out)
    return {
        name: [(point.step, point.value) for point in events.Scalars(name)]
        for name in events.Tags()["scalars"]
    }


def wandb_records(out: Path, parts: str = "offline-run-*") -> list[tuple[Path, dict]]:
    """(file, record), life after life, as W&B's own program prints them."""
    found = []
    for file in sorted((out / "wandb").glob(f"{parts}/*.wandb")):
        command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(file)]
        env = {**without_wandb(), "WANDB_MODE": "offline"}
        done = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
        found += [(file, json.loads(line)) for line in done.stdout.splitlines()]
    return found


def last_steps(out: Path, parts: str = "offline-run-*") -> list[int]:
    """How far each part of a run is written, -1 where nothing is."""
    records = wandb_records(out, parts)
    steps = dict.fromkeys(sorted((out / "wandb").glob(f"{parts}/*.wandb")), -1)
    for path, items in rows(records):
        steps[path] = max(steps[path], items["_step"])
    return list(steps.values())


def rows(records: list[tuple[Path, dict]]) -> list[tuple[Path, dict]]:
    return [(file, record["history"]["item"]) for file, record in records if record["type"] == "history"]


def curves_of_wandb(records: list[tuple[Path, dict]]) -> Curves:
    found: Curves = {}
    for _, items in rows(records):
        for name, value in items.items():
            if not name.startswith("_") and "picture." not in name:
                found.setdefault(name, []).append((items["_step"], float(value)))
    return found


def same(a: Curves, b: Curves) -> bool:
    """Equal but for float32, which TensorBoard keeps; nan is nan."""
    return a.keys() == b.keys() and all(
        [step for step, _ in a[name]] == [step for step, _ in b[name]]
        and np.array_equal(*(np.float32([value for _, value in c[name]]) for c in (a, b)), equal_nan=True)
        for name in a
    )


CHILD = """
import os, signal, sys, time
from pathlib import Path
from processes import until
from tracked import shown_training
from scaledit import checkpoint
from test_trackers import last_steps
from scaledit.training.dit import train
from scaledit.training.trackers import trackers
from tiny import tiny

def told(events, step):
    for event in events:
        if type(event).__name__ == "Stepped" and event.step == step:
            {what}
        yield event

config, out = tiny(*{overrides!r}), Path({out!r})
shown_training(told(train(config, out, resume="auto", device="cpu"), {step}), out, trackers(config, out))
"""
DIES = """
            until(lambda: [path.name for path in checkpoint.find(out / "checkpoints")][-1:] == [{saved!r}])
            until(lambda: max(last_steps(out)) >= {written})
            os.kill(os.getpid(), signal.SIGKILL)
"""
"""Once a checkpoint is there, and W&B's own process has written so many steps: it writes when it likes."""
LOSES_ITS_CHILDREN = """
            ended = []
            for task in Path("/proc/self/task").iterdir():
                for child in (task / "children").read_text().split():
                    os.kill(int(child), signal.SIGTERM)
                    ended.append(Path("/proc") / child / "stat")
            until(lambda: all(not stat.exists() or ") Z " in stat.read_text() for stat in ended))
"""
NEVER, OFTEN = ({"WANDB_X_TRANSACTION_LOG_FLUSH_INTERVAL": interval} for interval in ("1000000", "0.1"))
"""Seconds until W&B writes what fills no block of its file."""


def without_wandb() -> dict[str, str]:
    """The environment without what W&B puts into it for child processes, and what the user's shell says."""
    return {key: value for key, value in os.environ.items() if not key.startswith("WANDB_")}


def process(out: Path, step: int, what: str, *overrides: str, **env: str) -> subprocess.CompletedProcess[str]:
    """`scaledit train` in a process of its own, to which something happens before it tells of `step`."""
    code = CHILD.format(out=str(out), step=step, what=what, overrides=overrides)
    path = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    env = {**without_wandb(), "PYTHONPATH": path, **env}
    return subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)


@pytest.mark.slow
def test_a_run_that_was_killed_twice_has_every_step_once(tmp_path: Path):
    """The first time before W&B has written a line, then after it has written more than was saved."""
    out = tmp_path / "run"
    overrides = (*BOTH, "train.steps=30", "checkpoint.every=10", "sample.every=10")
    overrides = (*overrides, "sample.early=false", "sample.classes=2")
    died = process(out, 13, DIES.format(saved="step-00000010", written=-1), *overrides, **NEVER)
    assert died.returncode == -9, died.stderr
    assert last_steps(out) == [-1]
    died = process(out, 26, DIES.format(saved="step-00000020", written=21), *overrides, **OFTEN)
    assert died.returncode == -9, died.stderr
    assert max(last_steps(out)) > 20
    run = tiny(*overrides)
    started = shown_training(train(run, out, resume="auto", device="cpu"), out, trackers(run, out))[Started]
    assert started.step == 20

    assert len(last_steps(out, "unfinished-offline-run-*")) == 2  # of the lives that were killed
    records = wandb_records(out)
    truth, board, wandb = curves_of_log(out), curves_of_tensorboard(out), curves_of_wandb(records)
    assert [step for step, _ in truth["train/loss"]] == list(range(1, 31))
    assert same(truth, board)
    for name, curve in truth.items():
        assert [step for step, _ in wandb[name]] == [step for step, _ in curve]
    exact = ("train/loss", "train/grad_norm", "train/learning_rate")  # what is done twice takes another time
    assert same({name: truth[name] for name in exact}, {name: wandb[name] for name in exact})

    events = read_tensorboard(out)
    images = events.Images("samples/picture")
    assert [image.step for image in images] == [10, 20, 30]
    sheet = Image.open(out / "samples" / "step-00000020.png")
    assert (images[1].width, images[1].height) == sheet.size
    assert (
        json.loads(events.Tensors("config/text_summary")[0].tensor_proto.string_val[0][8:-4]) == run.to_json()
    )

    assert len({record["run"]["run_id"] for _, record in records if record["type"] == "run"}) == 1
    shown = [
        (row["_step"], file.parent / "files" / row["samples/picture.path"])
        for file, row in rows(records)
        if "samples/picture.path" in row
    ]
    assert [step for step, _ in shown] == [10, 20, 30]
    for step, path in shown:
        assert path.read_bytes() == (out / "samples" / f"step-{step:08}.png").read_bytes()


def test_what_a_finished_part_holds_is_not_told_again(tmp_path: Path):
    """A run that ends and is resumed twice. The first two parts begin within one second, so W&B adds a number
    to the folder's name."""
    out = tmp_path / "run"
    seen: list[Path] = []
    for steps in (4, 6, 9):
        run = tiny(f"train.steps={steps}", "checkpoint.every=1", *BOTH)
        shown_training(train(run, out, resume="auto", device="cpu"), out, trackers(run, out))
        [new] = set(out.glob("wandb/offline-run-*")) - set(seen)
        if steps == 6 and not new.name.endswith("-1"):
            new = new.rename(f"{seen[0]}-1")
        seen.append(new)
    records = wandb_records(out)
    assert same(curves_of_log(out), curves_of_wandb(records))
    parts: dict[Path, list[int]] = {}
    for path, items in rows(records):
        parts.setdefault(path, []).append(items["_step"])
    assert [steps[-1] for steps in parts.values()] == [4, 6, 9]
    [first] = out.glob(f"wandb/{next(iter(parts)).parent.name}/finished.json")
    for damage in ("{", "{}", '{"step": "4"}'):
        first.write_text(damage)
        with pytest.raises(
            RunError, match=r"finished\.json cannot be read as how far W&B's files go.*delete it"
        ):
            WeightsAndBiases(run, out)._open(9)


def test_a_tracker_turned_on_later_is_told_what_came_before(tmp_path: Path):
    first = tiny("train.steps=6", "checkpoint.every=3")
    shown_training(train(first, tmp_path / "run", device="cpu"), tmp_path / "run")
    longer = tiny("train.steps=9", "checkpoint.every=3", *BOTH)
    told = trackers(longer, tmp_path / "run")
    shown_training(train(longer, tmp_path / "run", resume="auto", device="cpu"), tmp_path / "run", told)
    truth = curves_of_log(tmp_path / "run")
    assert len(truth["train/loss"]) == 9
    assert same(truth, curves_of_tensorboard(tmp_path / "run"))
    assert same(truth, curves_of_wandb(wandb_records(tmp_path / "run")))
    before = {path: path.stat().st_size for path in (tmp_path / "run").glob("*/*") if "log" not in path.name}
    told = trackers(longer, tmp_path / "run")  # nothing is left to do, or to tell
    shown_training(train(longer, tmp_path / "run", resume="auto", device="cpu"), tmp_path / "run", told)
    assert {path: path.stat().st_size for path in before} == before


def made(kind: type, **fields: object) -> Any:
    """An event of this kind; fields of no concern are 1, and so are two terms of a loss."""
    ones = {name: {"mse": 1, "vlb": 1} if name == "terms" else 1 for name in kind._fields}  # pyright: ignore
    return kind(**{**ones, **fields})


class Weighed(NamedTuple):
    """An event that nobody knows."""

    step: int
    grams: int
    share: float
    heavy: bool
    note: str
    missing: float | None = None


def test_every_event_becomes_curves_and_pictures(tmp_path: Path):
    """Also an autoencoder's, numbers that are not finite, judgements, and events that no code names."""
    run = config.load("photos-ae", BOTH, AutoencoderRun)
    picture = tmp_path / "samples" / "step-00000002.png"
    picture.parent.mkdir()
    Image.fromarray(np.full((6, 4, 3), 200, np.uint8)).save(picture)
    figures = {"fd_digits": MetricValue(6.5, 1.0, 4.5), "recall": MetricValue(0.87)}
    listeners = [JsonLog(tmp_path), *trackers(run, tmp_path)]
    events = [
        made(Started, step=0, steps=100),
        made(Skipped, step=1, loss=float("nan"), grad_norm=float("inf")),
        Reconstructed(2, 24.8, 0.75, 96, picture),
        Evaluated(2, Result("run", figures, {"num": 360}, ["few"])),
        Weighed(3, 12, 0.5, True, "new"),
    ]
    for event in events:
        for listener in listeners:
            listener(event)  # pyright: ignore
    for listener in listeners[1:]:
        listener.__exit__(None)
    truth = curves_of_log(tmp_path)
    assert str(truth["skipped/loss"]) == "[(1, nan)]"
    assert truth["evaluate/fd_digits"] == [(2, 6.5)]
    assert truth["evaluate/fd_digits_real"] == [(2, 4.5)]
    assert truth["reconstruction/psnr"] == [(2, 24.8)]
    assert {name for name in truth if name.startswith("weighed")} == {"weighed/grams", "weighed/share"}
    assert same(truth, curves_of_tensorboard(tmp_path))
    assert same(truth, curves_of_wandb(wandb_records(tmp_path)))
    (image,) = read_tensorboard(tmp_path).Images("reconstruction/picture")
    assert (image.width, image.height) == (4, 6)


class RolledBack(NamedTuple):
    step: int
    spiked: int


def test_a_roll_back_voids_what_it_undoes_and_wandb_keeps_it(tmp_path: Path):
    """Steps 3 and 4 are undone; step 5 was not sent yet. A checkpoint saved in the background comes late."""
    listeners = trackers(tiny(*BOTH), tmp_path)
    first = [made(Stepped, step=step, loss=float(step)) for step in range(1, 6)]
    late = made(Saved, step=2, path=tmp_path / "checkpoints")
    second = [made(Stepped, step=step, loss=10.0 + step) for step in range(3, 8)]
    events = [made(Started, step=0, steps=9), *first[:4], late, first[4], RolledBack(2, 5), *second]
    for listener in listeners:
        with listener:
            for event in events:
                listener(event)
    undone = [(1, 1), (2, 2), (3, 3), (4, 4), (5, 15), (6, 16), (7, 17)]
    assert curves_of_wandb(wandb_records(tmp_path))["train/loss"] == undone
    board = curves_of_tensorboard(tmp_path)
    assert board["train/loss"] == [(1, 1), (2, 2), (3, 13), (4, 14), (5, 15), (6, 16), (7, 17)]
    assert board["rolledback/spiked"] == [(2, 5)]


def test_a_tracker_that_fails_does_not_end_the_run(tmp_path: Path):
    """W&B's service is killed, as a cluster's signal to all processes of a job does."""
    done = process(tmp_path / "run", 2, LOSES_ITS_CHILDREN, *BOTH, "train.steps=200")
    assert done.returncode == 0, done.stderr
    assert "W&B gets no more events" in done.stderr
    assert log.read(tmp_path / "run")[-1]["event"] == "finished"
    assert same(curves_of_log(tmp_path / "run"), curves_of_tensorboard(tmp_path / "run"))


@pytest.mark.parametrize("package", ["tensorboard", "wandb"])
def test_a_missing_package_is_named_before_anything_is_written(
    package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    for name in [name for name in sys.modules if name.startswith("torch.utils.tensorboard")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    value = {"tensorboard": "true", "wandb": "project"}[package]
    command = ["train", "digits", "--out", str(tmp_path / "run"), f"log.{package}={value}"]
    assert cli.main(command) == 2
    assert f'pip install "scaledit[{package}]"' in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_wandb_without_anybody_logged_in_is_refused(tmp_path: Path):
    command = [
        "train",
        "digits",
        "--out",
        str(tmp_path / "run"),
        "log.wandb=project",
        "log.wandb_mode=online",
    ]
    done = subprocess.run(
        [*SCALEDIT, *command],
        env={**without_wandb(), "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
    )
    assert (done.returncode, "log.wandb_mode=offline" in done.stderr) == (2, True), done.stderr
    assert not (tmp_path / "run").exists()
