"""Importance sampling of the time by the loss:

p_k ~ sqrt(E[L_k^2]),  weight 1 / (K p_k)                              (Nichol & Dhariwal 2021, eq. 18)
"""

from __future__ import annotations

from dataclasses import dataclass

from scaledit.diffusion.timesteps.base import NOTHING, State, TimeDistribution, TimeSample
from scaledit.lazy import Tensor, torch
from scaledit.part import field


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
