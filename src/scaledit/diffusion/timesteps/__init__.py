"""Distributions of the training time. A distribution maps a uniform number u to a fraction of the schedule
(`Schedule.time_at` converts it to a time) and an importance weight. One file per distribution:

    Uniform            fraction = u
    LogitNormal        fraction = sigmoid(mean + std Phi^-1(u))            (Esser et al. 2024, section 3.1)
    LossSecondMoment   p_k ~ sqrt(E[L_k^2]),  weight 1 / (K p_k)           (Nichol & Dhariwal 2021, eq. 18)
    ShiftedTimes       fraction = s f / (1 + (s - 1) f), f from another    (Esser et al. 2024, eq. 23)

Distributions are sampled by inverting their distribution function, so one keyed uniform number per sample is
enough. They are stateless: `begin` makes a state, which `draw` reads and `update` changes.
"""

from scaledit.diffusion.timesteps.base import NOTHING, State, TimeDistribution, TimeSample
from scaledit.diffusion.timesteps.logit_normal import LogitNormal
from scaledit.diffusion.timesteps.loss_second_moment import LossSecondMoment
from scaledit.diffusion.timesteps.shifted import ShiftedTimes
from scaledit.diffusion.timesteps.uniform import Uniform

__all__ = [
    "NOTHING",
    "LogitNormal",
    "LossSecondMoment",
    "ShiftedTimes",
    "State",
    "TimeDistribution",
    "TimeSample",
    "Uniform",
]
