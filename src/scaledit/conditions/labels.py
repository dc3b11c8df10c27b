"""Class labels: y in 0..K-1, and the null label K for "any class" (Peebles & Xie 2022, section 3.2)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from scaledit.conditions import Condition
from scaledit.lazy import Tensor, torch


@dataclass(frozen=True)
class Labels(Condition):
    """values: (N,) int64 in 0..null_label. null_label: the number of classes."""

    values: Tensor
    null_label: int

    def null(self) -> Labels:
        return Labels(torch.full_like(self.values, self.null_label), self.null_label)

    @classmethod
    def nulls(cls, n: int, null_label: int, device: torch.device | str = "cpu") -> Labels:
        """n rows of the null label."""
        return cls(torch.full((n,), null_label, dtype=torch.int64, device=device), null_label)

    def describe(self) -> list[Any]:
        return self.values.tolist()
