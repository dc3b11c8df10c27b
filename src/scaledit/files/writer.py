"""Names the process and machine that wrote something, so that others can tell whether it still runs."""

from __future__ import annotations

import functools
import hashlib
import os
import socket
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from scaledit.posix import POSIX


class Writer(NamedTuple):
    """A process, named uniquely among all machines.

    machine: a hash of the host, its boot and the process id namespace (containers reuse process ids).
    process: its id. began: its start in the kernel's ticks since the boot, 0 if unknown.
    """

    machine: str
    process: int
    began: int

    @classmethod
    def here(cls) -> Writer:
        return cls(_machine(), os.getpid(), _began(os.getpid()))

    @classmethod
    def parse(cls, text: str) -> Writer | None:
        """The inverse of `str`; None if `text` is not a writer."""
        machine, _, rest = text.partition("-")
        process, _, began = rest.partition("-")
        return cls(machine, int(process), int(began)) if process.isdigit() and began.isdigit() else None

    def has_ended(self) -> bool:
        """Whether the process has certainly ended; False for processes on other machines, and on Windows."""
        if self.machine != _machine() or not POSIX:  # os.kill(process, 0) is a Ctrl-C on Windows
            return False
        try:
            os.kill(self.process, 0)
        except ProcessLookupError:
            return True
        except PermissionError:
            pass  # it runs as another user
        return _began(self.process) != self.began  # another process has the id now

    def __str__(self) -> str:
        return f"{self.machine}-{self.process}-{self.began}"


@functools.cache
def _machine() -> str:
    names = [socket.gethostname()]
    with suppress(OSError):
        names.append(Path("/proc/sys/kernel/random/boot_id").read_text())
    with suppress(OSError):
        names.append(os.readlink("/proc/self/ns/pid"))
    return hashlib.sha256("\0".join(names).encode()).hexdigest()[:8]


def _began(process: int) -> int:
    """The 22nd field of /proc/PID/stat. The second, a program's name, may have spaces and parentheses."""
    try:
        return int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[19])
    except (OSError, ValueError, IndexError):
        return 0
