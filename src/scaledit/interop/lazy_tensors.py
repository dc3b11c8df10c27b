"""Tensors that are read when they are asked for, so that a file of any size is converted a tensor at a time.

    open_safetensors(path) -> {name: Lazy}  --renamed, reshaped, cut, joined-->  write_safetensors(file, ...)

What a header says is checked against the file's length before anything is read. Files are read, not mapped:
one that shrinks meanwhile is an error, not a crash.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from scaledit.errors import RunError, UsageError, reading
from scaledit.files import tensors as safetensors_files
from scaledit.files.manifest import FileHash

DTYPES = {name: safetensors_files.DTYPES[name] for name in ("F32", "F16", "BF16")}
"""By safetensors' names; weights come in no others."""


@dataclass(frozen=True)
class Lazy:
    """A tensor that is not there yet. dtype: a key of DTYPES. read: gives it, contiguous, on the CPU."""

    dtype: str
    shape: tuple[int, ...]
    read: Callable[[], Tensor]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * DTYPES[self.dtype].itemsize

    def reshaped(self, shape: tuple[int, ...]) -> Lazy:
        return Lazy(self.dtype, shape, lambda: self.read().reshape(shape))

    def rows(self, first: int, last: int) -> Lazy:
        """Rows first..last - 1 of the first axis."""
        return Lazy(self.dtype, (last - first, *self.shape[1:]), lambda: self.read()[first:last])

    def mapped(self, shape: tuple[int, ...], change: Callable[[Tensor], Tensor]) -> Lazy:
        return Lazy(self.dtype, shape, lambda: change(self.read()))


def cat(parts: Sequence[Lazy]) -> Lazy:
    """One after the other along the first axis."""
    shape = (sum(part.shape[0] for part in parts), *parts[0].shape[1:])
    return Lazy(parts[0].dtype, shape, lambda: torch.cat([part.read() for part in parts]))


def from_tensor(tensor: Tensor) -> Lazy:
    """A tensor in memory. Raises UsageError for a dtype that weights do not have."""
    names = {dtype: name for name, dtype in DTYPES.items()}
    if tensor.dtype not in names:
        raise UsageError(f"weights are float32, float16 or bfloat16, not {tensor.dtype}")
    return Lazy(names[tensor.dtype], tuple(tensor.shape), lambda: tensor.detach().cpu().contiguous())


def from_file(
    path: Path, dtype: str, shape: tuple[int, ...], start: int, strides: tuple[int, ...] | None = None
) -> Lazy:
    """A tensor whose first element begins at the byte `start` of `path`. strides: in elements; None is
    contiguous."""
    strides = contiguous(shape) if strides is None else strides
    numel = math.prod(shape)
    extent = 1 + sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True)) if numel else 0

    def read() -> Tensor:
        if not numel:
            return torch.empty(shape, dtype=DTYPES[dtype])
        data = bytearray(extent * DTYPES[dtype].itemsize)
        with path.open("rb") as file:
            file.seek(start)
            if file.readinto(data) != len(data):
                raise RunError(f"{path} became shorter while it was read")
        return torch.frombuffer(data, dtype=DTYPES[dtype]).as_strided(shape, strides).contiguous()

    return Lazy(dtype, shape, read)


def nonfinite(tensor: Tensor) -> int:
    """How many values are NaN or infinite. Where none are, which is told from the smallest and the largest
    value, no copy is made."""
    if not tensor.numel() or all(bool(end.isfinite()) for end in tensor.aminmax()):
        return 0
    return int(tensor.numel() - tensor.isfinite().sum())


def checked_finite(
    tensors: Mapping[str, Lazy], path: Path, allow_nonfinite: bool = False
) -> tuple[dict[str, Lazy], tuple[str, ...]]:
    """The tensors of `path`, each of which is looked through when it is read; and nothing to say. Reading one
    that has NaN or infinite values raises RunError: it names the first of them and counts the others, which
    costs another pass over the file then, and only then.

    allow_nonfinite: the tensors as they are, and a sentence of what is not finite in them; that pass at once.
    """
    if allow_nonfinite:
        found = counts(tensors)
        return dict(tensors), (f"kept as they are: {nonfinite_message(found)}",) if found else ()

    def checked(lazy: Lazy) -> Lazy:
        def read() -> Tensor:
            tensor = lazy.read()
            if nonfinite(tensor):
                raise RunError(
                    f"{path}: {nonfinite_message(counts(tensors))}; take another copy or checkpoint "
                    "(scaledit convert --allow-nonfinite keeps them)"
                )
            return tensor

        return Lazy(lazy.dtype, lazy.shape, read)

    return {name: checked(lazy) for name, lazy in tensors.items()}, ()


def counts(tensors: Mapping[str, Lazy]) -> dict[str, tuple[int, int]]:
    """{name: (values that are not finite, values)} of the tensors that have such values, in order."""
    found = {}
    for name, lazy in tensors.items():
        if wrong := nonfinite(lazy.read()):
            found[name] = wrong, math.prod(lazy.shape)
    return found


def nonfinite_message(found: Mapping[str, tuple[int, int]]) -> str:
    """What `counts` found, in words: at least one tensor."""
    name, (wrong, values) = next(iter(found.items()))
    more = f", and values of {len(found) - 1} more tensors" if len(found) > 1 else ""
    return f"{wrong} of the {values} values of {name[:100]} are NaN or infinite{more}"


def contiguous(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Row-major strides."""
    return tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))


def open_safetensors(path: Path) -> dict[str, Lazy]:
    """Every tensor of a file, unread. Raises UsageError for another kind of file or dtype, and where the file
    does not have the bytes that its header says."""
    with reading(path, "a safetensors file", "take another copy", UsageError):
        stored = safetensors_files.header(path)
    for name, (dtype, _, _) in stored.items():
        if dtype not in DTYPES:
            raise UsageError(f"{path} has {name[:100]} as {dtype}; weights are {', '.join(DTYPES)}")
    return {name: from_file(path, *place) for name, place in stored.items()}


def write_safetensors(file: BinaryIO, tensors: Mapping[str, Lazy], step: Callable[[int], None]) -> FileHash:
    """Writes one file, a tensor in memory at a time, by name: the same weights give the same bytes. Gives its
    size and SHA-256. step: called with the bytes of each tensor."""
    tensors = dict(sorted(tensors.items()))
    described = ((name, lazy.dtype, lazy.shape, lazy.nbytes) for name, lazy in tensors.items())

    def data() -> Iterator[memoryview]:
        for name, lazy in tensors.items():
            yield bytes_of(name, lazy)
            step(lazy.nbytes)

    return safetensors_files.write(file, described, data(), {"format": "pt"})


def bytes_of(name: str, lazy: Lazy) -> memoryview:
    """A tensor's values, row by row. Raises RunError where it is no longer what it was said to be."""
    tensor = lazy.read()
    if tuple(tensor.shape) != lazy.shape or tensor.dtype != DTYPES[lazy.dtype]:
        raise RunError(f"{name} changed while it was read")
    return safetensors_files.bytes_of(tensor)
