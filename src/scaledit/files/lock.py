"""Locks for a task that only one process may do at a time, such as writing to a folder.

A lock is a POSIX record lock, or a file with the holder's name on file systems without locks.
"""

from __future__ import annotations

import errno
import hashlib
import os
import secrets
import socket
from pathlib import Path

from scaledit.files.atomic import naming
from scaledit.files.writer import Writer
from scaledit.posix import require

HELD = (errno.EACCES, errno.EAGAIN)
"""The kernel's errors for a record lock that another process holds."""
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL)
"""The errors of file systems without record locks."""


class Lock:
    """A lock that one process at a time can hold. It is a POSIX record lock, which ends with the process that
    holds it, however that ends, is not inherited by child processes, and works over NFS.

    A process must not open the file a second time while it holds the lock: closing it would release the lock.

    Some file systems have no such locks (Lustre without `flock`, NFS without its lock daemon). There the
    holder writes its name to a second file, PATH.holder, which exists while the lock is held. A holder on
    this machine that has certainly ended is replaced; the file of any other must be removed by hand.
    """

    def __init__(self, path: Path):
        """path: of the lock file. Raises OSError if it cannot be created, and UsageError on Windows."""
        require("training")
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        # 0o666 minus the umask, since groups share folders.
        self._file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        self._instead: _HolderFile | None = None

    def take(self) -> bool:
        """Tries to acquire the lock without waiting, and returns whether this process holds it now. Raises
        OSError if that fails for another reason than a holder."""
        import fcntl

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
        """The holder, as it described itself; "" if it has not yet."""
        text = os.pread(self._file, 200, 0).decode(errors="replace").strip()
        if self._instead is None:
            return text
        fix = f"if that job has ended, delete {self._instead.path}"
        return f"{text or 'unknown'}; this file system has no locks: {fix}"

    def release(self) -> None:
        if self._instead is not None:
            self._instead.release()
        os.close(self._file)


class _HolderFile:
    """A lock that is only a file: the process that created it holds the lock until it removes the file."""

    def __init__(self, path: Path):
        self.path, self.owner = path, f"{Writer.here()} {secrets.token_hex(8)}\n"
        self.held = False

    def take(self) -> bool:
        if self._create(self.path):
            self.held = True
            return True
        try:
            holder = self.path.read_text(errors="replace")
        except OSError:
            return False
        writer = Writer.parse(holder.partition(" ")[0])
        if writer is None or not writer.has_ended():
            return False
        # Of all processes that find the holder ended, the one that creates this file may take over. The file
        # is named after the holder, so a process that creates it after the takeover finds another holder.
        key = hashlib.sha256(holder.encode()).hexdigest()[:16]
        turn = self.path.with_name(f"{self.path.name}.{key}")
        if not self._create(turn):
            return False
        self.held = self.path.read_text(errors="replace") == holder
        if self.held:
            os.replace(turn, self.path)
        else:
            turn.unlink()
        return self.held

    def _create(self, path: Path) -> bool:
        try:
            file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        except FileExistsError:
            return False
        try:
            with naming(path):
                os.write(file, self.owner.encode())
        finally:
            os.close(file)
        return True

    def release(self) -> None:
        if self.held:
            self.path.unlink(missing_ok=True)
