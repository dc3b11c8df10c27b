"""Training objectives.

    L_simple = || target - out ||^2                                        (Ho et al. 2020, eq. 14)
    L_vlb    = KL(q(x_s | x_t, x_0) || p(x_s | x_t)),  s one tick below t;  -log p(x_0 | x_1) at the first
    Hybrid   = L_simple + L_vlb, the mean detached inside L_vlb             (Nichol & Dhariwal 2021, eq. 16)

in bits per dimension, unscaled, as in the paper. At the first time the likelihood is that of pixels
discretized to 8 bits, for latents too, as in the official code.

An objective defines the terms of its loss, the random numbers it needs besides t and eps, and its own modules
that are trained with the network:

    {"total": (N,), "mse": (N,), ...} = objective(denoiser, x0, y, t, eps, context=context)
    context = draws, modules, average
"""

from __future__ import annotations

import inspect
import math
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

from scaledit.diffusion.denoiser import NetDenoiser
from scaledit.diffusion.noise import DRAW_KINDS
from scaledit.diffusion.parameterization import LearnedRange, posterior_log_variance
from scaledit.diffusion.schedule import Schedule, as_time, broadcast_like, transition
from scaledit.errors import UsageError, did_you_mean
from scaledit.lazy import Tensor, torch
from scaledit.part import Part


class Losses(NamedTuple):
    """Per sample, (N,): the minimized total and its terms. vlb is None if the objective has none."""

    total: Tensor
    mse: Tensor
    vlb: Tensor | None


Terms = Mapping[str, "Tensor | None"] | tuple["Tensor | None", ...]
"""A dict or named tuple of tensors (N,): "total", which is minimized, comes first; the others are logged. A
term that is None is not logged."""


class Context(NamedTuple):
    """What training passes to an objective besides a batch.

    draws: the random numbers declared by `Objective.draws`: uniform on [0, 1), (N,) float64, or standard
    normal, (N, C, H, W) float32, on the device of x0.
    modules: what `Objective.modules` built, with its current weights; None if it built nothing.
    average: a denoiser with the moving average of the network's weights, which get no gradient. It may be
    called on one rank, under DDP and under FSDP; under FSDP all ranks must make the same calls.
    """

    draws: Mapping[str, Tensor]
    modules: Any
    average: NetDenoiser


class Objective(Part, kind="objective", home="scaledit.diffusion.objectives", needs=("__call__",)):
    """A training loss. Class attributes, or properties that depend on fields, declare what it needs:

    draws: {name: "uniform" or "normal"}, random numbers besides t and eps. Each is a function of (seed,
    position of the sample in training, name), so it does not depend on how a batch is split, nor on the other
    names.
    learns_variance: whether the network has channels for a variance, which this objective trains.
    """

    draws: ClassVar[Mapping[str, str]] = {}
    learns_variance: ClassVar[bool] = False

    def __call__(
        self,
        denoiser: NetDenoiser,
        x0: Tensor,
        y: Tensor | None,
        t: Tensor,
        eps: Tensor,
        *,
        context: Context | None = None,
    ) -> Terms:
        """The loss of each sample.

        denoiser: the network in training, with its schedule and parameterization. x0: clean images or latents
        (N, C, H, W). y: their labels. t: (N,) float64, times of the schedule. eps: standard normal, shaped as
        x0. context: passed by training; the objectives of this module do not need it.
        """
        raise NotImplementedError

    def modules(self, config: Any) -> torch.nn.Module | None:
        """The objective's own modules, freshly initialized (the caller seeds torch's generator), or None.

        config: the DiTConfig of the network. The optimizer trains their parameters together with those of the
        network, ranks sum their gradients, checkpoints hold their state_dict in the file "objective", and
        exported models omit them. They must be functions of their inputs and parameters only: dropout and
        running statistics are refused.
        """
        return None

    def check(self, where: str = "") -> None:
        """Raises UsageError if the declared draws are invalid or __call__ takes no context."""
        super().check(where)
        part = self.part_name()
        for name, kind in self.draws.items():
            if not name.isidentifier():
                raise UsageError(f"{part}.draws: {name!r} is not a name; use letters and digits")
            if kind not in DRAW_KINDS:
                raise UsageError(f"{part}.draws: {name} is {kind!r}{did_you_mean(kind, DRAW_KINDS)}")
        if len({zlib.crc32(name.encode()) for name in self.draws}) < len(self.draws):
            raise UsageError(f"{part}.draws: two names have the same CRC-32; rename one of them")
        parameters = inspect.signature(type(self).__call__).parameters.values()
        if not any(p.name == "context" or p.kind is p.VAR_KEYWORD for p in parameters):
            raise UsageError(f"{part}.__call__ accepts no context; add the parameter *, context=None")


def named_terms(objective: Objective, losses: Terms, n: int) -> dict[str, Tensor]:
    """The terms of n samples by name, "total" first, without those that are None.

    Raises UsageError naming the objective if there is no total, or a term is not (n,).
    """
    name = objective.part_name()
    if isinstance(losses, Mapping):
        terms = dict(losses)
    elif hasattr(losses, "_asdict"):
        terms = losses._asdict()  # pyright: ignore[reportAttributeAccessIssue]
    else:
        raise UsageError(f"{name} must return a dict or a named tuple of terms, got {type(losses).__name__}")
    if next(iter(terms), None) != "total" or terms["total"] is None:
        raise UsageError(f'{name} must return "total", the minimized loss, as its first term')
    for key, value in terms.items():
        if value is not None and tuple(value.shape) != (n,):
            raise UsageError(
                f"{name}: the term {key} has the shape {tuple(value.shape)}; return one value for each of "
                f"the {n} samples, ({n},)"
            )
    return {key: value for key, value in terms.items() if value is not None}


def diffuse(schedule: Schedule, x0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
    """x_t = alpha(t) x_0 + sigma(t) eps."""
    alpha, sigma = schedule.coefficients(t)
    return broadcast_like(alpha, x0) * x0 + broadcast_like(sigma, x0) * eps


def _mean(x: Tensor) -> Tensor:
    """Over all dimensions but the first."""
    return x.flatten(1).mean(1)


def _squared_error(
    denoiser: NetDenoiser, x0: Tensor, y: Tensor | None, t: Tensor, eps: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """x_t, the network's output there, and the mean squared error of its first C channels, (N,)."""
    schedule = denoiser.schedule
    x_t = diffuse(schedule, x0, eps, t)
    out = denoiser.output(x_t, t, y)
    target = denoiser.parameterization.target(schedule, x0, eps, t)
    return x_t, out, _mean((target - out[:, : x0.shape[1]]) ** 2)


@dataclass(frozen=True)
class Simple(Objective, name="simple"):
    """Mean squared error on the parameterization's target; a learned variance is left untrained."""

    def __call__(self, denoiser, x0, y, t, eps, *, context=None) -> Losses:
        _, _, mse = _squared_error(denoiser, x0, y, t, eps)
        return Losses(mse, mse, None)


@dataclass(frozen=True)
class Hybrid(Objective, name="hybrid"):
    """The paper's objective. Raises UsageError if the parameterization is not a LearnedRange."""

    learns_variance: ClassVar[bool] = True

    def __call__(self, denoiser, x0, y, t, eps, *, context=None) -> Losses:
        if not isinstance(denoiser.parameterization, LearnedRange):
            raise UsageError(
                "the hybrid objective trains a variance, but this denoiser predicts none; wrap its "
                "parameterization in LearnedRange (learn_sigma), or use the simple objective"
            )
        x_t, out, mse = _squared_error(denoiser, x0, y, t, eps)
        c = x0.shape[1]
        frozen = torch.cat([out[:, :c].detach(), out[:, c:]], dim=1)
        vlb = variational_bound(denoiser, frozen, x0, x_t, t)
        return Losses(mse + vlb, mse, vlb)


def variational_bound(denoiser: NetDenoiser, out: Tensor, x0: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
    """The variational bound's term at t, (N,), in bits per dimension, for the network output `out`."""
    schedule = denoiser.schedule
    t = as_time(t)
    # The KL term grows without bound as s nears clean: a step that ends within a tick of it is the last one.
    s = t - schedule.dt
    s = torch.where(s < schedule.clean + schedule.dt * (1 - 1e-9), schedule.clean, s)
    chain = transition(schedule, t, s)
    x0_weight, xt_weight = broadcast_like(chain.x0_weight, x0), broadcast_like(chain.xt_weight, x0)
    predicted = denoiser.decode(out, x_t, t)
    assert predicted.log_variance is not None  # always set by LearnedRange
    mean, log_variance = x0_weight * predicted.x0 + xt_weight * x_t, predicted.log_variance(t, s)
    true_log_variance = broadcast_like(posterior_log_variance(schedule, t, s), x0)
    kl = _gaussian_kl(x0_weight * x0 + xt_weight * x_t, true_log_variance, mean, log_variance)
    nll = -discretized_log_likelihood(x0, mean, 0.5 * log_variance)
    first = (schedule.sigma(s) == 0).to(x0.device)
    return torch.where(first, _mean(nll), _mean(kl)) / math.log(2)


def _gaussian_kl(mean1: Tensor, log_variance1: Tensor, mean2: Tensor, log_variance2: Tensor) -> Tensor:
    """KL(N1 || N2) in nats, elementwise."""
    return 0.5 * (
        log_variance2
        - log_variance1
        - 1
        + torch.exp(log_variance1 - log_variance2)
        + (mean1 - mean2) ** 2 * torch.exp(-log_variance2)
    )


def _normal_cdf(x: Tensor) -> Tensor:
    """DDPM's tanh approximation."""
    return 0.5 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def discretized_log_likelihood(x: Tensor, mean: Tensor, log_scale: Tensor) -> Tensor:
    """log probability in nats, elementwise, of x's bin under N(mean, exp(log_scale)^2), with 256 equal bins
    over [-1, 1] of which the outermost are open-ended (Ho et al. 2020, eq. 13)."""
    centered, inverse_scale = x - mean, torch.exp(-log_scale)
    upper = _normal_cdf((centered + 1 / 255) * inverse_scale)
    lower = _normal_cdf((centered - 1 / 255) * inverse_scale)
    first = upper.clamp(min=1e-12).log()
    last, inner = (1 - lower).clamp(min=1e-12).log(), (upper - lower).clamp(min=1e-12).log()
    return torch.where(x < -0.999, first, torch.where(x > 0.999, last, inner))
