"""What distributions of the training time share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from scaledit.lazy import Tensor
from scaledit.part import Part


class TimeSample(NamedTuple):
    """fraction: (N,) float64 in [0, 1). weight: (N,) float64, the factor of each sample's loss."""

    fraction: Tensor
    weight: Tensor


State = Mapping[str, "Tensor"]
"""The learned state of a distribution: tensors that are saved in checkpoints and may be loaded in place."""
NOTHING: State = {}


class TimeDistribution(Part, kind="time distribution", home="scaledit.diffusion.timesteps", needs=("draw",)):
    def chosen_for(self, shape: Sequence[int]) -> TimeDistribution:
        """The distribution for inputs (C, H, W): itself, unless it depends on their shape."""
        return self

    def begin(self) -> State:
        """The state before training; most distributions have none."""
        return NOTHING

    def draw(self, u: Tensor, state: State = NOTHING) -> TimeSample:
        """The samples for u (N,) float64, uniform on [0, 1). state: from `begin`, changed by `update`."""
        raise NotImplementedError

    def update(self, state: State, fraction: Tensor, losses: Tensor) -> None:
        """Updates the tensors of `state` in place with one step's fractions and unweighted losses, (N,)."""
