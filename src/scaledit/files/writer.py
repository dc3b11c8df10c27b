"""Which process of which machine wrote something, so that another process can tell whether it still runs."""

from __future__ import annotations

import functools
import hashlib
import os
import socket
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple


class Writer(NamedTuple):
    """Which process of which machine, so that whether it still runs can be told from elsewhere.

    machine: names the host, its boot and the process id namespace (containers count their processes alike).
    began: when the process started, in the kernel's ticks since the boot, 0 where the system does not say.
    """

    machine: str
    process: int
    began: int

    @classmethod
    def here(cls) -> Writer:
        return cls(_machine(), os.getpid(), _began(os.getpid()))

    @classmethod
    def parse(cls, text: str) -> Writer | None:
        """The inverse of `str`; None for what is no writer."""
        machine, _, rest = text.partition("-")
        process, _, began = rest.partition("-")
        return cls(machine, int(process), int(began)) if process.isdigit() and began.isdigit() else None

    def has_ended(self) -> bool:
        """Whether it certainly runs no more. Of processes on other machines nothing is known."""
        if self.machine != _machine():
            return False
        try:
            os.kill(self.process, 0)
        except ProcessLookupError:
            return True
        except PermissionError:
            pass  # it runs, for somebody else
        return _began(self.process) != self.began  # the number was given out again

    def __str__(self) -> str:
        return f"{self.machine}-{self.process}-{self.began}"


@functools.cache
def _machine() -> str:
    about = [socket.gethostname()]
    with suppress(OSError):
        about.append(Path("/proc/sys/kernel/random/boot_id").read_text())
    with suppress(OSError):
        about.append(os.readlink("/proc/self/ns/pid"))
    return hashlib.sha256("\0".join(about).encode()).hexdigest()[:8]


def _began(process: int) -> int:
    """The 22nd field of /proc/PID/stat; the second, a program's name, may hold spaces and parentheses."""
    try:
        return int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[19])
    except (OSError, ValueError, IndexError):
        return 0
