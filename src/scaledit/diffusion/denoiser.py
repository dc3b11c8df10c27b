"""A denoiser estimates the clean image: (x_t, t, y) -> Prediction(x0, eps, log_variance).

    NetDenoiser = network + schedule + parameterization
    out = net(c_in x_t, c_noise, y)          c_in and c_noise come from the parameterization

Samplers and guidance depend on this interface only, so an exact formula can replace a network.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from scaledit import conditions
from scaledit.conditions import Condition
from scaledit.conditions.labels import Labels
from scaledit.diffusion.parameterization import Parameterization, Prediction
from scaledit.diffusion.schedule import Schedule, broadcast_like
from scaledit.lazy import Tensor, torch


class Network(Protocol):
    """What a network must provide: a pure function of (x, t, y), and the label that means "no label".

    A network that takes Conditions also has `condition(y, n, device) -> Condition`, which returns n null rows
    for y = None. One with a second time, hidden states or an early head takes `second` (N,), `hidden`
    (indices of blocks) and `early` (bool), and returns an object with `out` and `hidden`, and with `early` if
    that is true, if one of the latter two is passed.
    """

    @property
    def null_label(self) -> int: ...

    def __call__(self, x: Tensor, t: Tensor, y: Any) -> Any: ...


class Denoiser(Protocol):
    @property
    def schedule(self) -> Schedule: ...

    def __call__(self, x_t: Tensor, t: Tensor, y: Tensor | Condition | None) -> Prediction:
        """x_t (N, C, H, W); t (N,) or (), times of the schedule; y: labels (N,) int64, a Condition of N rows,
        or None for the null condition."""
        ...


@dataclass(frozen=True)
class NetDenoiser:
    """A network, the schedule it was trained on and the parameterization of its output."""

    net: Network
    schedule: Schedule
    parameterization: Parameterization

    def _network_time(self, x_t: Tensor, t: Tensor) -> Tensor:
        """c_noise, (N,) on x_t's device: float64 for float64 images, so that derivatives can be checked, and
        float32 otherwise."""
        time = self.parameterization.network_time(self.schedule, t).expand(x_t.shape[0])
        return time.to(x_t.device, torch.float64 if x_t.dtype == torch.float64 else torch.float32)

    def output(
        self,
        x_t: Tensor,
        t: Tensor,
        y: Tensor | Condition | None,
        second: Tensor | None = None,
        hidden: Sequence[int] = (),
        early: bool = False,
    ) -> Any:
        """The network's raw output, (N, parameterization.channels(C), H, W), in x_t's dtype.

        x_t (N, C, H, W); t (N,) or (), times of the schedule; y as in `Denoiser`. second: another time, (N,)
        or (), for networks that take two. hidden: indices of blocks. early: whether the network's early head
        predicts too. With either, the network's own result is returned, with the output as `out`, the blocks'
        tokens as `hidden` and, if it was asked for, the early head's output as `early`.
        """
        options: dict[str, Any] = {}
        scale = self.parameterization.input_scale(self.schedule, t)
        x = x_t if scale is None else broadcast_like(scale, x_t) * x_t
        if second is not None:
            options["second"] = self._network_time(x_t, second)
        if hidden:
            options["hidden"] = tuple(hidden)
        if early:
            options["early"] = True
        out = self.net(x, self._network_time(x_t, t), self._network_condition(y, x_t), **options)
        if early:
            out = out._replace(early=out.early.to(x_t.dtype))
        return out._replace(out=out.out.to(x_t.dtype)) if hidden or early else out.to(x_t.dtype)

    def _network_condition(self, y: Tensor | Condition | None, x_t: Tensor) -> Tensor | Condition:
        n, device, make = x_t.shape[0], x_t.device, getattr(self.net, "condition", None)
        if y is None:
            if make is not None:
                return make(None, n, device)
            return torch.full((n,), self.net.null_label, dtype=torch.int64, device=device)
        if isinstance(y, Labels) and make is None:
            y = y.values
        return y.to(device)

    def decode(self, out: Tensor, x_t: Tensor, t: Tensor) -> Prediction:
        """The prediction that the network's output `out` at (x_t, t) stands for."""
        return self.parameterization.decode(self.schedule, out, x_t, t)

    def __call__(self, x_t: Tensor, t: Tensor, y: Tensor | Condition | None) -> Prediction:
        return self.decode(self.output(x_t, t, y), x_t, t)

    def conditional_and_null(
        self, x_t: Tensor, t: Tensor, y: Tensor | Condition
    ) -> tuple[Prediction, Prediction]:
        """The two predictions of classifier-free guidance, from one batch of 2N rows."""
        t = t.expand(x_t.shape[0])
        if isinstance(y, Condition):
            both = conditions.cat([y, y.null()])
        else:
            both = torch.cat([y, torch.full_like(y, self.net.null_label)])
        conditional, unconditional = self.output(torch.cat([x_t, x_t]), torch.cat([t, t]), both).chunk(2)
        return self.decode(conditional, x_t, t), self.decode(unconditional, x_t, t)
