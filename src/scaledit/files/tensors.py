"""safetensors: where the tensors of a file lie, and a file written tensor by tensor.

    8 bytes: length of the header   JSON header   the tensors' bytes, one after the other, to the file's end

Files are read with the safetensors library, which checks the header: known types, sizes that fit the shapes,
no gap and no overlap, as many bytes as the file has. `header` adds where each tensor begins, for readers that
map a file read-only or that read while others may cut it short; a whole file is read with `load_file`.

Files are written by `write`, because the library's writer takes all tensors at once and gives no hash: an
export of 2.7 GB needs 0.3 GB here, and the SHA-256 is of what lay in memory, so that it convicts a disk that
writes something else. The library's also sorts by type, which would change the bytes of our files, and before
0.8 it stops all other threads, such as that of training: 2.1 s for 0.6 GB, measured with 0.7.0.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import torch
from torch import Tensor

from scaledit.files.manifest import FileHash

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
"""By safetensors' names: the types that scaledit reads and writes."""
NAMES = {dtype: name for name, dtype in DTYPES.items()}


class Stored(NamedTuple):
    """A tensor in a file. dtype: a key of DTYPES. start: the byte of the file at which it begins."""

    dtype: str
    shape: tuple[int, ...]
    start: int


def header(path: Path) -> dict[str, Stored]:
    """Every tensor of a file, by name, in the order in which they lie. To be called inside of
    `errors.reading`: raises SafetensorError for what is no safetensors file or does not have the bytes that
    its header says, ValueError for a type that is not in DTYPES, OSError."""
    from safetensors import safe_open

    end = path.stat().st_size  # before the header is read: a file that shrinks later is found to be too short
    found = []
    with safe_open(path, "np") as file:
        for name in reversed(file.offset_keys()):
            about = file.get_slice(name)
            dtype, shape = about.get_dtype(), tuple(about.get_shape())
            if dtype not in DTYPES:
                raise ValueError(f"{name[:100]} is {dtype}, not {', '.join(DTYPES)}")
            end -= math.prod(shape) * DTYPES[dtype].itemsize
            found.append((name, Stored(dtype, shape, end)))
    return dict(reversed(found))


def write(
    file: BinaryIO,
    described: Iterable[tuple[str, str, Sequence[int], int]],
    data: Iterable[memoryview],
    about: Mapping[str, str] | None = None,
) -> FileHash:
    """Writes a safetensors file; gives its size and the SHA-256 of what was written.

    described: (name, key of DTYPES, shape, bytes) of each tensor, as they follow. data: their bytes, one at a
    time in memory if it is a generator. about: the file's own metadata. Raises OSError.
    """
    digest, size = hashlib.sha256(), 0
    for piece in itertools.chain([memoryview(_header_bytes(described, about))], data):
        digest.update(piece)
        file.write(piece)
        size += piece.nbytes
    return FileHash(size, digest.hexdigest())


def bytes_of(tensor: Tensor) -> memoryview:
    """A CPU tensor's values, row by row, without a copy where it is contiguous."""
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data


def _header_bytes(
    described: Iterable[tuple[str, str, Sequence[int], int]], about: Mapping[str, str] | None
) -> bytes:
    """How a file begins, up to its first tensor, which begins at a multiple of 8."""
    entries: dict[str, Any] = {} if about is None else {"__metadata__": dict(about)}
    at = 0
    for name, dtype, shape, size in described:
        entries[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text
