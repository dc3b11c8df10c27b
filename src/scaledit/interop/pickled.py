"""Official .pt files, and other pickles of torch.save: their tensors, without running what they say; and out.

    a child process reads descriptions (interop/pickle_reader.py) -> tensors are read where they lie

The child has limits on memory and time; a file that breaks them is refused, and nothing falls back to
torch.load. `write_pickled` writes what torch.save would, a tensor in memory at a time.
"""

from __future__ import annotations

import io
import json
import math
import pickle
import subprocess
import sys
import zipfile
import zlib
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from scaledit.errors import RunError, UsageError
from scaledit.interop import pickle_reader
from scaledit.interop.lazy_tensors import Lazy, bytes_of, contiguous, from_file

WALL_SECONDS = 60
"""For the child, on a busy machine; its processor time is limited to pickle_reader.SECONDS."""


@dataclass(frozen=True)
class Pickled:
    """parts: the state dicts of a file by name, "" for a bare one. args: of the program that wrote it."""

    parts: Mapping[str, Mapping[str, Lazy]]
    args: Mapping[str, Any]


def open_pickled(path: Path) -> Pickled:
    """Raises UsageError for a file that is not what torch.save writes of a state dict or a trainer's
    checkpoint, or that would run something; RunError for one that is cut off."""
    answer = _ask(path)
    if "corrupt" in answer:
        raise RunError(f"{path} {answer['corrupt']}; fetch it again")
    if "refused" in answer:
        raise UsageError(f"{path} {answer['refused']}; it was not opened")
    if not answer["parts"]:
        raise UsageError(f"{path} holds no state dict; it was not opened")
    if path.stat().st_size != answer["size"]:
        raise RunError(f"{path} changed while it was read")
    right: set[int] = set()
    parts = {
        part: {
            name: _checked(
                from_file(
                    path, entry["dtype"], tuple(entry["shape"]), entry["start"], tuple(entry["strides"])
                ),
                path,
                name,
                entry["storage"],
                right,
            )
            for name, entry in entries.items()
        }
        for part, entries in answer["parts"].items()
    }
    return Pickled(parts, answer["args"])


BLOCK = 1 << 22


def _checked(lazy: Lazy, path: Path, name: str, storage: Sequence[int], right: set[int]) -> Lazy:
    """`lazy`, whose storage is compared with its CRC-32 before it is read, which torch.load does not do.
    storage: its first byte, bytes and CRC-32 (0 for none). right: the first bytes of storages that were
    compared: many tensors may be views of one."""
    start, length, expected = storage

    def read() -> Tensor:
        if start in right:
            return lazy.read()
        crc, left = 0, length
        with path.open("rb") as file:
            file.seek(start)
            while left and (piece := file.read(min(BLOCK, left))):
                crc, left = zlib.crc32(piece, crc), left - len(piece)
        if crc != expected:
            raise RunError(f"{path} is corrupt: {name} does not match its CRC-32; fetch it again")
        right.add(start)
        return lazy.read()

    return Lazy(lazy.dtype, lazy.shape, read) if expected else lazy


def _ask(path: Path) -> dict[str, Any]:
    # -I and -S: no user's site, no environment, nothing of this package: the standard library is enough
    command = [sys.executable, "-I", "-S", str(Path(pickle_reader.__file__)), str(path)]
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=WALL_SECONDS,
            check=False,
        )
        answer = json.loads(done.stdout)
    except subprocess.TimeoutExpired:
        return {"refused": f"takes more than {WALL_SECONDS} s to be read"}
    except ValueError:  # killed at a limit, before it could answer
        return {
            "refused": f"needs more than {pickle_reader.SECONDS} s of processor time or "
            f"{pickle_reader.MEMORY >> 20} MiB to be read, which no checkpoint does"
        }
    return answer if isinstance(answer, dict) else {"refused": "could not be read"}


class _Storage:
    """Stands for the bytes of a tensor: the pickle refers to the member `key` of the archive."""

    def __init__(self, lazy: Lazy, key: int):
        kinds = {"F32": torch.FloatStorage, "F16": torch.HalfStorage, "BF16": torch.BFloat16Storage}
        self.id = ("storage", kinds[lazy.dtype], str(key), "cpu", math.prod(lazy.shape))


class _Described:
    """Pickles as torch.save pickles a tensor."""

    def __init__(self, lazy: Lazy, key: int):
        self.lazy, self.storage = lazy, _Storage(lazy, key)

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        shape = self.lazy.shape
        return (
            torch._utils._rebuild_tensor_v2,  # pyright: ignore[reportAttributeAccessIssue]
            (self.storage, 0, shape, contiguous(shape), False, OrderedDict()),
        )


class _Pickler(pickle.Pickler):
    def persistent_id(self, obj: object) -> Any:
        return obj.id if isinstance(obj, _Storage) else None


def write_pickled(file: BinaryIO, tensors: Mapping[str, Lazy], step: Callable[[int], None]) -> None:
    """Writes a state dict that torch.load reads, a tensor in memory at a time. step: called with the bytes of
    each tensor.

    Not by torch.save: it wants all tensors at once, and its writer of archives aborts the whole process where
    a write fails, and where a Ctrl-C comes in the middle of one.
    """
    described = io.BytesIO()
    named = {name: _Described(lazy, i) for i, (name, lazy) in enumerate(tensors.items())}
    _Pickler(described, protocol=2).dump(named)
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for name, data in (("data.pkl", described.getvalue()), ("byteorder", b"little"), ("version", b"3\n")):
            archive.writestr(zipfile.ZipInfo(f"archive/{name}"), data)
        for i, (name, lazy) in enumerate(tensors.items()):
            with archive.open(zipfile.ZipInfo(f"archive/data/{i}"), "w", force_zip64=True) as member:
                member.write(bytes_of(name, lazy))
            step(lazy.nbytes)
