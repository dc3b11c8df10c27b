"""safetensors: offsets of the tensors in a file, and files written tensor by tensor.

    8 bytes: length of the header   JSON header   the tensors' bytes, one after the other, to the file's end

Files are read with the safetensors library, which checks the header: known types, sizes that fit the shapes,
no gaps, no overlaps, and the size of the file. `header` adds the offset of each tensor, for readers that map
a file read-only or read while others may truncate it. Use `load_file` to read a complete file.

Files are written by `write`, because the library's writer needs all tensors at once and returns no hash: an
export of 2.7 GB takes 0.3 GB here, and the SHA-256 is that of the values in memory, so that it reveals a disk
that stores something else. The library also sorts by type, which would change the bytes of our files, and
before 0.8 it blocks all other threads, training included: 2.1 s for 0.6 GB, measured with 0.7.0.
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
"""The types that scaledit reads and writes, by their names in safetensors."""
NAMES = {dtype: name for name, dtype in DTYPES.items()}


class Stored(NamedTuple):
    """A tensor in a file. dtype: a key of DTYPES. start: its offset in the file in bytes."""

    dtype: str
    shape: tuple[int, ...]
    start: int


def header(path: Path) -> dict[str, Stored]:
    """Every tensor of a file, by name, in the order of the file. Call it inside of `errors.reading`: it
    raises SafetensorError if the file is not a safetensors file or its size differs from its header,
    ValueError if a type is not in DTYPES, OSError."""
    from safetensors import safe_open

    end = path.stat().st_size  # before the header is read, so that a file that shrinks later is noticed
    stored = []
    with safe_open(path, "np") as file:
        for name in reversed(file.offset_keys()):
            tensor = file.get_slice(name)
            dtype, shape = tensor.get_dtype(), tuple(tensor.get_shape())
            if dtype not in DTYPES:
                raise ValueError(f"{name[:100]} is {dtype}, not {', '.join(DTYPES)}")
            end -= math.prod(shape) * DTYPES[dtype].itemsize
            stored.append((name, Stored(dtype, shape, end)))
    return dict(reversed(stored))


def write(
    file: BinaryIO,
    described: Iterable[tuple[str, str, Sequence[int], int]],
    data: Iterable[memoryview],
    about: Mapping[str, str] | None = None,
) -> FileHash:
    """Writes a safetensors file and returns the size and SHA-256 of what was written.

    described: (name, key of DTYPES, shape, size in bytes) of each tensor, in order. data: their bytes; a
    generator keeps one tensor in memory at a time. about: the file's metadata. Raises OSError.
    """
    digest, size = hashlib.sha256(), 0
    for piece in itertools.chain([memoryview(_header_bytes(described, about))], data):
        digest.update(piece)
        file.write(piece)
        size += piece.nbytes
    return FileHash(size, digest.hexdigest())


def bytes_of(tensor: Tensor) -> memoryview:
    """The bytes of a CPU tensor's values in row-major order, without a copy if it is contiguous."""
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data


def _header_bytes(
    described: Iterable[tuple[str, str, Sequence[int], int]], about: Mapping[str, str] | None
) -> bytes:
    """The file up to its first tensor, which begins at a multiple of 8."""
    entries: dict[str, Any] = {} if about is None else {"__metadata__": dict(about)}
    start = 0
    for name, dtype, shape, size in described:
        entries[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [start, start + size]}
        start += size
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text
