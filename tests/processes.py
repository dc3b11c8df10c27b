"""`scaledit` as processes of their own, to be watched, held at a point, stopped and killed.

They are forked from a server that has torch loaded, so that a hundred of them cost seconds; each is the
process that a shell would start in all else.

    gate = Gate(tmp_path / "gate")
    job = scaledit("train", ..., before=At("scaledit.training.learner:Learner.train_step", gate, nth=7))
    gate.reached(job)         it has trained 6 steps and will not go on
    job.kill()                so this is in the middle, however fast the machine is
"""

from __future__ import annotations

import contextlib
import fnmatch
import functools
import importlib
import itertools
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

_server = multiprocessing.get_context("forkserver")
_server.set_forkserver_preload(
    [
        "scaledit.cli",
        "scaledit.commands.rank",
        "scaledit.training.dit",
        "scaledit.report.run",
        "torch._dynamo",  # which the first optimizer imports
    ]
)


PATIENCE = 600.0
"""Seconds until something is taken to hang. No test waits for so long, however slow the machine is."""
ADVANCE = "scaledit.training.learner:Learner.train_step"
"""The point before a step."""


@dataclass
class Job:
    """A process of its own session. said: all that it printed."""

    process: Any
    output: Path

    @property
    def pid(self) -> int:
        return self.process.pid

    def running(self) -> bool:
        if isinstance(self.process, subprocess.Popen):
            return self.process.poll() is None
        return self.process.is_alive()

    def wait(self, timeout: float = PATIENCE) -> int:
        if isinstance(self.process, subprocess.Popen):
            return self.process.wait(timeout)
        self.process.join(timeout)
        assert self.process.exitcode is not None, f"still running after {timeout} s: {self.said()}"
        return self.process.exitcode

    def kill(self) -> None:
        """kill -9, and waits for the end."""
        if self.running():
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)
        self.wait()

    def said(self) -> str:
        return self.output.read_text() if self.output.exists() else ""


def until(what: Callable[[], object], job: Job | None = None) -> None:
    """Waits for a state, which `job` must live to see."""
    deadline = time.monotonic() + PATIENCE
    while not what():
        assert job is None or job.running() or what(), f"ended too soon: {job.said()}"
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.002)


@dataclass(frozen=True)
class Gate:
    """Where a process says that it has come, and waits until the test opens. What else it has of threads and
    signal handlers runs on. To be given to `At`."""

    folder: Path

    def __call__(self) -> None:
        self.folder.mkdir(exist_ok=True)
        (self.folder / str(os.getpid())).touch()
        parent, deadline = os.getppid(), time.monotonic() + PATIENCE
        while not (self.folder / "open").exists():
            if os.getppid() != parent or time.monotonic() > deadline:
                os._exit(99)  # the tests are gone
            time.sleep(0.002)

    def reached(self, job: Job) -> None:
        """Waits until the job has reached the gate."""
        until((self.folder / str(job.pid)).exists, job)
        assert job.running(), job.said()

    def open(self) -> None:
        self.folder.mkdir(exist_ok=True)
        (self.folder / "open").touch()


@dataclass(frozen=True)
class Note:
    """Leaves a file as a sign. To be given to `At`."""

    path: Path

    def __call__(self) -> None:
        self.path.touch()


def die() -> None:
    """kill -9, from within: at this very point."""
    os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(PATIENCE)  # in the moment until it comes, nothing more is done


@dataclass(frozen=True)
class At:
    """To be given as `before`: a point of a process where something is done, once.

    point: a function, as "module:name" or "module:Class.name". do: is called by the nth call of it, in any
    thread, before its own work, or `after`. argument: only calls that have such a one count, a pattern. An
    `At` in an `At` counts from there.
    """

    point: str
    do: Callable[[], None]
    nth: int = 1
    argument: str = ""
    after: bool = False

    def __call__(self) -> None:
        module, _, names = self.point.partition(":")
        owner: Any = importlib.import_module(module)
        *path, name = names.split(".")
        for part in path:
            owner = getattr(owner, part)
        function, calls = getattr(owner, name), itertools.count(1)

        @functools.wraps(function)
        def wrapper(*arguments: Any, **named: Any) -> Any:
            if self.argument and not any(fnmatch.fnmatch(str(a), self.argument) for a in arguments):
                return function(*arguments, **named)
            now = next(calls) == self.nth
            if now and not self.after:
                self.do()
            found = function(*arguments, **named)
            if now and self.after:
                self.do()
            return found

        setattr(owner, name, wrapper)


@dataclass(frozen=True)
class Each:
    """Several, to be given as `before`."""

    befores: tuple[Callable[[], None], ...]

    def __call__(self) -> None:
        for before in self.befores:
            before()


STARTED: list[Job] = []
"""Of this process of tests; tests/conftest.py ends those that a test has left."""


def output_beside(path: Path) -> Path:
    return path.with_name(f"{path.name}.output")


def scaledit(*words: str, beside: Path, before: Callable[[], None] | None = None) -> Job:
    """`scaledit words...` as one process, which prints into `beside`.output. before: runs in it first."""
    output = output_beside(beside)
    process = _server.Process(target=_main, args=(words, str(output), before))
    process.start()
    STARTED.append(job := Job(process, output))
    return job


def _main(words: tuple[str, ...], output: str, before: Callable[[], None] | None) -> None:
    os.setsid()
    file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
    torch.set_num_threads(1)
    sys.argv = ["scaledit", *words]  # as a shell would start it
    if before is not None:
        before()
    from scaledit import cli

    code = cli.main(list(words))
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
