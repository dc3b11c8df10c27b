"""Diffusion over any network: schedules, parameterizations, denoisers, guidance, samplers, objectives.

Small parts that compose. Each is a frozen dataclass and therefore its own configuration:

    denoiser = NetDenoiser(net, LinearBeta(steps=1000), LearnedRange(Epsilon()))    # the paper
    denoiser = ClassifierFree(denoiser, scale=1.5, channels=3)     # guided as in the paper
    x = sample(denoiser, DDPM(steps=250), Noise(seed, indices, shape), y)
"""

from scaledit.diffusion.denoiser import Denoiser, NetDenoiser, Network
from scaledit.diffusion.guidance import (
    Autoguidance,
    CFGZeroStar,
    ClassifierFree,
    Guidance,
    Internal,
    Interval,
    Rescale,
    Scheduled,
    guided,
)
from scaledit.diffusion.noise import Noise, OfficialNoise
from scaledit.diffusion.objectives import (
    Context,
    Hybrid,
    Losses,
    MinSNR,
    Objective,
    Simple,
    VelocityLoss,
    diffuse,
)
from scaledit.diffusion.parameterization import (
    EDM,
    X0,
    Epsilon,
    LearnedRange,
    Parameterization,
    Prediction,
    Velocity,
)
from scaledit.diffusion.samplers import (
    DDIM,
    DDPM,
    Adaptive,
    Batch,
    DPMSolver,
    Euler,
    Heun,
    Job,
    NoiseSource,
    NonFiniteError,
    Sampler,
    TooManyEvaluations,
    UniPC,
    sample,
    sample_many,
)
from scaledit.diffusion.schedule import CosineBeta, LinearBeta, LinearFlow, QuadraticBeta, Schedule
from scaledit.diffusion.times import (
    Auto,
    Even,
    Karras,
    Listed,
    LogSNR,
    Quadratic,
    Shifted,
    Sine,
    Stride,
    Times,
)
from scaledit.diffusion.timesteps import (
    LogitNormal,
    LossSecondMoment,
    ShiftedTimes,
    TimeDistribution,
    Uniform,
)

Start = X0
"""The name of X0 in version 0.1."""

__all__ = [
    "DDIM",
    "DDPM",
    "EDM",
    "X0",
    "Adaptive",
    "Auto",
    "Autoguidance",
    "Batch",
    "CFGZeroStar",
    "ClassifierFree",
    "Context",
    "CosineBeta",
    "DPMSolver",
    "Denoiser",
    "Epsilon",
    "Euler",
    "Even",
    "Guidance",
    "Heun",
    "Hybrid",
    "Internal",
    "Interval",
    "Job",
    "Karras",
    "LearnedRange",
    "LinearBeta",
    "LinearFlow",
    "Listed",
    "LogSNR",
    "LogitNormal",
    "LossSecondMoment",
    "Losses",
    "MinSNR",
    "NetDenoiser",
    "Network",
    "Noise",
    "NoiseSource",
    "NonFiniteError",
    "Objective",
    "OfficialNoise",
    "Parameterization",
    "Prediction",
    "Quadratic",
    "QuadraticBeta",
    "Rescale",
    "Sampler",
    "Schedule",
    "Scheduled",
    "Shifted",
    "ShiftedTimes",
    "Simple",
    "Sine",
    "Start",
    "Stride",
    "TimeDistribution",
    "Times",
    "TooManyEvaluations",
    "UniPC",
    "Uniform",
    "Velocity",
    "VelocityLoss",
    "diffuse",
    "guided",
    "sample",
    "sample_many",
]
