"""Atomic writes: a file or folder is complete or does not exist.

    write  .NAME.WRITER.partial  ->  fsync  ->  rename to NAME

An older file of that name stays until the rename. The partial file of a killed program is removed by the next
program that writes the same name.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from scaledit.files.writer import Writer
from scaledit.posix import POSIX

PARTIAL = re.compile(r"\.(?P<name>.+)\.(?P<writer>[0-9a-f]{8}-\d+-\d+)\.[0-9a-f]{8}\.partial", re.DOTALL)


def partial_beside(out: Path) -> Path:
    """A temporary name in the folder of `out` that no other process, thread or machine uses."""
    return out.with_name(f".{out.name}.{Writer.here()}.{secrets.token_hex(4)}.partial")


@contextmanager
def naming(path: Path, instead_of: Path | None = None) -> Iterator[None]:
    """A context in which an OSError without a file name (of a full disk, say), or with the temporary name
    `instead_of`, gets the name `path`."""
    try:
        yield
    except OSError as error:
        if error.errno is not None and error.filename in (None, str(instead_of or "")):
            error.filename, error.filename2 = str(path), None
        raise


@contextmanager
def synced(path: Path) -> Iterator[BinaryIO]:
    """Creates the file `path`, which is on the disk at the end. Raises OSError naming it."""
    with naming(path), path.open("xb") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())


def sync(path: Path) -> None:
    """Flushes a file, or the list of names in a folder, to the disk. Windows has no such call for either: it
    flushes only files that are open for writing."""
    if not POSIX:
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def atomic_write(out: Path) -> Iterator[BinaryIO]:
    """A file that gets the name `out` when it is complete and on the disk. Raises OSError naming `out`."""
    with _partial(out) as partial:
        with synced(partial) as file:
            yield file
        os.replace(partial, out)


def atomic_bytes(out: Path, data: bytes | memoryview) -> None:
    """Writes `data` to the file `out` by `atomic_write`."""
    with atomic_write(out) as file:
        file.write(data)


@contextmanager
def atomic_path(out: Path) -> Iterator[Path]:
    """`atomic_write` for libraries that create the file themselves: yields the path to write to."""
    with _partial(out) as partial:
        yield partial
        sync(partial)
        os.replace(partial, out)


@contextmanager
def partial_folder(out: Path) -> Iterator[Path]:
    """A temporary folder beside `out` that is removed at the end; move out of it whatever shall stay. Creates
    the parent of `out`. Raises OSError."""
    with _partial(out) as partial:
        partial.mkdir(parents=True)
        yield partial


@contextmanager
def atomic_folder(out: Path) -> Iterator[Path]:
    """A folder that replaces `out` when all of it is on the disk. Raises OSError."""
    with partial_folder(out) as partial:
        yield partial
        for folder, _, files in os.walk(partial):
            for name in (*files, "."):
                sync(Path(folder, name))
        before = partial_beside(out)
        if out.exists():
            out.rename(before)
        try:
            partial.rename(out)
        except OSError:
            if before.exists():
                before.rename(out)
            raise
        sync(out.parent)
        _remove(before)


def remove_abandoned(folder: Path, name: str | None = None) -> None:
    """Removes partial files in `folder` (those of `name`, or all) whose writers have certainly ended."""
    with suppress(OSError):
        for path in folder.iterdir():
            match = PARTIAL.fullmatch(path.name)
            if match is None or name not in (None, match["name"]):
                continue
            writer = Writer.parse(match["writer"])
            if writer is not None and writer.has_ended():
                _remove(path)


@contextmanager
def _partial(out: Path) -> Iterator[Path]:
    """A temporary name for `out` that is unused again at the end."""
    partial = partial_beside(out)
    with naming(out, instead_of=partial):
        remove_abandoned(out.parent, out.name)
        try:
            yield partial
        finally:
            _remove(partial)


def _remove(path: Path) -> None:
    """Removes a file or folder, if it exists and the system permits it."""
    with suppress(OSError):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
