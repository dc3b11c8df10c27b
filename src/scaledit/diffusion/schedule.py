"""Noise schedules: the amounts of signal and noise at time t.

    x_t = alpha(t) x_0 + sigma(t) eps,   eps ~ N(0, I)

Times and coefficients are float64 on the CPU, whatever the device of the images: they are few, and some
devices have no float64. Discrete schedules have the times 0..steps-1, and -1 for the clean image; the linear
flow has [0, 1], where 0 is clean.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any, ClassVar, NamedTuple, NoReturn

from scaledit.errors import UsageError
from scaledit.lazy import Tensor, np, torch
from scaledit.part import Part, field

MOST_STEPS = 1_000_000
"""Upper bound of the steps of a schedule and of sampling, to bound memory and time."""
MAX_BETA = 0.999
"""Keeps the last posterior finite (Nichol & Dhariwal 2021, section 3.2)."""


class Rates(NamedTuple):
    """d alpha / du and d sigma / du along the schedule's arc u, in whose unit
    alpha * sigma_rate - sigma * alpha_rate = 1 (so that velocity and x_t determine x0 and eps)."""

    alpha: Tensor
    sigma: Tensor


@dataclass(frozen=True)
class Schedule(Part, kind="schedule", home="scaledit.diffusion.schedule", needs=("alpha", "sigma")):
    """Coefficients of a diffusion process. Shapes follow t: () gives () and (N,) gives (N,).

    clean: the time at which sigma is zero. discrete: whether times are whole numbers; otherwise the
    coefficients can be differentiated in t.
    """

    clean: ClassVar[float] = 0.0
    discrete: ClassVar[bool] = False

    steps: int = field(1000, ge=2, le=MOST_STEPS, doc="times of the training chain")

    @property
    def horizon(self) -> float:
        """The length of the time axis, from the clean time to the noisiest."""
        return 1.0

    @property
    def noisiest(self) -> float:
        """The time at which sampling starts."""
        return self.clean + self.horizon

    @property
    def dt(self) -> float:
        """The distance between neighboring times of the training chain (for the variational bound)."""
        return self.horizon / self.steps

    def time(self, t: Tensor | float) -> Tensor:
        """t as float64 on the CPU. Its derivative is 1; on discrete schedules it raises UsageError."""
        return as_time(t)

    def alpha(self, t: Tensor) -> Tensor:
        """The factor of the image at t: float64 on the CPU, of t's shape."""
        raise NotImplementedError

    def sigma(self, t: Tensor) -> Tensor:
        """The standard deviation of the noise at t: float64 on the CPU, of t's shape."""
        raise NotImplementedError

    def coefficients(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """(alpha(t), sigma(t)). Chains define this method, with one look-up, and derive the other two from
        it."""
        return self.alpha(t), self.sigma(t)

    def rates(self, t: Tensor) -> Rates:
        """The coefficients of a velocity at t: float64 on the CPU, of t's shape."""
        raise NotImplementedError

    def time_at(self, u: Tensor) -> Tensor:
        """The training time at fraction u in [0, 1) of the schedule, of u's shape."""
        return self.clean + self.horizon * as_time(u)

    def fraction(self, t: Tensor) -> Tensor:
        """The share of the time axis between the clean time and t, float64 of t's shape: 0 is clean, 1 is
        noise. On beta schedules the time t of n has (t + 1) / n."""
        return (as_time(t) - self.clean) / self.horizon

    def log_snr(self, t: Tensor) -> Tensor:
        """lambda = log(alpha / sigma), of t's shape: infinity at sigma = 0, minus infinity at alpha = 0."""
        alpha, sigma = self.coefficients(t)
        return (alpha / sigma).log()

    def at_log_snr(self, log_snr: Tensor) -> Tensor:
        """The times with these values of lambda, (n,) float64, interpolated on discrete schedules and clamped
        to the schedule's ends."""
        low = torch.full_like(log_snr, self.clean)
        high = torch.full_like(log_snr, self.noisiest)
        for _ in range(BISECTIONS):
            middle = (low + high) / 2
            early = self.log_snr(middle) > log_snr  # lambda falls with t
            low, high = torch.where(early, middle, low), torch.where(early, high, middle)
        return (low + high) / 2


BISECTIONS = 60
"""Halvings of the time axis that leave two neighboring float64 numbers."""


def as_time(t: Tensor | float) -> Tensor:
    """t as float64 on the CPU; differentiable."""
    return torch.as_tensor(t).to("cpu", torch.float64)


def _refuse() -> NoReturn:
    raise UsageError(
        "a beta schedule has whole times only, so nothing on it has a derivative in time; for objectives "
        "that need one (MeanFlow, consistency) use a continuous schedule, such as LinearFlow"
    )


def _without_derivative(t: Tensor, *values: Tensor) -> list[Tensor]:
    """The values of a function of t, made to raise UsageError if their derivative in t is requested."""
    differentiated = (
        t.requires_grad
        or torch.autograd.forward_ad.unpack_dual(t).tangent is not None
        or torch.func.debug_unwrap(t) is not t  # under a transform of torch.func, whatever its nesting
    )
    if not differentiated:  # the usual case; `apply` costs more than a look-up
        return list(values)
    return [_underivable().apply(t, value) for value in values]


@cache
def _underivable() -> Any:
    """A torch.autograd.Function of (t, value) that returns value, and whose derivative is an error instead of
    a silent zero. Defined on first use, since its base class loads torch."""

    class Underivable(torch.autograd.Function):
        generate_vmap_rule = True  # jacfwd and jacrev map it, and come to the refusal too

        @staticmethod
        def forward(t: Tensor, value: Tensor) -> Tensor:
            return value.clone()

        @staticmethod
        def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
            pass

        @staticmethod
        def backward(ctx: Any, *gradients: Any) -> Any:
            _refuse()

        @staticmethod
        def jvp(ctx: Any, *tangents: Any) -> Any:
            _refuse()

    return Underivable


@dataclass(frozen=True)
class BetaSchedule(Schedule):
    """A variance-preserving chain from its betas: alpha^2(t) = prod_{i <= t} (1 - beta_i) (DDPM, eq. 4)."""

    @cached_property
    def betas(self) -> Tensor:
        """(steps,) float64."""
        raise NotImplementedError

    @cached_property
    def alphas_cumprod(self) -> Tensor:
        """(steps,) float64: alpha^2."""
        return torch.cumprod(1 - self.betas, dim=0)

    # The clean time -1 is entry 0: entry t + 1 belongs to time t.
    @cached_property
    def _alpha(self) -> Tensor:
        return torch.cat([torch.ones(1, dtype=torch.float64), self.alphas_cumprod.sqrt()])

    @cached_property
    def _sigma(self) -> Tensor:
        return torch.cat([torch.zeros(1, dtype=torch.float64), (1 - self.alphas_cumprod).sqrt()])

    clean: ClassVar[float] = -1.0
    discrete: ClassVar[bool] = True

    @property
    def horizon(self) -> float:
        return float(self.steps)

    def time(self, t: Tensor | float) -> Tensor:
        t = as_time(t)
        return _without_derivative(t, t.detach())[0]

    def coefficients(self, t: Tensor) -> tuple[Tensor, Tensor]:
        t = as_time(t)
        entry = t.detach() + 1
        index = entry.long().clamp(0, self.steps)
        if not bool((entry == index).all()):
            raise UsageError(f"times of this schedule are whole numbers in -1..{self.steps - 1}, got {t}")
        alpha, sigma = _without_derivative(t, self._alpha.take(index), self._sigma.take(index))
        return alpha, sigma

    def alpha(self, t: Tensor) -> Tensor:
        return self.coefficients(t)[0]

    def sigma(self, t: Tensor) -> Tensor:
        return self.coefficients(t)[1]

    def rates(self, t: Tensor) -> Rates:
        """u is the angle of (alpha, sigma) = (cos u, sin u)."""
        alpha, sigma = self.coefficients(t)
        return Rates(-sigma, alpha)

    def time_at(self, u: Tensor) -> Tensor:
        return (as_time(u) * self.steps).floor().clamp(0, self.steps - 1)

    def at_log_snr(self, log_snr: Tensor) -> Tensor:
        table = (self._alpha[1:] / self._sigma[1:]).log().numpy()
        # np.interp needs ascending abscissae, and lambda falls with t.
        return torch.from_numpy(np.interp(-log_snr.numpy(), -table, np.arange(self.steps)))


@dataclass(frozen=True)
class LinearBeta(BetaSchedule, name="linear"):
    """Betas linear from 1e-4 to 0.02, scaled by 1000 / steps (Ho et al. 2020), as in the paper."""

    beta_start: float = field(1e-4, gt=0, lt=1, doc="the first beta of a 1000-step chain")
    beta_end: float = field(0.02, gt=0, lt=1, doc="the last beta of a 1000-step chain")

    @cached_property
    def betas(self) -> Tensor:
        scale = 1000 / self.steps
        start, end = scale * self.beta_start, scale * self.beta_end
        return torch.linspace(start, end, self.steps, dtype=torch.float64).clamp(max=MAX_BETA)


@dataclass(frozen=True)
class QuadraticBeta(BetaSchedule, name="quadratic"):
    """Betas whose square roots are linear, between the same ends (the DDPM code's "quad"; latent
    diffusion uses it with 0.00085 and 0.012)."""

    beta_start: float = field(1e-4, gt=0, lt=1, doc="the first beta of a 1000-step chain")
    beta_end: float = field(0.02, gt=0, lt=1, doc="the last beta of a 1000-step chain")

    @cached_property
    def betas(self) -> Tensor:
        scale = 1000 / self.steps
        start, end = math.sqrt(scale * self.beta_start), math.sqrt(scale * self.beta_end)
        return (torch.linspace(start, end, self.steps, dtype=torch.float64) ** 2).clamp(max=MAX_BETA)


@dataclass(frozen=True)
class CosineBeta(BetaSchedule, name="cosine"):
    """alpha^2(t) = cos^2((t / steps + 0.008) / 1.008 * pi / 2) (Nichol & Dhariwal 2021, eq. 17)."""

    offset: float = field(0.008, ge=0, lt=1, doc="s of equation 17: keeps the first betas from vanishing")

    @cached_property
    def betas(self) -> Tensor:
        u = torch.arange(self.steps + 1, dtype=torch.float64) / self.steps
        alpha2 = torch.cos((u + self.offset) / (1 + self.offset) * math.pi / 2) ** 2
        return (1 - alpha2[1:] / alpha2[:-1]).clamp(max=MAX_BETA)


@dataclass(frozen=True)
class LinearFlow(Schedule, name="flow"):
    """x_t = (1 - t) x_0 + t eps, t in [0, 1] (Lipman et al. 2023; Liu et al. 2023).

    `steps` is the resolution of the chain of the variational bound; sampling may use any number of steps.
    """

    def alpha(self, t: Tensor) -> Tensor:
        return 1 - as_time(t)

    def sigma(self, t: Tensor) -> Tensor:
        return as_time(t)

    def rates(self, t: Tensor) -> Rates:
        ones = torch.ones_like(as_time(t))
        return Rates(-ones, ones)

    def at_log_snr(self, log_snr: Tensor) -> Tensor:
        return torch.sigmoid(-log_snr)  # t = sigma = 1 / (1 + alpha / sigma)


def broadcast_like(value: Tensor, like: Tensor) -> Tensor:
    """A coefficient, () or (N,), shaped to multiply `like` (N, ...), in its dtype and on its device."""
    value = value.to(like.device, like.dtype)
    return value if value.ndim == 0 else value.reshape(-1, *[1] * (like.ndim - 1))


class Transition(NamedTuple):
    """The Gaussian chain between two times t > s, for any schedule (DDPM, eq. 7, without unit variance):

        q(x_s | x_t, x_0) = N(x0_weight x_0 + xt_weight x_t, variance)
        sigma^2_{t|s} = sigma_t^2 - (alpha_t / alpha_s)^2 sigma_s^2            ("beta" of the pair)
        variance = sigma^2_{t|s} sigma_s^2 / sigma_t^2

    On a respaced grid these are the respaced betas and posteriors, exactly.
    """

    beta: Tensor
    variance: Tensor
    x0_weight: Tensor
    xt_weight: Tensor


def transition(schedule: Schedule, t: Tensor, s: Tensor) -> Transition:
    """The chain's step from t to s; t, s () or (N,)."""
    (alpha_t, sigma_t), (alpha_s, sigma_s) = schedule.coefficients(t), schedule.coefficients(s)
    ratio, variance_t, variance_s = alpha_t / alpha_s, sigma_t**2, sigma_s**2
    beta = variance_t - ratio**2 * variance_s
    return Transition(
        beta=beta,
        variance=beta * variance_s / variance_t,
        x0_weight=alpha_s * beta / variance_t,
        xt_weight=ratio * variance_s / variance_t,
    )
