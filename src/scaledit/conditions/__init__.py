"""What images are asked for: a batch of conditions, whatever they are (class labels, later text).

    c_null = c.null()                what classifier-free guidance leads away from (Ho & Salimans 2022)
    c[i:j], cat([c, c_null])         rows of a batch

A network embeds its conditions itself; the rest of the house only slices, joins and moves them. A further
kind of condition is one file here and one conditioner in scaledit.models.
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    from scaledit.lazy import torch


class Condition(abc.ABC):
    """A batch of what is asked for. Subclasses are frozen dataclasses; fields that are tensors hold one row
    for each image in their first dimension (at least one field does), all others are the batch's own."""

    @abc.abstractmethod
    def null(self) -> Self:
        """A batch as long, that asks for nothing in particular."""

    @abc.abstractmethod
    def describe(self) -> list[Any]:
        """What each row asks for, as plain values for protocols and file names."""

    def _rows(self) -> dict[str, Tensor]:
        values = {one.name: getattr(self, one.name) for one in dataclasses.fields(self)}  # pyright: ignore
        return {name: value for name, value in values.items() if isinstance(value, torch.Tensor)}

    def _with(self, rows: dict[str, Tensor]) -> Self:
        return dataclasses.replace(self, **rows)  # pyright: ignore[reportArgumentType]

    def __len__(self) -> int:
        return len(next(iter(self._rows().values())))

    def __getitem__(self, rows: slice | Tensor) -> Self:
        """rows: a slice, int64 indices or a mask of booleans, (N,)."""
        return self._with({name: value[rows] for name, value in self._rows().items()})

    def to(self, device: torch.device | str) -> Self:
        return self._with({name: value.to(device) for name, value in self._rows().items()})

    @property
    def device(self) -> torch.device:
        return next(iter(self._rows().values())).device

    def where(self, keep: Tensor, other: Self) -> Self:
        """The rows of this batch where keep (N,) is true, those of `other` elsewhere."""
        theirs = other._rows()

        def choose(ours: Tensor, others: Tensor) -> Tensor:
            return torch.where(keep.to(ours.device).reshape(-1, *[1] * (ours.ndim - 1)), ours, others)

        return self._with({name: choose(value, theirs[name]) for name, value in self._rows().items()})

    def repeat(self, times: Sequence[int] | Tensor) -> Self:
        """Row i times[i] times, in order."""
        counts = torch.as_tensor(times, device=self.device)
        return self._with({name: value.repeat_interleave(counts, 0) for name, value in self._rows().items()})

    def cat(self, others: Sequence[Self]) -> Self:
        """This batch and then the others, which are of the same kind."""
        every = [self, *others]
        return self._with({name: torch.cat([one._rows()[name] for one in every]) for name in self._rows()})


def cat(parts: Sequence[Condition]) -> Condition:
    """One batch of several. Raises TypeError where they are of different kinds."""
    first, *others = parts
    if any(type(one) is not type(first) for one in others):
        raise TypeError(f"conditions of different kinds: {sorted({type(one).__name__ for one in parts})}")
    return first.cat(others)
