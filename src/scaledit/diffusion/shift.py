"""The shift of times towards noise, the same in training and in sampling.

    t' = s t / (1 + (s - 1) t)                                              (Esser et al. 2024, eq. 23)
    s  = max(1, sqrt(C H W / 4096))  for "auto"             (Zheng et al. 2025, arXiv:2510.11690)

On the linear flow it divides alpha / sigma by s: the more numbers an image has, the less of it the same noise
hides. The rule was made for inputs of more than 4,096 numbers, so smaller ones are not shifted towards the
data.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

from scaledit.errors import UsageError
from scaledit.lazy import Tensor

AUTO = "auto"
Shift = float | Literal["auto"]
"""s, or the word for the rule."""
UNSHIFTED_NUMBERS = 4096
"""The numbers of an input, C H W, up to which "auto" does not shift."""


def shifted(t: Tensor, s: float) -> Tensor:
    """t' for times t as fractions of the schedule, from 0 (clean) to 1."""
    return s * t / (1 + (s - 1) * t)


def unshifted(t: Tensor, s: float) -> Tensor:
    """The inverse of `shifted`, which is the shift by 1 / s."""
    return t / (s - (s - 1) * t)


def auto_shift(shape: Sequence[int]) -> float:
    """The shift of "auto" for inputs (C, H, W)."""
    return max(1.0, math.sqrt(math.prod(shape) / UNSHIFTED_NUMBERS))


def number(shift: Shift) -> float:
    """s. Raises UsageError for "auto", which has no value before the inputs' shape is known."""
    if isinstance(shift, str):
        raise UsageError('shift="auto" depends on the shape of the inputs; call chosen_for((C, H, W)) first')
    return shift


def check(shift: object, where: str = "") -> None:
    """Raises UsageError for a word that is not "auto". where: prefix of the field's name."""
    if isinstance(shift, str) and shift != AUTO:
        raise UsageError(f'{where}shift must be a number or "auto", got {shift!r}')
