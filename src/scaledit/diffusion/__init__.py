"""What is done with a network: schedules, parameterizations, denoisers, guidance, samplers, objectives.

Small parts that compose; each is a frozen dataclass, so the part is its own configuration:

    denoiser = NetDenoiser(net, LinearBeta(steps=1000), LearnedRange(Epsilon()))    # the paper
    denoiser = ClassifierFree(denoiser, scale=1.5, channels=3)
    x = sample(denoiser, DDPM(steps=250), Noise(seed, indices, shape), y)
"""

from scaledit.diffusion.denoiser import Denoiser, NetDenoiser, Network
from scaledit.diffusion.guidance import ClassifierFree, Guidance, guided
from scaledit.diffusion.noise import Noise, OfficialNoise
from scaledit.diffusion.objectives import Hybrid, Losses, Objective, Simple, diffuse
from scaledit.diffusion.parameterization import (
    Epsilon,
    LearnedRange,
    Parameterization,
    Prediction,
    Start,
    Velocity,
)
from scaledit.diffusion.samplers import (
    DDIM,
    DDPM,
    DPMSolver,
    Euler,
    Heun,
    NoiseSource,
    NonFiniteError,
    Sampler,
    UniPC,
    sample,
)
from scaledit.diffusion.schedule import (
    CosineBeta,
    Interpolant,
    LinearBeta,
    LinearFlow,
    QuadraticBeta,
    Schedule,
)
from scaledit.diffusion.timesteps import LogitNormal, LossSecondMoment, TimeDistribution, Uniform

__all__ = [
    "DDIM",
    "DDPM",
    "ClassifierFree",
    "CosineBeta",
    "DPMSolver",
    "Denoiser",
    "Epsilon",
    "Euler",
    "Guidance",
    "Heun",
    "Hybrid",
    "Interpolant",
    "LearnedRange",
    "LinearBeta",
    "LinearFlow",
    "LogitNormal",
    "LossSecondMoment",
    "Losses",
    "NetDenoiser",
    "Network",
    "Noise",
    "NoiseSource",
    "NonFiniteError",
    "Objective",
    "OfficialNoise",
    "Parameterization",
    "Prediction",
    "QuadraticBeta",
    "Sampler",
    "Schedule",
    "Simple",
    "Start",
    "TimeDistribution",
    "UniPC",
    "Uniform",
    "Velocity",
    "diffuse",
    "guided",
    "sample",
]
