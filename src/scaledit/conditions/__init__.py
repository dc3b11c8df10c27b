"""What the images are conditioned on: a batch of conditions of any kind (class labels; later text).

    c_null = c.null()                the null condition of classifier-free guidance (Ho & Salimans 2022)
    c[i:j], cat([c, c_null])         rows of a batch

Only a network's conditioner looks inside a condition; all other code slices, concatenates and moves it. A new
kind of condition is one file here and one conditioner in scaledit.models.
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Self

from scaledit.lazy import Tensor, torch


class Condition(abc.ABC):
    """A batch of conditions. Subclasses are frozen dataclasses. A tensor field holds one row per image in its
    first dimension (there is at least one such field); every other field belongs to the batch."""

    @abc.abstractmethod
    def null(self) -> Self:
        """A batch of the same length that holds the null condition."""

    @abc.abstractmethod
    def describe(self) -> list[Any]:
        """The condition of each row as plain values, for protocols and file names."""

    def _tensors(self) -> dict[str, Tensor]:
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}  # pyright: ignore
        return {name: value for name, value in values.items() if isinstance(value, torch.Tensor)}

    def _map(self, function: Callable[..., Tensor], *others: Self) -> Self:
        """function(tensor, *the same tensor of the others) of every tensor field."""
        columns = [other._tensors() for other in others]
        values = {
            name: function(x, *(column[name] for column in columns)) for name, x in self._tensors().items()
        }
        return dataclasses.replace(self, **values)  # pyright: ignore[reportArgumentType]

    def __len__(self) -> int:
        return len(next(iter(self._tensors().values())))

    def __getitem__(self, rows: slice | Tensor) -> Self:
        """rows: a slice, int64 indices or a mask of booleans, (N,)."""
        return self._map(lambda value: value[rows])

    def to(self, device: torch.device | str) -> Self:
        return self._map(lambda value: value.to(device))

    @property
    def device(self) -> torch.device:
        return next(iter(self._tensors().values())).device

    def where(self, keep: Tensor, other: Self) -> Self:
        """The rows of this batch where keep (N,) is true, and those of `other` elsewhere."""

        def choose(value: Tensor, alternative: Tensor) -> Tensor:
            mask = keep.to(value.device).reshape(-1, *[1] * (value.ndim - 1))
            return torch.where(mask, value, alternative)

        return self._map(choose, other)

    def repeat(self, times: Sequence[int] | Tensor) -> Self:
        """Row i times[i] times, in order."""
        counts = torch.as_tensor(times, device=self.device)
        return self._map(lambda value: value.repeat_interleave(counts, 0))

    def cat(self, others: Sequence[Self]) -> Self:
        """This batch followed by the others, which are of the same kind."""
        return self._map(lambda *values: torch.cat(values), *others)


def cat(parts: Sequence[Condition]) -> Condition:
    """The batches as one. Raises TypeError if their kinds differ."""
    first, *others = parts
    if any(type(other) is not type(first) for other in others):
        kinds = sorted({type(part).__name__ for part in parts})
        raise TypeError(f"conditions of different kinds cannot be concatenated: {kinds}")
    return first.cat(others)
