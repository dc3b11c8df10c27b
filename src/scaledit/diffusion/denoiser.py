"""A denoiser says what is under the noise: (x_t, t, y) -> Prediction(x0, eps, log_variance).

    NetDenoiser = network + schedule + parameterization

Samplers and guidance know denoisers only, so that an exact formula can stand where a network does.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from scaledit.diffusion.parameterization import Parameterization, Prediction
from scaledit.diffusion.schedule import Schedule

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    from scaledit.lazy import torch


class Network(Protocol):
    """What is asked of a network: a pure function of (x, t, y), and the label that means "no label"."""

    @property
    def null_label(self) -> int: ...

    def __call__(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor: ...


class Denoiser(Protocol):
    @property
    def schedule(self) -> Schedule: ...

    def __call__(self, x_t: Tensor, t: Tensor, y: Tensor | None) -> Prediction:
        """x_t (N, C, H, W); t (N,) or (), in the schedule's times; y (N,) int64, or None for the null
        label."""
        ...


@dataclass(frozen=True)
class NetDenoiser:
    """A network read through a schedule and a parameterization."""

    net: Network
    schedule: Schedule
    parameterization: Parameterization

    def output(self, x_t: Tensor, t: Tensor, y: Tensor | None) -> Tensor:
        """The network's own output, (N, parameterization.channels(C), H, W), in x_t's dtype."""
        n = x_t.shape[0]
        time = self.schedule.network_time(t).expand(n).to(x_t.device, torch.float32)
        if y is None:
            y = torch.full((n,), self.net.null_label, dtype=torch.int64, device=x_t.device)
        return self.net(x_t, time, y.to(x_t.device)).to(x_t.dtype)

    def decode(self, out: Tensor, x_t: Tensor, t: Tensor) -> Prediction:
        return self.parameterization.decode(self.schedule, out, x_t, t)

    def __call__(self, x_t: Tensor, t: Tensor, y: Tensor | None) -> Prediction:
        return self.decode(self.output(x_t, t, y), x_t, t)

    def conditional_and_null(self, x_t: Tensor, t: Tensor, y: Tensor) -> tuple[Prediction, Prediction]:
        """Both halves of classifier-free guidance from one batch of 2N through the network."""
        null = torch.full_like(y, self.net.null_label)
        t = t.expand(x_t.shape[0])
        out = self.output(torch.cat([x_t, x_t]), torch.cat([t, t]), torch.cat([y, null]))
        conditional, unconditional = out.chunk(2)
        return self.decode(conditional, x_t, t), self.decode(unconditional, x_t, t)
