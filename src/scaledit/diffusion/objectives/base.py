"""What objectives share: the base class, what training passes to them, and the terms that they return.

    {"total": (N,), "mse": (N,), ...} = objective(denoiser, x0, y, t, eps, context=context)
    context = draws, modules, average

An objective whose loss is a function of one output of the network says so by `losses`; terms of the loss
(`scaledit.diffusion.terms`) apply it to other outputs and other targets.
"""

from __future__ import annotations

import inspect
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

from scaledit.diffusion.denoiser import NetDenoiser
from scaledit.diffusion.noise import DRAW_KINDS
from scaledit.diffusion.parameterization import Parameterization
from scaledit.diffusion.schedule import Schedule, broadcast_like
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

    def fits(self, schedule: Schedule, parameterization: Parameterization) -> None:
        """Raises UsageError if the objective makes no sense on this schedule or for what the network
        predicts."""

    def error(
        self, denoiser: NetDenoiser, out: Tensor, x0: Tensor, eps: Tensor, x_t: Tensor, t: Tensor
    ) -> Tensor:
        """The squared error of an output, (N,), weighted as in the loss, without a variance's bound.

        out: the network's output at (x_t, t), or that of an earlier head, (N, C or 2C, H, W). x0, eps: the
        image and the noise that the target is made of, (N, C, H, W); those of another sample if the output is
        to be compared with its target. Raises UsageError for an objective that does not say what it is.
        """
        raise UsageError(
            f"{self.part_name()} defines no error of an output, which this loss term needs; add a method "
            "error(denoiser, out, x0, eps, x_t, t), or leave the term out"
        )

    def losses(
        self, denoiser: NetDenoiser, out: Tensor, x0: Tensor, eps: Tensor, x_t: Tensor, t: Tensor
    ) -> Losses:
        """The whole loss of an output, with its terms; arguments as in `error`, which it is by default."""
        error = self.error(denoiser, out, x0, eps, x_t, t)
        return Losses(error, error, None)

    def check(self, where: str = "") -> None:
        """Raises UsageError if the declared draws are invalid or __call__ takes no context."""
        super().check(where)
        check_draws(self.part_name(), self.draws)
        parameters = inspect.signature(type(self).__call__).parameters.values()
        if not any(p.name == "context" or p.kind is p.VAR_KEYWORD for p in parameters):
            raise UsageError(
                f"{self.part_name()}.__call__ accepts no context; add the parameter *, context=None"
            )


def check_draws(part: str, draws: Mapping[str, str]) -> None:
    """Raises UsageError naming the part if the random numbers that it declares are invalid."""
    for name, kind in draws.items():
        if not name.isidentifier():
            raise UsageError(f"{part}.draws: {name!r} is not a name; use letters and digits")
        if kind not in DRAW_KINDS:
            raise UsageError(f"{part}.draws: {name} is {kind!r}{did_you_mean(kind, DRAW_KINDS)}")
    if len({zlib.crc32(name.encode()) for name in draws}) < len(draws):
        raise UsageError(f"{part}.draws: two names have the same CRC-32; rename one of them")


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


def mean(x: Tensor) -> Tensor:
    """Over all dimensions but the first."""
    return x.flatten(1).mean(1)


def squared_error(denoiser: NetDenoiser, out: Tensor, x0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
    """The mean squared error of the first C channels of an output on the parameterization's target, (N,)."""
    target = denoiser.parameterization.target(denoiser.schedule, x0, eps, t)
    return mean((target - out[:, : x0.shape[1]]) ** 2)


@dataclass(frozen=True)
class OfOneOutput(Objective):
    """An objective that evaluates the network once, at x_t: its loss is `losses` of that output."""

    def __call__(self, denoiser, x0, y, t, eps, *, context=None) -> Losses:
        self.fits(denoiser.schedule, denoiser.parameterization)
        x_t = diffuse(denoiser.schedule, x0, eps, t)
        return self.losses(denoiser, denoiser.output(x_t, t, y), x0, eps, x_t, t)
