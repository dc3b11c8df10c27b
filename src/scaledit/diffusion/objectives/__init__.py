"""Training objectives. One file per objective.

    Simple    || target - out ||^2                                         (Ho et al. 2020, eq. 14)
    Hybrid    Simple + a variational bound that trains the variance        (Nichol & Dhariwal 2021, eq. 16)
    Velocity  || (x_0 - x_hat) / max(t, clamp) ||^2 on the linear flow     (Li & He 2025)
    MinSNR    min(SNR, gamma) || x_0 - x_hat ||^2                          (Hang et al. 2023)

An objective defines the terms of its loss, the random numbers it needs besides t and eps, and its own modules
that are trained with the network. Terms that are added to any of them are in `scaledit.diffusion.terms`.
"""

from scaledit.diffusion.objectives.base import (
    Context,
    Losses,
    Objective,
    OfOneOutput,
    Terms,
    diffuse,
    named_terms,
)
from scaledit.diffusion.objectives.hybrid import Hybrid, discretized_log_likelihood, variational_bound
from scaledit.diffusion.objectives.min_snr import MinSNR
from scaledit.diffusion.objectives.simple import Simple
from scaledit.diffusion.objectives.velocity import VelocityLoss

__all__ = [
    "Context",
    "Hybrid",
    "Losses",
    "MinSNR",
    "Objective",
    "OfOneOutput",
    "Simple",
    "Terms",
    "VelocityLoss",
    "diffuse",
    "discretized_log_likelihood",
    "named_terms",
    "variational_bound",
]
