"""Long work in parts that are files: each whole or not there, made by any of n processes, in any order.

    shard i of n makes the parts k with k mod n = i

Processes share nothing but the folder: what the job is stands in a file that the first of them writes and the
others compare with. To go on after an interruption, run it again.
"""

from __future__ import annotations

import errno
import fcntl
import functools
import hashlib
import json
import os
import re
import secrets
import socket
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from scaledit.errors import RunError, UsageError, reading, shown


class Shard(NamedTuple):
    """The share i of n of a job's parts."""

    i: int
    n: int

    @classmethod
    def parse(cls, text: str) -> Shard:
        """'0/4' -> Shard(0, 4). Raises UsageError."""
        i, slash, n = text.partition("/")
        if slash and i.isdigit() and n.isdigit() and int(i) < int(n):
            return cls(int(i), int(n))
        raise UsageError(f"--shard is i/n with i from 0 to n-1, as in 0/4; got {text!r}")

    def has(self, k: int) -> bool:
        return k % self.n == self.i


WHOLE = Shard(0, 1)


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
        writer = _writer(there.partition(" ")[0])
        if writer is None or not writer.has_ended():
            return False
        # Of all who find that it has ended, the one that makes this file may take over: its name is that of
        # this one holder, so that nobody takes over from a later one.
        key = hashlib.sha256(there.encode()).hexdigest()[:16]
        turn = self.path.with_name(f"{self.path.name}.{key}")
        if not self._made(turn):
            return False
        with whole(self.path) as file:
            file.write(self.mine.encode())
        turn.unlink()
        self.held = True
        return True

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


@contextmanager
def naming(path: Path, instead_of: Path | None = None) -> Iterator[None]:
    """Around the writing of a file: the system's errors name it, where they name nothing (of a full disk
    they say only that it is full) or the name that it has until it is complete."""
    try:
        yield
    except OSError as error:
        if error.errno is not None and error.filename in (None, str(instead_of or "")):
            error.filename, error.filename2 = str(path), None
        raise


PARTIAL = re.compile(r"\.(?P<name>.+)\.(?P<writer>[0-9a-f]{8}-\d+-\d+)\.[0-9a-f]{8}\.partial", re.DOTALL)


def partial_beside(out: Path) -> Path:
    """A name that no other process, thread or machine gives to what is to become `out`, in its folder."""
    return out.with_name(f".{out.name}.{Writer.here()}.{secrets.token_hex(4)}.partial")


def _writer(text: str) -> Writer | None:
    machine, _, rest = text.partition("-")
    process, _, began = rest.partition("-")
    return Writer(machine, int(process), int(began)) if process.isdigit() and began.isdigit() else None


def abandoned(folder: Path, name: str | None = None) -> list[Path]:
    """What processes that certainly have ended had begun to write into `folder` (as `name`)."""
    found = []
    with suppress(OSError):
        for path in folder.iterdir():
            match = PARTIAL.fullmatch(path.name)
            if match is None or name not in (None, match["name"]):
                continue
            writer = _writer(match["writer"])
            if writer is not None and writer.has_ended():
                found.append(path)
    return found


@contextmanager
def whole(out: Path) -> Iterator[BinaryIO]:
    """A file that gets its name when it is complete and on the disk; what was under the name stays till
    then. What programs that were killed had begun of it is removed. Raises OSError, which names `out`."""
    partial = partial_beside(out)
    with naming(out, instead_of=partial):
        for leftover in abandoned(out.parent, out.name):
            with suppress(OSError):
                leftover.unlink()
        try:
            with partial.open("xb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial, out)
        finally:
            with suppress(OSError):
                partial.unlink(missing_ok=True)


LARGEST_JSON = 1 << 28
"""Bytes of a JSON file; what is larger is none of ours, and would take many times its size in memory."""


def read_json(path: Path, what: str, fix: str = "", error: type[Exception] = RunError) -> dict[str, Any]:
    """The object in a JSON file that somebody handed in. what, fix, error: as of `errors.reading`.

    Raises `error` for what is no JSON object, has a key twice, or is nested deeper than DEEPEST; OSError
    where the file cannot be opened.
    """
    with reading(path, what, fix, error):
        if path.stat().st_size > LARGEST_JSON:
            raise ValueError(f"it has {path.stat().st_size / 1e6:.0f} MB")
        value = json.loads(path.read_bytes(), object_pairs_hook=_once)
        if not isinstance(value, dict):
            raise ValueError("it holds no JSON object")
        check_depth(value)
    return value


LARGEST_PICTURE = 32 << 20
"""Bytes of a picture that is taken out of somebody's folder and put into a report."""
PNG_MAGIC = b"\x89PNG\r\n\x1a\n"


def picture_in(folder: Path, name: object) -> bytes:
    """The PNG `name`, a path below `folder`. What a report holds is never from outside of the folder that it
    is of, whatever a log or a symbolic link in there says.

    Raises ValueError with the reason where it is outside, missing, too large, or no PNG.
    """
    if not isinstance(name, str):
        raise ValueError(f"{name!r} is no file's name")
    try:
        path = (folder / name).resolve()
        if not path.is_relative_to(folder.resolve()):
            raise ValueError(f"{name} is outside of the folder")
        if not path.is_file():
            raise ValueError(f"{name} is not there")
        if path.stat().st_size > LARGEST_PICTURE:
            raise ValueError(f"{name} has {path.stat().st_size / 1e6:.0f} MB")
        data = path.read_bytes()
    except (OSError, RuntimeError) as error:  # a loop of links; a name that is too long
        raise ValueError(f"{name} cannot be read: {error}") from None
    if not data.startswith(PNG_MAGIC):
        raise ValueError(f"{name} is no PNG")
    return data


DEEPEST = 50
"""Lists and tables inside each other; ours have 6. Far below what Python's own recursion bears, so that
whatever is done with such a value later bears it too."""


def check_depth(value: Any) -> None:
    """Raises ValueError for lists and tables that lie deeper in each other than DEEPEST."""
    level, depth = [value], 0
    while level:
        if depth > DEEPEST:
            raise ValueError(f"it is nested more than {DEEPEST} deep")
        below: list[Any] = []
        for one in level:
            if isinstance(one, dict | list):
                below.extend(one.values() if isinstance(one, dict) else one)
        level, depth = below, depth + 1


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object, of which each key is there once; json would keep the last."""
    table: dict[str, Any] = {}
    for key, value in pairs:
        if key in table:
            raise ValueError(f"it has the key {shown(key)} twice")
        table[key] = value
    return table


def check_png(data: bytes) -> None:
    """Raises ValueError where a chunk of a PNG is not the one that was written, by its own CRC-32. Pillow
    does not look at those of the chunks that hold the pixels, nor at zlib's own once the last pixel is
    there."""
    at, kind = len(PNG_MAGIC), b""
    while kind != b"IEND":
        length, kind = int.from_bytes(data[at : at + 4], "big"), data[at + 4 : at + 8]
        end = at + 8 + length
        if len(data) < end + 4:
            raise ValueError("it is cut short")
        if zlib.crc32(memoryview(data)[at + 4 : end]) != int.from_bytes(data[end : end + 4], "big"):
            raise ValueError(f"its chunk {kind!r} does not match its checksum")
        at = end + 4


def sha256_of(path: Path) -> str:
    """Of a file's bytes, read in blocks."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sealed(value: Mapping[str, Any]) -> bytes:
    """A JSON file of `value` and the SHA-256 of it. A reader compares the whole file with this, so that every
    byte counts, white space too."""
    digest = hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
    return (json.dumps({**value, "sha256": digest}, indent=1) + "\n").encode()


def safetensors_header(
    tensors: Iterable[tuple[str, str, Sequence[int], int]], about: Mapping[str, str] | None = None
) -> bytes:
    """How a safetensors file begins, up to its first tensor: (name, safetensors' type, shape, bytes) of each,
    as they follow. Tensors begin at a multiple of 8. about: the file's own metadata."""
    header: dict[str, Any] = {} if about is None else {"__metadata__": dict(about)}
    at = 0
    for name, dtype, shape, size in tensors:
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def claim(
    folder: Path,
    name: str,
    job: Mapping[str, Any],
    what: str,
    as_now: Callable[[dict[str, Any]], dict[str, Any]] = lambda there: there,
) -> None:
    """Makes `folder` this job's: writes `job` to folder/name, or compares it with what another process (or an
    earlier run) wrote there. what: the parts' name in the message. as_now: makes today's words of what an
    earlier version may have written.

    Raises UsageError if the folder holds something else.
    """
    path, job = folder / name, json.loads(json.dumps(job))
    if not path.exists():
        if folder.is_file():
            raise UsageError(f"{folder} is a file; choose another --out")
        others = [p for p in folder.iterdir() if p.suffix != ".partial"] if folder.exists() else []
        if others and not path.exists():  # another process may have written it in this moment
            raise UsageError(f"{folder} is not empty and holds no {what}; choose another --out")
        folder.mkdir(parents=True, exist_ok=True)
        with whole(path) as file:
            file.write((json.dumps(job, indent=1) + "\n").encode())
    try:
        there = as_now(json.loads(path.read_bytes()))
        changed = [key for key in sorted(job.keys() | there.keys()) if there.get(key) != job.get(key)]
    except (OSError, ValueError, AttributeError):
        raise UsageError(f"{path} cannot be read; choose another --out") from None
    if changed:
        key = changed[0]
        raise UsageError(
            f"{folder} holds {what} of another request ({key}: {there.get(key)} -> {job.get(key)}); "
            "choose another --out, or delete it"
        )
