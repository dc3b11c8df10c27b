"""Files and folders that are complete or not there.

    write  .NAME.WRITER.partial  ->  fsync  ->  rename to NAME

What was under the name stays until the rename. What a killed program had begun is removed by the next program
that writes the same name.
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

PARTIAL = re.compile(r"\.(?P<name>.+)\.(?P<writer>[0-9a-f]{8}-\d+-\d+)\.[0-9a-f]{8}\.partial", re.DOTALL)


def partial_beside(out: Path) -> Path:
    """A name that no other process, thread or machine gives to what is to become `out`, in its folder."""
    return out.with_name(f".{out.name}.{Writer.here()}.{secrets.token_hex(4)}.partial")


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


@contextmanager
def synced(path: Path) -> Iterator[BinaryIO]:
    """The new file `path`, which is on the disk at the end. Raises OSError, which names it."""
    with naming(path), path.open("xb") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())


def sync(path: Path) -> None:
    """Returns when a file, or the list of names in a folder, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def atomic_write(out: Path) -> Iterator[BinaryIO]:
    """A file that gets the name `out` when it is complete and on the disk. Raises OSError, which names
    `out`."""
    with _partial(out) as partial:
        with synced(partial) as file:
            yield file
        os.replace(partial, out)


def atomic_bytes(out: Path, data: bytes | memoryview) -> None:
    """The file `out` with the content `data`: `atomic_write`."""
    with atomic_write(out) as file:
        file.write(data)


@contextmanager
def atomic_path(out: Path) -> Iterator[Path]:
    """As `atomic_write`, for libraries that make the file themselves: the path that they are to make."""
    with _partial(out) as partial:
        yield partial
        sync(partial)
        os.replace(partial, out)


@contextmanager
def partial_folder(out: Path) -> Iterator[Path]:
    """A new folder beside `out`, which is removed at the end: what is to stay is moved out of it. The folder
    of `out` is made. Raises OSError."""
    with _partial(out) as partial:
        partial.mkdir(parents=True)
        yield partial


@contextmanager
def atomic_folder(out: Path) -> Iterator[Path]:
    """A folder that gets the name `out`, in place of what has it, when all in it is on the disk. Raises
    OSError."""
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
    """Removes what processes that certainly have ended had begun to write into `folder` (as `name`)."""
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
    """A name to write under until `out` is complete; nothing has it afterwards."""
    partial = partial_beside(out)
    with naming(out, instead_of=partial):
        remove_abandoned(out.parent, out.name)
        try:
            yield partial
        finally:
            _remove(partial)


def _remove(path: Path) -> None:
    """A file or a folder, where there is one and as far as the system lets us."""
    with suppress(OSError):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
