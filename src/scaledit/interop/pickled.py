"""Reads and writes official .pt files and other pickles of torch.save, without running what they contain.

    a child process describes the tensors (interop/pickle_reader.py) -> they are read from the file

The child has limits on memory and time, beyond which a file is refused; torch.load is never called.
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
from typing import Any, BinaryIO, NamedTuple

import torch
from torch import Tensor

from scaledit.errors import RunError, UsageError
from scaledit.interop import pickle_reader
from scaledit.interop.lazy_tensors import Lazy, bytes_of, contiguous, from_file

WALL_SECONDS = 60
"""Timeout of the child on a busy machine; its processor time is limited to pickle_reader.SECONDS."""
BLOCK = 1 << 22
"""Bytes that are hashed at once."""


@dataclass(frozen=True)
class Pickled:
    """parts: the state dicts of a file by name, "" for a bare one. args: of the program that wrote it."""

    parts: Mapping[str, Mapping[str, Lazy]]
    args: Mapping[str, Any]


def open_pickled(path: Path) -> Pickled:
    """The tensors of a .pt file, unread. Raises UsageError if it is not a state dict or a trainer's
    checkpoint that torch.save wrote, or if loading it would call a function; RunError if it is corrupt."""
    answer = _describe(path)
    if "corrupt" in answer:
        raise RunError(f"{path} {answer['corrupt']}; download it again")
    if "refused" in answer:
        raise UsageError(f"{path} {answer['refused']}; it was not opened")
    if not answer["parts"]:
        raise UsageError(f"{path} contains no state dict; it was not opened")
    if path.stat().st_size != answer["size"]:
        raise RunError(f"{path} changed while scaledit read it")
    verified: set[int] = set()

    def tensor(name: str, entry: Mapping[str, Any]) -> Lazy:
        shape, strides = tuple(entry["shape"]), tuple(entry["strides"])
        lazy = from_file(path, entry["dtype"], shape, entry["start"], strides)
        return _verified(lazy, path, name, entry["storage"], verified)

    parts = {
        part: {name: tensor(name, entry) for name, entry in entries.items()}
        for part, entries in answer["parts"].items()
    }
    return Pickled(parts, answer["args"])


def _verified(lazy: Lazy, path: Path, name: str, storage: Sequence[int], verified: set[int]) -> Lazy:
    """`lazy`, whose storage is compared with its CRC-32 before the first read, which torch.load does not do.

    storage: (first byte, number of bytes, CRC-32 or 0 if there is none). verified: the first bytes of the
    storages compared so far; many tensors may be views of one storage.
    """
    start, length, expected = storage

    def read() -> Tensor:
        if start in verified:
            return lazy.read()
        crc, left = 0, length
        with path.open("rb") as file:
            file.seek(start)
            while left and (piece := file.read(min(BLOCK, left))):
                crc, left = zlib.crc32(piece, crc), left - len(piece)
        if crc != expected:
            raise RunError(f"{path} is corrupt: {name} does not match its CRC-32; download it again")
        verified.add(start)
        return lazy.read()

    return Lazy(lazy.dtype, lazy.shape, read) if expected else lazy


def _describe(path: Path) -> dict[str, Any]:
    """The answer of the child process."""
    # -I and -S: no user site-packages, no environment, nothing of this package
    command = [sys.executable, "-I", "-S", str(Path(pickle_reader.__file__)), str(path)]
    streams: Any = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    try:
        answer = json.loads(subprocess.run(command, **streams, timeout=WALL_SECONDS, check=False).stdout)
    except subprocess.TimeoutExpired:
        return {"refused": f"takes more than {WALL_SECONDS} s to be read"}
    except ValueError:  # killed at a limit, before it could answer
        return {
            "refused": f"needs more than {pickle_reader.SECONDS} s of processor time or "
            f"{pickle_reader.MEMORY >> 20} MiB to be read, which no checkpoint does"
        }
    return answer if isinstance(answer, dict) else {"refused": "could not be read"}


class _Tensor(NamedTuple):
    """Pickles as torch.save pickles a tensor. key: its values are the member archive/data/KEY of the zip."""

    lazy: Lazy
    key: int

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        shape = self.lazy.shape
        return (
            torch._utils._rebuild_tensor_v2,  # pyright: ignore[reportAttributeAccessIssue]
            (_Storage(self), 0, shape, contiguous(shape), False, OrderedDict()),
        )


class _Storage(NamedTuple):
    tensor: _Tensor


class _Pickler(pickle.Pickler):
    def persistent_id(self, obj: object) -> Any:
        if not isinstance(obj, _Storage):
            return None
        kinds = {"F32": torch.FloatStorage, "F16": torch.HalfStorage, "BF16": torch.BFloat16Storage}
        lazy, key = obj.tensor
        return "storage", kinds[lazy.dtype], str(key), "cpu", math.prod(lazy.shape)


def write_pickled(file: BinaryIO, tensors: Mapping[str, Lazy], step: Callable[[int], None]) -> None:
    """Writes a state dict that torch.load reads. step: called with the number of bytes of each tensor.

    torch.save is not used: it needs all tensors at once, and its archive writer aborts the whole process if a
    write fails or Ctrl-C interrupts one.
    """
    pickled = io.BytesIO()
    described = {name: _Tensor(lazy, i) for i, (name, lazy) in enumerate(tensors.items())}
    _Pickler(pickled, protocol=2).dump(described)
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for name, data in (("data.pkl", pickled.getvalue()), ("byteorder", b"little"), ("version", b"3\n")):
            archive.writestr(zipfile.ZipInfo(f"archive/{name}"), data)
        for i, (name, lazy) in enumerate(tensors.items()):
            with archive.open(zipfile.ZipInfo(f"archive/data/{i}"), "w", force_zip64=True) as member:
                member.write(bytes_of(name, lazy))
            step(lazy.nbytes)
