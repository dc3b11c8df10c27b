"""Everything that training changes, and one step of it.

    theta <- AdamW(theta, grad of the mean over the batch of  weight L(theta; x_0, y, t, eps))

All randomness of step i is keyed by (seed, position in the stream): there is no generator to save, and
a resumed run draws what an uninterrupted one would have.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from scaledit import assemble
from scaledit.checkpoint import Checkpoint
from scaledit.config import OptimizerConfig, RunConfig
from scaledit.data.order import samples_at
from scaledit.data.sets import TrainingSet
from scaledit.diffusion import NetDenoiser, TimeDistribution
from scaledit.diffusion.noise import training_draws
from scaledit.diffusion.objectives import Objective
from scaledit.models.dit import DiT
from scaledit.pipeline import load_weights
from scaledit.training import ema


class StepResult(NamedTuple):
    """Means over the batch. `skipped`: loss or gradient was not finite, so nothing was changed."""

    loss: float
    mse: float
    vlb: float | None
    grad_norm: float
    skipped: bool


@dataclass
class TrainState:
    """The weights, their average, the optimizer, what the time distribution has learned, and counters."""

    config: RunConfig
    net: DiT
    ema: DiT
    optimizer: torch.optim.AdamW
    times: TimeDistribution
    device: torch.device
    step: int = 0
    skipped: int = 0
    seconds: float = 0.0

    @classmethod
    def create(cls, config: RunConfig, device: torch.device) -> TrainState:
        net, average = (assemble.network(config.model, config.train.seed).to(device) for _ in range(2))
        for parameter in average.parameters():
            parameter.requires_grad_(False)
        settings = config.optimizer
        optimizer = torch.optim.AdamW(
            net.parameters(),
            lr=settings.learning_rate,
            betas=settings.betas,
            weight_decay=settings.weight_decay,
            fused=True,
        )
        times = assemble.TIMES[config.diffusion.times]()
        return cls(config, net.train(), average.eval(), optimizer, times, device)

    def __post_init__(self) -> None:
        # Made once: walking the modules and computing the schedule's tables anew would cost each step.
        self.weights: list[Tensor] = list(self.net.parameters())
        self.averages: list[Tensor] = list(self.ema.parameters())
        self.denoiser: NetDenoiser = assemble.denoiser(self.config.diffusion, self.net)
        self.objective: Objective = assemble.OBJECTIVES[self.config.diffusion.objective]()

    def advance(self, dataset: TrainingSet) -> StepResult:
        """One optimizer step on the next train.batch_size samples; counts it even if it is skipped."""
        config = self.config.train
        first, micro = self.step * config.batch_size, config.batch_size // config.accumulate
        self.optimizer.zero_grad()
        loss, mse, vlb = 0.0, 0.0, None
        learned = []
        for i in range(config.accumulate):
            positions = range(first + i * micro, first + (i + 1) * micro)
            part = self._backward(dataset, positions)
            loss += part.loss / config.accumulate
            mse += part.mse / config.accumulate
            vlb = None if part.vlb is None else (vlb or 0.0) + part.vlb / config.accumulate
            learned.append((part.fraction, part.losses))
        gradients = [weight.grad for weight in self.weights if weight.grad is not None]
        norm = nn.utils.get_total_norm(gradients)
        grad_norm = float(norm)
        skipped = not (math.isfinite(loss) and math.isfinite(grad_norm))
        if skipped:
            self.skipped += 1
        else:
            if self.config.optimizer.clip > 0:
                nn.utils.clip_grads_with_norm_(self.weights, self.config.optimizer.clip, norm)
            for group in self.optimizer.param_groups:
                group["lr"] = learning_rate(self.config.optimizer, self.step, config.steps)
            self.optimizer.step()
            ema.update(self.averages, self.weights, ema.decay_at(self.config.ema, self.step))
            for fraction, losses in learned:
                self.times.update(fraction, losses)
        self.step += 1
        return StepResult(loss, mse, vlb, grad_norm, skipped)

    def _backward(self, dataset: TrainingSet, positions: range) -> _Micro:
        """Accumulates the gradient of one micro-batch."""
        config, seed = self.config, self.config.train.seed
        x0, y = dataset.batch(samples_at(positions, len(dataset), seed), positions, seed)
        draws = training_draws(seed, positions, config.model.shape)
        y = self.net.drop_labels(y, draws.label_drop)
        fraction, weight = self.times.draw(draws.time)
        with autocast(config.train.precision, self.device):
            losses = self.objective(
                self.denoiser,
                x0.to(self.device),
                y.to(self.device),
                self.denoiser.schedule.at(fraction),
                draws.eps.to(self.device),
            )
        loss = (losses.total * weight.to(losses.total)).mean()
        (loss / config.train.accumulate).backward()
        return _Micro(
            loss=loss.item(),
            mse=losses.mse.mean().item(),
            vlb=None if losses.vlb is None else losses.vlb.mean().item(),
            fraction=fraction,
            losses=losses.total.detach(),
        )

    def is_finite(self) -> bool:
        """Whether every weight and its average are finite: what must hold before they are saved."""
        return all(bool(tensor.isfinite().all()) for tensor in (*self.weights, *self.averages))

    def parts(self) -> dict[str, dict[str, Tensor]]:
        """What a checkpoint holds, a file each."""
        return {
            "model": dict(self.net.state_dict()),
            "ema": dict(self.ema.state_dict()),
            "optimizer": optimizer_tensors(self.net, self.optimizer),
            "times": self.times.state(),
        }

    def counters(self) -> dict[str, Any]:
        return {"skipped": self.skipped, "seconds": self.seconds}

    def restore(self, saved: Checkpoint) -> None:
        """Continues from a checkpoint; every file is verified before anything is changed."""
        parts = {part: saved.tensors(part) for part in ("model", "ema", "optimizer", "times")}
        load_weights(self.net, parts["model"], saved.folder)
        load_weights(self.ema, parts["ema"], saved.folder)
        restore_optimizer(self.net, self.optimizer, parts["optimizer"])
        for name, tensor in self.times.state().items():
            tensor.copy_(parts["times"][name])
        self.step = saved.step
        self.skipped = saved.manifest["state"]["skipped"]
        self.seconds = saved.manifest["state"]["seconds"]


class _Micro(NamedTuple):
    loss: float
    mse: float
    vlb: float | None
    fraction: Tensor
    losses: Tensor


def optimizer_tensors(net: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """{"kind/parameter": tensor} of what the optimizer keeps for the parameters that it trains."""
    return {
        f"{kind}/{name}": value
        for name, parameter in net.named_parameters()
        if parameter.requires_grad
        for kind, value in optimizer.state[parameter].items()
    }


def restore_optimizer(
    net: nn.Module, optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]
) -> None:
    """The inverse of `optimizer_tensors`. Moments get their parameter's strides: the fused AdamW walks both
    in the order of memory, so that moments of another layout would meet other weights."""
    parameters, by_parameter = dict(net.named_parameters()), dict[str, dict[str, Tensor]]()
    for key, value in tensors.items():
        kind, name = key.split("/", 1)
        if value.shape == parameters[name].shape:
            value = torch.empty_like(parameters[name], dtype=value.dtype, device="cpu").copy_(value)
        by_parameter.setdefault(name, {})[kind] = value
    order = [name for name, parameter in net.named_parameters() if parameter.requires_grad]
    state = {i: by_parameter[name] for i, name in enumerate(order) if name in by_parameter}
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})


def learning_rate(config: OptimizerConfig, step: int, steps: int) -> float:
    """The rate of step `step` (0 for the first) of `steps`."""
    warm = min(1.0, (step + 1) / config.warmup_steps) if config.warmup_steps else 1.0
    done = step / steps
    decay = {"constant": 1.0, "linear": 1 - done, "cosine": 0.5 * (1 + math.cos(math.pi * done))}
    return config.learning_rate * warm * decay[config.decay]


def autocast(precision: str, device: torch.device) -> AbstractContextManager[object]:
    """bf16 autocast, or nothing; "tf32" lets float32 products round their inputs to 10 bits (CUDA)."""
    torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
    if precision == "bf16":
        return torch.autocast(device.type, torch.bfloat16)
    return nullcontext()
