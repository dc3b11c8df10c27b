"""`scaledit` as processes of their own, to be watched, stopped and killed.

They are forked from a server that has torch loaded, so that a hundred of them cost seconds; each is the
process that a shell would start in all else.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import subprocess
import sys
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

    def wait(self, timeout: float = 120.0) -> int:
        if isinstance(self.process, subprocess.Popen):
            return self.process.wait(timeout)
        self.process.join(timeout)
        assert self.process.exitcode is not None, f"still running after {timeout} s: {self.said()}"
        return self.process.exitcode

    def kill(self) -> None:
        """kill -9, and waits for the end."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        self.wait()

    def said(self) -> str:
        return self.output.read_text() if self.output.exists() else ""


def output_beside(path: Path) -> Path:
    return path.with_name(f"{path.name}.output")


def scaledit(*words: str, beside: Path, before: Callable[[], None] | None = None) -> Job:
    """`scaledit words...` as one process, which prints into `beside`.output. before: runs in it first."""
    output = output_beside(beside)
    process = _server.Process(target=_main, args=(words, str(output), before))
    process.start()
    return Job(process, output)


def _main(words: tuple[str, ...], output: str, before: Callable[[], None] | None) -> None:
    os.setsid()
    file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
    torch.set_num_threads(1)
    if before is not None:
        before()
    from scaledit import cli

    code = cli.main(list(words))
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
