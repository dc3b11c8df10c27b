"""Distributions of the training time. A distribution maps a uniform number u to a fraction of the schedule
(`Schedule.time_at` converts it to a time) and an importance weight:

    Uniform            fraction = u
    LogitNormal        fraction = sigmoid(mean + std Phi^-1(u))            (Esser et al. 2024, section 3.1)
    LossSecondMoment   p_k ~ sqrt(E[L_k^2]),  weight 1 / (K p_k)           (Nichol & Dhariwal 2021, eq. 18)

Distributions are sampled by inverting their distribution function, so one keyed uniform number per sample is
enough. They are stateless: `begin` makes a state, which `draw` reads and `update` changes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from scaledit.lazy import Tensor, torch
from scaledit.part import Part, field


class TimeSample(NamedTuple):
    """fraction: (N,) float64 in [0, 1). weight: (N,) float64, the factor of each sample's loss."""

    fraction: Tensor
    weight: Tensor


State = Mapping[str, "Tensor"]
"""The learned state of a distribution: tensors that are saved in checkpoints and may be loaded in place."""
NOTHING: State = {}


class TimeDistribution(Part, kind="time distribution", home="scaledit.diffusion.timesteps", needs=("draw",)):
    def begin(self) -> State:
        """The state before training; most distributions have none."""
        return NOTHING

    def draw(self, u: Tensor, state: State = NOTHING) -> TimeSample:
        """The samples for u (N,) float64, uniform on [0, 1). state: from `begin`, changed by `update`."""
        raise NotImplementedError

    def update(self, state: State, fraction: Tensor, losses: Tensor) -> None:
        """Updates the tensors of `state` in place with one step's fractions and unweighted losses, (N,)."""


@dataclass(frozen=True)
class Uniform(TimeDistribution, name="uniform"):
    """All times are equally likely, as in the paper."""

    def draw(self, u: Tensor, state: State = NOTHING) -> TimeSample:
        return TimeSample(u, torch.ones_like(u))


@dataclass(frozen=True)
class LogitNormal(TimeDistribution, name="logit_normal"):
    """Logit-normal times, unweighted: the loss is meant to emphasize times in the middle."""

    mean: float = field(0.0, doc="mean of the logit; positive values favor noisier times")
    std: float = field(1.0, gt=0, doc="standard deviation of the logit")

    def draw(self, u: Tensor, state: State = NOTHING) -> TimeSample:
        # u = 0 would give -infinity; 2^-54 is half the spacing of the uniform numbers.
        z = torch.special.ndtri(u.clamp_min(2.0**-54))
        return TimeSample(torch.sigmoid(self.mean + self.std * z), torch.ones_like(u))


@dataclass(frozen=True)
class LossSecondMoment(TimeDistribution, name="loss_second_moment"):
    """ADM's importance sampling by the last `history` losses in each of `bins` equal parts of the schedule.
    Uniform until every bin has that many; afterwards a share `uniform` of the probability stays uniform."""

    bins: int = field(1000, ge=1, le=1_000_000, doc="number of equal parts of the schedule")
    history: int = field(10, ge=1, le=1000, doc="number of recent losses kept per bin")
    uniform: float = field(0.001, gt=0, le=1, doc="share of the probability that stays uniform")

    def begin(self) -> State:
        """losses: (bins, history) float64, the latest of each bin, oldest first. counts: (bins,) int64, how
        many losses each bin has so far."""
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
        latest, counts = state["losses"], state["counts"]
        bins = (fraction * self.bins).long()
        for k, loss in zip(bins.tolist(), losses.detach().to("cpu", torch.float64).tolist(), strict=True):
            if counts[k] == self.history:
                latest[k] = latest[k].roll(-1)
            else:
                counts[k] += 1
            latest[k, counts[k] - 1] = loss
