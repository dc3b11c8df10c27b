"""Several ranks on this machine: starts them, forwards signals, and ends all when one is lost.

scaledit train RECIPE --nproc N  =  N processes of  scaledit train RECIPE,  with torchrun's variables set

Imports no torch. A rank that saves after SIGTERM has no deadline (torchrun's is 30 s).
"""

from __future__ import annotations

import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from scaledit import children

LAST_WORDS = 15.0
"""Seconds in which the other ranks may notice and report that one is lost."""
POLL = 0.1
COMMAND = "SCALEDIT_COMMAND"
"""The environment variable from which the ranks know the command that started them."""
PROGRAMS = {"__main__.py": "python -m scaledit", "cli.py": "python -m scaledit.cli"}
"""How the files of this package are run as a program."""


def command() -> str | None:
    """The command that the user typed, quoted for a shell; in a rank of --nproc, that of its parent.

    None if a Python program or another launcher, such as torchrun, started this process.
    """
    if started_by := os.environ.get(COMMAND):
        return started_by
    program = Path(sys.argv[0])
    if "RANK" in os.environ or program.name not in ("scaledit", *PROGRAMS):
        return None
    if program.name in PROGRAMS and program.parent.name != "scaledit":
        return None
    return f"{PROGRAMS.get(program.name, 'scaledit')} {shlex.join(sys.argv[1:])}"


def how_to_resume(words: Sequence[str], device: str = "auto") -> str:
    """How the user resumes the training run of this process, as the end of a sentence. words: of the command
    that resumes it, after `scaledit`. device: as the user chose it."""
    if typed := command():
        program = shlex.split(typed)[: 3 if typed.startswith("python -m") else 1]
        ranks = ["--nproc", os.environ["WORLD_SIZE"]] if os.environ.get(COMMAND) else []
        on = [] if device == "auto" else ["--device", device]
        return f"to resume, run: {shlex.join([*program, *words, *ranks, *on])}"
    if "RANK" in os.environ:
        return "to resume, start the same job again with --resume auto"
    return 'to resume, train again with resume="auto"'


def run(arguments: Sequence[str], nproc: int) -> int:
    """Runs `scaledit *arguments` as `nproc` ranks. Returns the exit code of the first rank that failed (1 if
    a signal ended it), else the highest one. Ctrl-C and stop signals reach each rank once."""
    with children.started(arguments, _environments(nproc, _free_port())) as ranks:
        return _wait(ranks)


def _environments(nproc: int, port: int) -> Iterator[dict[str, str]]:
    typed = command()
    for rank in range(nproc):
        yield {
            "OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // nproc)),
            **os.environ,
            **({COMMAND: typed} if typed else {}),
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(nproc),
            "LOCAL_WORLD_SIZE": str(nproc),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
        }


def _wait(ranks: list[subprocess.Popen[bytes]]) -> int:
    """Waits until all ranks have ended, or LAST_WORDS after one failed. Returns the exit code."""
    failed, polls = None, 0  # polls are counted, not seconds: Ctrl-Z may stop all processes meanwhile
    while any(rank.poll() is None for rank in ranks) and polls < LAST_WORDS / POLL:
        polls += failed is not None
        for number, rank in enumerate(ranks):
            if failed is None and _is_failure(rank.poll()):
                failed = number
                _report(number, rank)
        time.sleep(POLL)
    if failed is None:
        codes = [rank.returncode for rank in ranks]
        failed = next((number for number, code in enumerate(codes) if _is_failure(code)), None)
        if failed is None:
            return max(codes)
        _report(failed, ranks[failed])
    return max(1, ranks[failed].returncode)


def _is_failure(code: int | None) -> bool:
    return code not in (None, 0, 75)


def _report(number: int, rank: subprocess.Popen[bytes]) -> None:
    """Prints which signal ended a rank, which could not report it."""
    if rank.returncode < 0:
        name = signal.Signals(-rank.returncode).name
        print(
            f"scaledit: rank {number} (process {rank.pid}) was ended by {name}", file=sys.stderr, flush=True
        )


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
