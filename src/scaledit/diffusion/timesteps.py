"""Which times a model is trained on. A distribution turns a uniform number u into a fraction of the schedule
(`Schedule.at` makes it a time) and a weight that keeps the expected loss what it was:

    Uniform            fraction = u
    LogitNormal        fraction = sigmoid(mean + std Phi^-1(u))            (Esser et al. 2024, section 3.1)
    LossSecondMoment   p_k ~ sqrt(E[L_k^2]),  weight 1 / (K p_k)           (Nichol & Dhariwal 2021, eq. 18)

By inverting the distribution function one keyed uniform number a sample is enough. What a distribution learns
is not in it: `begin` makes a state, which `draw` reads and `update` changes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from scaledit.part import Part, field

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    from scaledit.lazy import torch


class TimeSample(NamedTuple):
    """fraction: (N,) float64 in [0, 1). weight: (N,) float64, multiplies each sample's loss."""

    fraction: Tensor
    weight: Tensor


State = Mapping[str, "Tensor"]
"""What a distribution has learned: the tensors that a checkpoint holds, which may be loaded in place."""
NOTHING: State = {}


class TimeDistribution(Part, kind="time distribution", home="scaledit.diffusion.timesteps", needs=("draw",)):
    def begin(self) -> State:
        """What it knows before training; most distributions learn nothing."""
        return NOTHING

    def draw(self, u: Tensor, state: State = NOTHING) -> TimeSample:
        """u (N,) float64, uniform on [0, 1). state: as `begin` made it and `update` changed it."""
        raise NotImplementedError

    def update(self, state: State, fraction: Tensor, losses: Tensor) -> None:
        """Changes the tensors of `state` by what one step taught: fractions and unweighted losses, (N,)."""


@dataclass(frozen=True)
class Uniform(TimeDistribution, name="uniform"):
    """All times alike (the paper's)."""

    def draw(self, u: Tensor, state: State = NOTHING) -> TimeSample:
        return TimeSample(u, torch.ones_like(u))


@dataclass(frozen=True)
class LogitNormal(TimeDistribution, name="logit_normal"):
    """Unweighted: the change of density is meant (it spends training where the task is hard)."""

    mean: float = field(0.0, doc="of the logit; above 0 towards noise")
    std: float = field(1.0, gt=0, doc="of the logit")

    def draw(self, u: Tensor, state: State = NOTHING) -> TimeSample:
        # u = 0 would be -infinity; the smallest step of a double's uniform grid stands for it.
        z = torch.special.ndtri(u.clamp_min(2.0**-54))
        return TimeSample(torch.sigmoid(self.mean + self.std * z), torch.ones_like(u))


@dataclass(frozen=True)
class LossSecondMoment(TimeDistribution, name="loss_second_moment"):
    """ADM's importance sampling: `bins` of the schedule, the last `history` losses of each remembered.
    Uniform until every bin has seen that many; a floor `uniform` of the probability is kept."""

    bins: int = field(1000, ge=1, le=1_000_000, doc="parts of the schedule")
    history: int = field(10, ge=1, le=1000, doc="losses that are remembered of each")
    uniform: float = field(0.001, gt=0, le=1, doc="share of the probability that is uniform")

    def begin(self) -> State:
        """losses: (bins, history) float64, the last ones of each bin, oldest first. counts: (bins,) int64,
        how many of them there are so far."""
        return {
            "losses": torch.zeros(self.bins, self.history, dtype=torch.float64),
            "counts": torch.zeros(self.bins, dtype=torch.int64),
        }

    def probabilities(self, state: State) -> Tensor:
        """(bins,) float64, summing to one."""
        if not state or bool((state["counts"] < self.history).any()) or not bool(state["losses"].any()):
            return torch.full((self.bins,), 1 / self.bins, dtype=torch.float64)
        p = state["losses"].square().mean(dim=1).sqrt()
        return p / p.sum() * (1 - self.uniform) + self.uniform / self.bins

    def draw(self, u: Tensor, state: State = NOTHING) -> TimeSample:
        p = self.probabilities(state)
        upper = p.cumsum(0)
        k = torch.searchsorted(upper, u * upper[-1], right=True).clamp(max=self.bins - 1)
        inside = ((u * upper[-1] - (upper[k] - p[k])) / p[k]).clamp(1e-6, 1 - 1e-6)
        return TimeSample((k + inside) / self.bins, 1 / (self.bins * p[k]))

    def update(self, state: State, fraction: Tensor, losses: Tensor) -> None:
        remembered, counts = state["losses"], state["counts"]
        bins = (fraction * self.bins).long()
        for k, loss in zip(bins.tolist(), losses.detach().to("cpu", torch.float64).tolist(), strict=True):
            if counts[k] == self.history:
                remembered[k, :-1] = remembered[k, 1:].clone()
                remembered[k, -1] = loss
            else:
                remembered[k, counts[k]] = loss
                counts[k] += 1
