"""Reading ahead in processes gives the same items and the same training; errors name the worker."""

from __future__ import annotations

import gc
import multiprocessing
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from pictures import LAYOUTS, tree
from processes import PATIENCE
from scaledit.autoencoders.cache import Encoding, encode
from scaledit.autoencoders.pixels import Pixels
from scaledit.config import RunConfig
from scaledit.data.files import ImageFiles
from scaledit.data.loader import Loader
from scaledit.data.order import samples_at
from scaledit.data.sets import Batch, Images, digits
from scaledit.data.sources import open_source
from scaledit.errors import RunError
from scaledit.training.dit import train
from scaledit.training.events import Stepped
from scaledit.training.ranks import Ranks
from scaledit.training.state import Reader
from tiny import tiny

SIDE, BATCH = 32, 6
WORKERS = (0, 1, 3)


def reader(path: Path) -> Reader:
    return Reader(ImageFiles(open_source(path), SIDE, flip=True), 7, (3, SIDE, SIDE))


def same(a: object, b: object) -> bool:
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and torch.equal(a, b)
    return all(same(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_is_read_right_from_several_processes(layout: str, tmp_path: Path):
    """Files are opened before the workers are forked; a shared file position would mix up what they read. No
    two pictures are equal, so equal items are the right ones."""
    read = reader(LAYOUTS[layout](tmp_path))
    steps = [range(BATCH * i, BATCH * (i + 1)) for i in range(40)]
    by_hand = [read(positions) for positions in steps]
    for workers in WORKERS:
        loader = Loader(read, BATCH, workers, timeout=PATIENCE)
        assert all(same(loader.take(at), item) for at, item in zip(steps, by_hand, strict=True)), workers


def test_any_positions_and_any_share_may_be_asked_for(tmp_path: Path):
    read = reader(tree(tmp_path / "tree"))
    loader = Loader(read, BATCH, 2, timeout=PATIENCE)
    jumps = [0, 6, 12, 600, 606, 12, 18, 24, 24, 0]  # back, as after a rollback, and twice the same
    for first in jumps:
        at = range(first, first + BATCH)
        assert same(loader.take(at), read(at)), first
    size, world = 7, 2
    shares = [Ranks(torch.device("cpu"), rank, world).share(size) for rank in range(world)]
    loaders = [Loader(read, size, 1, timeout=PATIENCE) for _ in shares]
    for first in range(0, 5 * size, size):
        whole = range(first, first + size)
        parts = [
            each.take(whole[share.start : share.stop]) for each, share in zip(loaders, shares, strict=True)
        ]
        labels = torch.cat([part.batch.y for part in parts])
        assert torch.equal(labels, read(whole).batch.y)


def losses(config: RunConfig, out: Path) -> list[float]:
    return [event.loss for event in train(config, out, device="cpu") if isinstance(event, Stepped)]


@pytest.mark.parametrize("kind", ["images", "latents"])
def test_the_number_of_workers_changes_no_bit_of_training(kind: str, tmp_path: Path):
    path = tree(tmp_path / "tree")
    where = [f"data.name={kind}", f"data.path={path}", f"data.image_size={SIDE}"]
    if kind == "latents":
        found = ImageFiles(open_source(path), SIDE)
        pixels = Pixels(name="pixels", scale=1.0, sha256="a" * 64, encoder_sha256="b" * 64)
        encode(found, pixels, tmp_path / "cache", Encoding(per_file=5))
        where = ["data.name=latents", f"data.path={tmp_path / 'cache'}"]
    shape = ["model.in_channels=3", f"model.input_size={SIDE}", "model.num_classes=3", "data.flip=true"]
    found = {
        workers: losses(
            tiny(*shape, *where, "train.steps=8", "train.batch_size=5", f"data.workers={workers}"),
            tmp_path / str(workers),
        )
        for workers in WORKERS
    }
    assert len(found[0]) == 8
    assert found[1] == found[0]
    assert found[3] == found[0]


def test_workers_end_with_what_they_read_for(tmp_path: Path):
    """At once, and not when garbage is collected: by then torch cannot reach them, and waits 5 s for each."""
    others = set(multiprocessing.active_children())
    gc.disable()
    try:
        loader = Loader(reader(tree(tmp_path / "tree")), BATCH, 2, timeout=PATIENCE)
        loader.take(range(BATCH))
        assert len(set(multiprocessing.active_children()) - others) == 2
        del loader
        assert set(multiprocessing.active_children()) <= others
        config = tiny("data.name=images", "data.workers=2", "train.steps=4")
        for event in train(config, tmp_path / "run", device="cpu", dataset=hooked(lambda _: None)):
            if isinstance(event, Stepped) and event.step == 2:
                assert len(set(multiprocessing.active_children()) - others) == 2
        assert set(multiprocessing.active_children()) <= others
    finally:
        gc.enable()


def test_an_error_of_a_worker_is_that_error(tmp_path: Path):
    path = tree(tmp_path / "tree")
    read = reader(path)
    bad = path / read.dataset.names[samples_at(range(5, 6), 12, read.seed)[0]]  # what comes sixth
    bad.write_bytes(bad.read_bytes()[:100])
    heard = []
    for workers in WORKERS:
        loader, said = Loader(read, 1, workers, timeout=PATIENCE), []
        for position in range(12):
            for _ in range(2):  # what failed fails again, and is not gone on from
                try:
                    loader.take(range(position, position + 1))
                except RunError as error:
                    said.append((position, type(error), str(error)))
        heard.append(said)
    assert [(at, kind) for at, kind, _ in heard[0]] == [(5, RunError)] * 2
    assert bad.name in heard[0][0][2]
    assert heard[1] == heard[0]
    assert heard[2] == heard[0]


@dataclass(frozen=True)
class Hooked(Images):
    """The digits, with an action that is run when they are read."""

    at: Callable[[range], None] = lambda positions: None

    def batch(self, indices: np.ndarray, positions: range, seed: int) -> Batch:
        self.at(positions)
        return super().batch(indices, positions, seed)


def hooked(at: Callable[[range], None]) -> Hooked:
    plain = digits()
    return Hooked(plain.images, plain.labels, plain.class_names, at=at)


# torch tells of a dead worker from a signal handler, at any moment: not in the process of the tests.
LOST = """
import multiprocessing, os, signal, sys, time
from pathlib import Path
from processes import until
from scaledit.data.loader import SLICES, Loader
from scaledit.errors import RunError
from scaledit.training.dit import train
from scaledit.training.events import Stepped
from test_loader import hooked
from tiny import tiny

out = Path(sys.argv[1])
overrides = ("data.name=images", "train.steps=100000", "checkpoint.every=5", "engine.timeout=4000")
"""
KILLED = (
    LOST
    + """
events = train(tiny(*overrides, "data.workers=2"), out, device="cpu", dataset=hooked(lambda _: None))
try:
    for event in events:
        if isinstance(event, Stepped) and event.step == 12:
            victim = multiprocessing.active_children()[0].pid
            os.kill(victim, signal.SIGKILL)
except RunError as error:
    print(f"process {victim}" in str(error), error, flush=True)
os._exit(0)
"""
)
STUCK = (
    LOST
    + """
def at(positions):
    if positions.start == 16 * 7:
        (out / "writing").write_text(str(os.getpid()))
        (out / "writing").rename(out / "stuck")
        signal.pause()

take = Loader.take
def impatient(self, positions):
    # The others may take as long as they like; of the wait for the one that is stuck only the end passes.
    if positions.start == 16 * 7:
        until((out / "stuck").exists)
        assert self._items._timeout == 3000 / SLICES
        self._items._timeout = 0.1
    return take(self, positions)

Loader.take = impatient
try:
    list(train(tiny(*overrides, "data.workers=3"), out, device="cpu", dataset=hooked(at)))
except RunError as error:
    print(f"loader worker 1 (process {(out / 'stuck').read_text()})" in str(error), error, flush=True)
from scaledit.data.loader import end_workers
end_workers()
os._exit(0)
"""
)


@pytest.mark.parametrize(
    ("code", "says"),
    [(KILLED, "loader worker"), (STUCK, "has returned no batch for 3000 s; the storage is stuck")],
)
def test_a_lost_worker_is_named(tmp_path: Path, code: str, says: str):
    path = os.pathsep.join(sys.path)
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "run")],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert done.stdout.startswith("True "), done.stdout + done.stderr
    assert says in done.stdout
