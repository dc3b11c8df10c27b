"""Long work in parts that are files: each whole or not there, made by any of n processes, in any order.

    shard i of n makes the parts k with k mod n = i

Processes share nothing but the folder: what the job is stands in a file that the first of them writes and the
others compare with. To go on after an interruption, run it again.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import socket
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
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


class Lock:
    """The right to something that only one process may do. A POSIX record lock: it ends with the process that
    holds it, however that ends; it is not inherited by child processes, and known over NFS.

    A process must not open the file a second time while it holds the lock: closing that would let go of it.
    """

    def __init__(self, path: Path):
        """Raises OSError where the file cannot be made."""
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)

    def take(self) -> bool:
        """Whether it is ours now; at once."""
        try:
            fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
        os.ftruncate(self._file, 0)
        os.pwrite(self._file, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
        return True

    def holder(self) -> str:
        """Who has it, as they wrote; "" where they have not yet."""
        return os.pread(self._file, 200, 0).decode(errors="replace").strip()

    def release(self) -> None:
        os.close(self._file)


@contextmanager
def whole(out: Path) -> Iterator[BinaryIO]:
    """A file that gets its name when it is complete and on the disk; what was under the name stays till
    then."""
    partial = out.with_name(f".{out.name}.{os.getpid()}.partial")
    try:
        with partial.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, out)
    finally:
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


PNG_MAGIC = b"\x89PNG\r\n\x1a\n"


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


def claim(folder: Path, name: str, job: Mapping[str, Any], what: str) -> None:
    """Makes `folder` this job's: writes `job` to folder/name, or compares it with what another process (or an
    earlier run) wrote there. what: the parts' name in the message.

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
        there = json.loads(path.read_bytes())
        changed = [key for key in sorted(job.keys() | there.keys()) if there.get(key) != job.get(key)]
    except (OSError, ValueError, AttributeError):
        raise UsageError(f"{path} cannot be read; choose another --out") from None
    if changed:
        key = changed[0]
        raise UsageError(
            f"{folder} holds {what} of another request ({key}: {there.get(key)} -> {job.get(key)}); "
            "choose another --out, or delete it"
        )
