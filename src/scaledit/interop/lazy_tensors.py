"""Tensors that are read on demand, so that converting a file of any size needs the memory of one tensor.

    open_safetensors(path) -> {name: Lazy}  --renamed, reshaped, joined--> write_safetensors(file, ...)

Offsets in a header are checked against the file's size before anything is read. Files are read, not mapped: a
file that shrinks meanwhile raises an error instead of crashing the process.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from scaledit.callbacks import Progress
from scaledit.errors import RunError, UsageError, counted, reading
from scaledit.files import tensors as safetensors_files
from scaledit.files.manifest import FileHash

DTYPES = {name: safetensors_files.DTYPES[name] for name in ("F32", "F16", "BF16")}
"""The dtypes of weights, by safetensors' names."""


@dataclass(frozen=True)
class Lazy:
    """A tensor that has not been read. dtype: a key of DTYPES. read: returns it, contiguous, on the CPU."""

    dtype: str
    shape: tuple[int, ...]
    read: Callable[[], Tensor]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * DTYPES[self.dtype].itemsize

    def reshaped(self, shape: tuple[int, ...]) -> Lazy:
        return self.mapped(shape, lambda tensor: tensor.reshape(shape))

    def rows(self, first: int, last: int) -> Lazy:
        """Rows first..last - 1 of the first axis."""
        return self.mapped((last - first, *self.shape[1:]), lambda tensor: tensor[first:last])

    def mapped(self, shape: tuple[int, ...], change: Callable[[Tensor], Tensor]) -> Lazy:
        """`change` applied to the tensor when it is read. shape: that of the result, in the same dtype."""
        return Lazy(self.dtype, shape, lambda: change(self.read()))


def cat(parts: Sequence[Lazy]) -> Lazy:
    """Concatenated along the first axis."""
    shape = (sum(part.shape[0] for part in parts), *parts[0].shape[1:])
    return Lazy(parts[0].dtype, shape, lambda: torch.cat([part.read() for part in parts]))


def from_tensor(tensor: Tensor) -> Lazy:
    """A tensor in memory. Raises UsageError for a dtype other than DTYPES."""
    names = {dtype: name for name, dtype in DTYPES.items()}
    if tensor.dtype not in names:
        raise UsageError(f"weights are float32, float16 or bfloat16, not {tensor.dtype}")
    return Lazy(names[tensor.dtype], tuple(tensor.shape), lambda: tensor.detach().cpu().contiguous())


def from_file(
    path: Path, dtype: str, shape: tuple[int, ...], start: int, strides: tuple[int, ...] | None = None
) -> Lazy:
    """A tensor whose first element is at byte `start` of `path`. strides: in elements, None if contiguous."""
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
                raise RunError(f"{path} became shorter while scaledit read it")
        return torch.frombuffer(data, dtype=DTYPES[dtype]).as_strided(shape, strides).contiguous()

    return Lazy(dtype, shape, read)


def nonfinite(tensor: Tensor) -> int:
    """The number of NaN and infinite values. If the extremes are finite, nothing is copied."""
    if not tensor.numel() or all(bool(end.isfinite()) for end in tensor.aminmax()):
        return 0
    return int(tensor.numel() - tensor.isfinite().sum())


def checked_finite(
    tensors: Mapping[str, Lazy], path: Path, allow_nonfinite: bool = False
) -> tuple[dict[str, Lazy], tuple[str, ...]]:
    """The tensors of `path`, each of which is checked when it is read, and notes for the user (none).

    Reading a tensor with NaN or infinite values raises RunError, which names the first such tensor and counts
    the others; only then are all tensors read once more. allow_nonfinite: returns the tensors unchecked, and
    a note that describes the values that are not finite, for which all tensors are read at once.
    """
    if allow_nonfinite:
        wrong = describe_nonfinite(tensors)
        return dict(tensors), (f"kept as they are: {wrong}",) if wrong else ()

    def check(tensor: Tensor) -> Tensor:
        if nonfinite(tensor):
            raise RunError(
                f"{path}: {describe_nonfinite(tensors)}; use another copy or checkpoint "
                "(scaledit convert --allow-nonfinite keeps them)"
            )
        return tensor

    return {name: lazy.mapped(lazy.shape, check) for name, lazy in tensors.items()}, ()


def describe_nonfinite(tensors: Mapping[str, Lazy]) -> str:
    """Names the first tensor with values that are not finite and counts the others; "" if there is none."""
    counts = {name: wrong for name, lazy in tensors.items() if (wrong := nonfinite(lazy.read()))}
    if not counts:
        return ""
    name, wrong = next(iter(counts.items()))
    more = f", and so are values of {counted(len(counts) - 1, 'more tensor')}" if len(counts) > 1 else ""
    return f"{wrong} of the {math.prod(tensors[name].shape)} values of {name[:100]} are NaN or infinite{more}"


def contiguous(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Row-major strides."""
    return tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))


def open_safetensors(path: Path) -> dict[str, Lazy]:
    """Every tensor of a file, unread. Raises UsageError if the file is of another kind, does not have the
    bytes that its header lists, or has a dtype other than DTYPES."""
    with reading(path, "a safetensors file", "use another copy", UsageError):
        stored = safetensors_files.header(path)
    for name, (dtype, _, _) in stored.items():
        if dtype not in DTYPES:
            raise UsageError(f"{path} has {name[:100]} as {dtype}; weights are {', '.join(DTYPES)}")
    return {name: from_file(path, *place) for name, place in stored.items()}


def write_safetensors(file: BinaryIO, tensors: Mapping[str, Lazy], step: Callable[[int], None]) -> FileHash:
    """Writes one file sorted by name, so that the same weights give the same bytes, with one tensor at a time
    in memory. Returns its size and SHA-256. step: called with the number of bytes of each tensor."""
    tensors = dict(sorted(tensors.items()))
    described = ((name, lazy.dtype, lazy.shape, lazy.nbytes) for name, lazy in tensors.items())

    def data() -> Iterator[memoryview]:
        for name, lazy in tensors.items():
            yield bytes_of(name, lazy)
            step(lazy.nbytes)

    return safetensors_files.write(file, described, data(), {"format": "pt"})


def counting(progress: Progress, tensors: Mapping[str, Lazy]) -> Callable[[int], None]:
    """A `step` for the writers: reports (bytes written, bytes in total) to `progress`."""
    total, done = sum(lazy.nbytes for lazy in tensors.values()), 0

    def step(nbytes: int) -> None:
        nonlocal done
        done += nbytes
        progress(done, total)

    return step


def bytes_of(name: str, lazy: Lazy) -> memoryview:
    """The values of a tensor in row-major order. Raises RunError if its shape or dtype changed."""
    tensor = lazy.read()
    if tuple(tensor.shape) != lazy.shape or tensor.dtype != DTYPES[lazy.dtype]:
        raise RunError(f"{name} changed while scaledit read it")
    return safetensors_files.bytes_of(tensor)
