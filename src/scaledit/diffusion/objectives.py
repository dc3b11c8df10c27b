"""Training objectives and the distributions of the training time.

    L_simple = || target - out ||^2                                        (Ho et al. 2020, eq. 14)
    L_vlb    = KL(q(x_s | x_t, x_0) || p(x_s | x_t)),  s one tick below t;  -log p(x_0 | x_1) at the first
    Hybrid   = L_simple + L_vlb, the mean detached inside L_vlb             (Nichol & Dhariwal 2021, eq. 16)

in bits per dimension, unscaled, as the paper trains. At the first time the likelihood is that of pixels
discretised to 8 bits, on latents too: that is what the official runs did.

An objective names the terms of its loss, the random numbers that it needs besides t and eps, and the modules
of its own that are trained with the network:

    {"total": (N,), "mse": (N,), ...} = objective(denoiser, x0, y, t, eps, context=context)
    context = draws, modules, average
"""

from __future__ import annotations

import inspect
import math
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from scaledit.diffusion.denoiser import NetDenoiser
from scaledit.diffusion.noise import DRAW_KINDS
from scaledit.diffusion.parameterization import LearnedRange, posterior_log_variance
from scaledit.diffusion.schedule import Schedule, as_time, broadcast_like, transition
from scaledit.errors import UsageError, did_you_mean
from scaledit.part import Part

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn
else:
    from scaledit.lazy import torch


class Losses(NamedTuple):
    """Per sample, (N,): what is minimised, and its parts. vlb is None where the objective has none."""

    total: Tensor
    mse: Tensor
    vlb: Tensor | None


Terms = Mapping[str, "Tensor | None"] | tuple["Tensor | None", ...]
"""A dict or a named tuple of tensors (N,): "total", which is minimised, first, then what else is reported. A
term that is None is not reported."""


class Context(NamedTuple):
    """What training gives an objective besides a batch.

    draws: the random numbers that `Objective.draws` names: uniform on [0, 1), (N,) float64, or standard
    normal, (N, C, H, W) float32, on the device of x0.
    modules: what `Objective.modules` built, with the weights that it has now; None where it built nothing.
    average: the moving average of the network, read like the network itself. Its weights get no gradient.
    Calling it is right on one rank, with copies (DDP) and with shards (FSDP); with shards each rank must make
    the same calls.
    """

    draws: Mapping[str, Tensor]
    modules: Any
    average: NetDenoiser


class Objective(Part, kind="objective", home="scaledit.diffusion.objectives", needs=("__call__",)):
    """What is minimised. Class attributes, or properties that depend on fields, say what it needs:

    draws: {name: "uniform" or "normal"}, random numbers besides t and eps. Each is a function of (seed,
    position of the sample in training, name), so that neither the split of a batch nor the order of the names
    changes one, and adding one changes no other.
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
        (N, C, H, W). y: what they show. t: (N,) float64, times of the schedule. eps: standard normal, as x0.
        context: as training gives it; the objectives of this module do without.
        """
        raise NotImplementedError

    def modules(self, config: Any) -> nn.Module | None:
        """Modules of the objective's own, freshly initialised (torch's generator is seeded by the caller).

        config: the DiTConfig of the network. The optimizer trains their parameters together with those of the
        network, ranks sum their gradients, a checkpoint has their state_dict in the file "objective", and an
        exported model does not hold them. They must be functions of their inputs and parameters: dropout
        and running statistics are refused.
        """
        return None

    def check(self, where: str = "") -> None:
        """Raises UsageError where the declared draws are none, or __call__ takes no context."""
        super().check(where)
        for name, kind in self.draws.items():
            if not name.isidentifier():
                raise UsageError(f"{self.part_name()}.draws: {name!r} is no name; use letters and digits")
            if kind not in DRAW_KINDS:
                raise UsageError(
                    f"{self.part_name()}.draws: {name} is {kind!r}{did_you_mean(kind, DRAW_KINDS)}"
                )
        if len({zlib.crc32(name.encode()) for name in self.draws}) < len(self.draws):
            raise UsageError(f"{self.part_name()}.draws: two names have the same CRC-32; rename one of them")
        parameters = inspect.signature(type(self).__call__).parameters.values()
        if not any(one.name == "context" or one.kind is one.VAR_KEYWORD for one in parameters):
            raise UsageError(
                f"{self.part_name()}.__call__ takes no context; add the parameter *, context=None"
            )


def named_terms(objective: Objective, found: Terms, n: int) -> dict[str, Tensor]:
    """The terms of n samples by name, "total" first, without those that are None.

    Raises UsageError naming the objective where there is no total, or a term is not (n,).
    """
    name = objective.part_name()
    if isinstance(found, Mapping):
        terms = dict(found)
    elif hasattr(found, "_asdict"):
        terms = found._asdict()  # pyright: ignore[reportAttributeAccessIssue]
    else:
        raise UsageError(f"{name} must return a dict or a named tuple of terms, got {type(found).__name__}")
    if next(iter(terms), None) != "total" or terms["total"] is None:
        raise UsageError(f'{name} must return "total", what is minimised, as its first term')
    for key, value in terms.items():
        if value is not None and tuple(value.shape) != (n,):
            raise UsageError(
                f"{name}: the term {key} has the shape {tuple(value.shape)}; a term has one number for each "
                f"of the {n} samples, ({n},)"
            )
    return {key: value for key, value in terms.items() if value is not None}


def diffuse(schedule: Schedule, x0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
    """x_t = alpha(t) x_0 + sigma(t) eps."""
    return broadcast_like(schedule.alpha(t), x0) * x0 + broadcast_like(schedule.sigma(t), x0) * eps


def _mean(x: Tensor) -> Tensor:
    """Over all but the batch."""
    return x.flatten(1).mean(1)


def _squared_error(
    denoiser: NetDenoiser, x0: Tensor, y: Tensor | None, t: Tensor, eps: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """x_t, the network's output for it, and || target - out ||^2 of the first channels, (N,)."""
    schedule = denoiser.schedule
    x_t = diffuse(schedule, x0, eps, t)
    out = denoiser.output(x_t, t, y)
    target = denoiser.parameterization.target(schedule, x0, eps, t)
    return x_t, out, _mean((target - out[:, : x0.shape[1]]) ** 2)


@dataclass(frozen=True)
class Simple(Objective, name="simple"):
    """Mean squared error on the parameterization's target; a learned variance is left untrained."""

    def __call__(
        self,
        denoiser: NetDenoiser,
        x0: Tensor,
        y: Tensor | None,
        t: Tensor,
        eps: Tensor,
        *,
        context: Context | None = None,
    ) -> Losses:
        _, _, mse = _squared_error(denoiser, x0, y, t, eps)
        return Losses(mse, mse, None)


@dataclass(frozen=True)
class Hybrid(Objective, name="hybrid"):
    """The paper's objective; needs a LearnedRange parameterization. Raises UsageError without one."""

    learns_variance: ClassVar[bool] = True

    def __call__(
        self,
        denoiser: NetDenoiser,
        x0: Tensor,
        y: Tensor | None,
        t: Tensor,
        eps: Tensor,
        *,
        context: Context | None = None,
    ) -> Losses:
        if not isinstance(denoiser.parameterization, LearnedRange):
            raise UsageError(
                "the hybrid objective trains a variance, and this denoiser has none: wrap its "
                "parameterization in LearnedRange (learn_sigma), or use the simple objective"
            )
        x_t, out, mse = _squared_error(denoiser, x0, y, t, eps)
        c = x0.shape[1]
        frozen = torch.cat([out[:, :c].detach(), out[:, c:]], dim=1)
        vlb = variational_bound(denoiser, frozen, x0, x_t, t)
        return Losses(mse + vlb, mse, vlb)


def variational_bound(denoiser: NetDenoiser, out: Tensor, x0: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
    """One term of the variational bound, (N,), in bits per dimension, for the network output `out`."""
    schedule = denoiser.schedule
    t = as_time(t)
    # A continuous time less than one tick above the first would end just short of clean, where the bound
    # grows without limit; such a step counts as the last one, to clean.
    s = t - schedule.dt
    s = torch.where(s < schedule.clean + schedule.dt * (1 - 1e-9), schedule.clean, s)
    chain = transition(schedule, t, s)
    x0_weight, xt_weight = broadcast_like(chain.x0_weight, x0), broadcast_like(chain.xt_weight, x0)
    predicted = denoiser.decode(out, x_t, t)
    assert predicted.log_variance is not None  # LearnedRange gives one
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
    """The tanh approximation that DDPM's code uses, to be equal to it."""
    return 0.5 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def discretized_log_likelihood(x: Tensor, mean: Tensor, log_scale: Tensor) -> Tensor:
    """log probability in nats, elementwise, that N(mean, exp(log_scale)^2) gives to the bin of x among 256
    equal bins over [-1, 1], the outermost open-ended (Ho et al. 2020, eq. 13)."""
    centred, inverse_scale = x - mean, torch.exp(-log_scale)
    upper = _normal_cdf((centred + 1 / 255) * inverse_scale)
    lower = _normal_cdf((centred - 1 / 255) * inverse_scale)
    smallest = 1e-12
    return torch.where(
        x < -0.999,
        upper.clamp(min=smallest).log(),
        torch.where(
            x > 0.999, (1 - lower).clamp(min=smallest).log(), (upper - lower).clamp(min=smallest).log()
        ),
    )
