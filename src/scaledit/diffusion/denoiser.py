"""A denoiser says what is under the noise: (x_t, t, y) -> Prediction(x0, eps, log_variance).

    NetDenoiser = network + schedule + parameterization
    out = net(c_in x_t, c_noise, y)          c_in and c_noise are the parameterization's

Samplers and guidance know denoisers only, so that an exact formula can stand where a network does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from scaledit import conditions
from scaledit.conditions import Condition
from scaledit.conditions.labels import Labels
from scaledit.diffusion.parameterization import Parameterization, Prediction
from scaledit.diffusion.schedule import Schedule, broadcast_like

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    from scaledit.lazy import torch


class Network(Protocol):
    """What is asked of a network: a pure function of (x, t, y), and the label that means "no label".

    A network that takes Conditions has `condition(y, n, device) -> Condition` too, which gives n null rows
    for y = None. One that is asked for a second time or for hidden states takes them as `second` (N,) and
    `hidden`, the numbers of blocks, and gives `out` and `hidden` for the latter.
    """

    @property
    def null_label(self) -> int: ...

    def __call__(self, x: Tensor, t: Tensor, y: Any) -> Any: ...


class Denoiser(Protocol):
    @property
    def schedule(self) -> Schedule: ...

    def __call__(self, x_t: Tensor, t: Tensor, y: Tensor | Condition | None) -> Prediction:
        """x_t (N, C, H, W); t (N,) or (), in the schedule's times; y: labels (N,) int64, a Condition of N
        rows, or None for nothing in particular (the null label)."""
        ...


@dataclass(frozen=True)
class NetDenoiser:
    """A network read through a schedule and a parameterization."""

    net: Network
    schedule: Schedule
    parameterization: Parameterization

    def told(self, x_t: Tensor, t: Tensor) -> Tensor:
        """What the network is told of the time t, (N,) on x_t's device: float64 for float64 images, so that
        derivatives can be checked, and float32 for all others."""
        time = self.parameterization.network_time(self.schedule, t).expand(x_t.shape[0])
        return time.to(x_t.device, torch.float64 if x_t.dtype == torch.float64 else torch.float32)

    def output(
        self,
        x_t: Tensor,
        t: Tensor,
        y: Tensor | Condition | None,
        second: Tensor | None = None,
        hidden: Sequence[int] = (),
    ) -> Any:
        """The network's own output, (N, parameterization.channels(C), H, W), in x_t's dtype.

        x_t (N, C, H, W); t (N,) or (), in the schedule's times; y as a denoiser takes it. second: another
        time, (N,) or (), for networks that are told two. hidden: numbers of blocks; where there are any, the
        result is the network's, of which `out` is the output and `hidden` holds their tokens.
        """
        n, given = x_t.shape[0], {}
        scale = self.parameterization.input_scale(self.schedule, t)
        x = x_t if scale is None else broadcast_like(scale, x_t) * x_t
        if second is not None:
            given["second"] = self.told(x_t, second)
        if hidden:
            given["hidden"] = tuple(hidden)
        out = self.net(x, self.told(x_t, t), self._asked(y, n, x_t.device), **given)
        return out._replace(out=out.out.to(x_t.dtype)) if hidden else out.to(x_t.dtype)

    def _asked(self, y: Tensor | Condition | None, n: int, device: torch.device) -> Tensor | Condition:
        takes = getattr(self.net, "condition", None)
        if y is None:
            if takes is not None:
                return takes(None, n, device)
            return torch.full((n,), self.net.null_label, dtype=torch.int64, device=device)
        if isinstance(y, Labels) and takes is None:
            y = y.values
        return y.to(device)

    def decode(self, out: Tensor, x_t: Tensor, t: Tensor) -> Prediction:
        """What the network's output `out` says of x_t."""
        return self.parameterization.decode(self.schedule, out, x_t, t)

    def __call__(self, x_t: Tensor, t: Tensor, y: Tensor | Condition | None) -> Prediction:
        return self.decode(self.output(x_t, t, y), x_t, t)

    def conditional_and_null(
        self, x_t: Tensor, t: Tensor, y: Tensor | Condition
    ) -> tuple[Prediction, Prediction]:
        """Both halves of classifier-free guidance from one batch of 2N through the network."""
        t = t.expand(x_t.shape[0])
        if isinstance(y, Condition):
            both = conditions.cat([y, y.null()])
        else:
            both = torch.cat([y, torch.full_like(y, self.net.null_label)])
        out = self.output(torch.cat([x_t, x_t]), torch.cat([t, t]), both)
        conditional, unconditional = out.chunk(2)
        return self.decode(conditional, x_t, t), self.decode(unconditional, x_t, t)
