"""What only one process may do at a time: the right to a folder.

A POSIX record lock, and a file with the holder's name where the file system knows no locks.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import secrets
import socket
from pathlib import Path

from scaledit.files.atomic import naming
from scaledit.files.writer import Writer

HELD = (errno.EACCES, errno.EAGAIN)
"""What the kernel says of a record lock that another process has."""


class Lock:
    """The right to something that only one process may do. A POSIX record lock: it ends with the process that
    holds it, however that ends; it is not inherited by child processes, and known over NFS.

    A process must not open the file a second time while it holds the lock: closing that would let go of it.

    Some file systems know no such locks (Lustre without `flock`, NFS without its lock daemon). There the
    holder is the process whose name stands in a second file, PATH.holder, which is there while it is held:
    one that certainly has ended on this machine is replaced, any other must be removed by hand.
    """

    def __init__(self, path: Path):
        """Raises OSError where the file cannot be made."""
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self._file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)  # less the umask: groups share folders
        self._instead: _HolderFile | None = None

    def take(self) -> bool:
        """Whether it is ours now; at once. Raises OSError for other troubles than that another has it."""
        try:
            fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in HELD:
                return False
            if error.errno not in NO_LOCKS:
                error.filename = str(self.path)
                raise
            self._instead = self._instead or _HolderFile(self.path.with_name(f"{self.path.name}.holder"))
            if not self._instead.take():
                return False
        with naming(self.path):
            os.ftruncate(self._file, 0)
            os.pwrite(self._file, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
        return True

    def holder(self) -> str:
        """Who has it, as they wrote; "" where they have not yet."""
        wrote = os.pread(self._file, 200, 0).decode(errors="replace").strip()
        if self._instead is None:
            return wrote
        return (
            f"{wrote or 'unknown'}; this file system has no locks: if that job has ended, delete "
            f"{self._instead.path}"
        )

    def release(self) -> None:
        if self._instead is not None:
            self._instead.release()
        os.close(self._file)


NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL)
"""What file systems without record locks say."""


class _HolderFile:
    """A lock made of a file alone: who makes it has it, until they remove it."""

    def __init__(self, path: Path):
        self.path, self.mine = path, f"{Writer.here()} {secrets.token_hex(8)}\n"
        self.held = False

    def take(self) -> bool:
        if self._made(self.path):
            self.held = True
            return True
        try:
            there = self.path.read_text(errors="replace")
        except OSError:
            return False
        writer = Writer.parse(there.partition(" ")[0])
        if writer is None or not writer.has_ended():
            return False
        # Of all who find that it has ended, the one that makes this file may take over. The file's name is
        # that of this one holder; whoever makes it after a takeover finds another holder's name in the lock.
        key = hashlib.sha256(there.encode()).hexdigest()[:16]
        turn = self.path.with_name(f"{self.path.name}.{key}")
        if not self._made(turn):
            return False
        self.held = self.path.read_text(errors="replace") == there
        if self.held:
            os.replace(turn, self.path)
        else:
            turn.unlink()
        return self.held

    def _made(self, path: Path) -> bool:
        try:
            file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        except FileExistsError:
            return False
        try:
            with naming(path):
                os.write(file, self.mine.encode())
        finally:
            os.close(file)
        return True

    def release(self) -> None:
        if self.held:
            self.path.unlink(missing_ok=True)
