"""One optimizer step, of whatever is trained, on however many ranks.

    g = sum over ranks, micro-batches, samples of  grad loss_j / B        theta <- AdamW(theta, g)

Each sample's loss is divided by the global batch B where it is made, so any split of the batch gives the same
gradient. What the samples scored is exchanged as one table with a row a sample: all ranks see the same
numbers and decide the same.
"""

from __future__ import annotations

import abc
import gc
import math
import re
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, ClassVar, Generic, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from scaledit.checkpoint import Checkpoint, damaged
from scaledit.config import Config, OptimizerConfig
from scaledit.data.loader import Loader
from scaledit.data.order import samples_at
from scaledit.errors import RunError
from scaledit.training.optimizers import optimizer_part
from scaledit.training.parallel import Parallel, local, whole
from scaledit.training.ranks import Ranks
from scaledit.training.saving import keys, read_into
from scaledit.training.watch import COMPUTING

Item = TypeVar("Item")
Doing = Callable[[str, int], None]


def _nobody_asks(what: str, step: int) -> None:
    return None


class Scored(NamedTuple):
    """What samples scored. weighted: (N,), what is minimised. columns: (N,) each, detached, in the order of
    the learner's COLUMNS."""

    weighted: Tensor
    columns: tuple[Tensor, ...]


class StepResult(NamedTuple):
    """means: of the batch, by the learner's COLUMNS; "loss" is what is minimised. skipped: loss or gradient
    was not finite, so nothing was changed. table: (B, 1 + columns) float64, a row a sample, the loss first.
    stop: whether any rank was asked to stop. micro_batch: samples that go through a rank at once."""

    means: dict[str, float]
    grad_norm: float
    skipped: bool
    table: Tensor
    stop: bool
    micro_batch: int

    @property
    def loss(self) -> float:
        return self.means["loss"]


@dataclass(eq=False, kw_only=True)
class Learner(abc.ABC, Generic[Item]):
    """What a run changes: weights, the optimizer, counters; and how a batch is scored.

    net: the module whose parameters are trained. parallel: the same as its ranks train it. passed_over:
    batches that a roll-back left out. doing: is told what comes now, and at which step. micro_batch: samples
    that go through at once. waited: seconds for data, of `seconds`.
    """

    COLUMNS: ClassVar[tuple[str, ...]]

    config: Config
    net: nn.Module
    parallel: Parallel
    optimizer: torch.optim.Optimizer
    ranks: Ranks
    loader: Loader[Item]
    samples: int
    step: int = 0
    skipped: int = 0
    passed_over: int = 0
    seconds: float = 0.0
    waited: float = 0.0
    doing: Doing = _nobody_asks
    micro_batch: int = field(init=False)

    def __post_init__(self) -> None:
        # Made once: walking the modules anew would cost each step.
        self.weights: list[Tensor] = [p for p in self.net.parameters() if p.requires_grad]
        self.mine = self.ranks.share(self.config.train.batch_size)
        # Of the largest share, so that it is the same on all ranks, and one checkpoint's right for all.
        largest = -(-self.config.train.batch_size // self.ranks.world)
        self.micro_batch = -(-largest // self.config.train.accumulate)
        self._fits = not self.ranks.grouped  # one process finds out as it goes

    @abc.abstractmethod
    def score(self, item: Item, part: slice, positions: range) -> Scored:
        """The forward pass of some samples: `part` of the item, which are at `positions` of the stream."""

    def applied(self, table: Tensor) -> None:
        """After an optimizer step; table as in StepResult."""

    @abc.abstractmethod
    def held(self) -> dict[str, dict[str, Tensor]]:
        """What a checkpoint holds, a file each; tensors may be shards."""

    def positions(self, step: int) -> range:
        """Of the stream of training samples, as step `step` sees them: all ranks'."""
        size = self.config.train.batch_size
        first = (step + self.passed_over) * size
        return range(first, first + size)

    def indices(self, step: int) -> np.ndarray:
        """The samples of the set that step `step` sees."""
        return samples_at(self.positions(step), self.samples, self.config.train.seed)

    def advance(self, stop: bool = False) -> StepResult:
        """One optimizer step on the next train.batch_size samples; counts it even if it is skipped. stop:
        this rank was asked to stop, which all hear of.

        Raises RunError where memory does not suffice for a single sample, or the data cannot be read.
        """
        began = time.perf_counter()
        settings, batch = self.config.optimizer, self.positions(self.step)
        mine = batch[self.mine.start : self.mine.stop]
        self.doing(f"waiting for {self.loader.source}", self.step)
        item = self.loader.take(mine)
        self.doing(COMPUTING, self.step)
        self.waited += time.perf_counter() - began
        if not self._fits:
            self._find_micro_batch(item, mine)
        self.optimizer.zero_grad()
        table = self._scored(item, mine)
        table[-1] = float(stop)  # a last row, for what else all must know
        self.ranks.sum_(table)
        table, stops = table[:-1], bool(table[-1].any())
        norm = whole(nn.utils.get_total_norm([w.grad for w in self.weights if w.grad is not None]))
        means = dict(zip(("loss", *self.COLUMNS), table.mean(dim=0).tolist(), strict=True))
        grad_norm = float(norm)
        skipped = not (math.isfinite(means["loss"]) and math.isfinite(grad_norm))
        if skipped:
            self.skipped += 1
        else:
            if settings.clip > 0:
                factor = (settings.clip / (norm + 1e-6)).clamp(max=1.0)
                gradients = [local(weight.grad) for weight in self.weights if weight.grad is not None]
                torch._foreach_mul_(gradients, factor)  # pyright: ignore[reportPrivateImportUsage]
            for group in self.optimizer.param_groups:
                group["lr"] = learning_rate(settings, self.step, self.config.train.steps)
            self.optimizer.step()
            self.applied(table)
        self.step += 1
        self.seconds += time.perf_counter() - began
        return StepResult(means, grad_norm, skipped, table, stops, self.micro_batch)

    def _scored(self, item: Item, mine: range) -> Tensor:
        """Gradients and scores of this rank's share: the table with zeros for the other ranks' samples, and
        one row more. Where memory runs out, again with half the micro-batch."""
        while True:
            table = self._through(item, mine, len(mine))
            if table is not None:
                return table
            self._halve()

    def _find_micro_batch(self, item: Item, mine: range) -> None:
        """Halves the micro-batch until one fits on all ranks. Once a life, apart from the training: a rank
        that runs out of memory in the middle of a sum over ranks would leave the others waiting."""
        while not self.parallel.sharded:
            with self.parallel.without_sum():
                fits = self._through(item, mine, min(self.micro_batch, len(mine))) is not None
            self.optimizer.zero_grad()
            if self.ranks.all_agree(fits):
                break
            self._halve()
        self._fits = True

    def _through(self, item: Item, mine: range, count: int) -> Tensor | None:
        """The first `count` samples of this rank's, micro-batch after micro-batch; None if memory ran out."""
        size = self.config.train.batch_size
        found: list[Tensor] = []
        try:
            for part in self._parts(count):
                last = part.stop == len(mine)
                with nullcontext() if last else self.parallel.without_sum():
                    scored = self.score(item, part, mine[part])
                    # DDP and FSDP2 divide the sum over the ranks by their number.
                    (scored.weighted.sum() / (size / self.ranks.world)).backward()
                scores = (scored.weighted.detach(), *scored.columns)
                found.append(torch.stack([score.cpu().double() for score in scores], dim=1))
            table = torch.zeros(size + 1, 1 + len(self.COLUMNS), dtype=torch.float64)
            table[self.mine.start : self.mine.start + count] = torch.cat(found)
            return table
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            if self._fits and self.ranks.grouped:
                raise RunError(
                    f"rank {self.ranks.rank} ran out of memory with micro-batches of {self.micro_batch}; "
                    f"the same command with train.accumulate={2 * self.config.train.accumulate} goes on from "
                    "the last checkpoint"
                ) from error
        return None

    def _parts(self, count: int) -> list[slice]:
        """`count` of this rank's samples in micro-batches. Ranks with shards work on each together, so they
        make the same number of them of unequal shares."""
        number = -(-count // self.micro_batch)
        if self.parallel.sharded:
            size, world = self.config.train.batch_size, self.ranks.world
            number = min(-(-size // world // self.micro_batch), size // world)
        return [slice(count * k // number, count * (k + 1) // number) for k in range(number)]

    def _halve(self) -> None:
        if self.micro_batch == 1:
            raise RunError(
                "one sample at a time does not fit into memory; engine.recompute=blocks needs less"
            )
        self.micro_batch = -(-self.micro_batch // 2)
        self.optimizer.zero_grad()
        gc.collect()
        if self.ranks.device.type == "cuda":
            torch.cuda.empty_cache()

    def is_finite(self) -> bool:
        """Whether all that would be saved is finite, on every rank."""
        here = [local(tensor).isfinite().all() for part in self.held().values() for tensor in part.values()]
        return self.ranks.all_agree(all(bool(finite) for finite in here))

    def counters(self) -> dict[str, Any]:
        """What of this belongs into a manifest."""
        return {
            "skipped": self.skipped,
            "seconds": self.seconds,
            "passed_over": self.passed_over,
            "micro_batch": self.micro_batch,
            "accumulate": self.config.train.accumulate,
        }

    def restore(self, saved: Checkpoint) -> None:
        """Continues from a checkpoint, made by any number of ranks; changes nothing if it does not fit."""
        state = saved.manifest["state"]
        if missing := [key for key in ("skipped", "seconds") if key not in state]:
            raise damaged(saved.folder, f"its manifest lacks state.{missing[0]}")
        held, names = self.held(), keys(saved, "optimizer")
        if not all(re.fullmatch(r"(step|exp_avg|exp_avg_sq)/.+", name) for name in names):
            raise damaged(saved.folder, "its optimizer is none that scaledit trains with")
        moments = new_moments(self.net, names)
        read_into(saved, {**held, "optimizer": moments})
        restore_optimizer(self.net, self.optimizer, moments)
        self.step = saved.step
        self.skipped, self.seconds = state["skipped"], state["seconds"]
        self.passed_over = state.get("passed_over", 0)
        same = (state.get("accumulate"), saved.manifest.get("world"))
        if same == (self.config.train.accumulate, self.ranks.world):
            self.micro_batch = state.get("micro_batch", self.micro_batch)  # it may have been halved


def is_out_of_memory(error: BaseException) -> bool:
    """Of a GPU, or of the CPU (where torch raises a plain RuntimeError)."""
    kinds = (torch.OutOfMemoryError, MemoryError)
    return isinstance(error, kinds) or "can't allocate memory" in str(error)


def optimizer_tensors(net: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """{"kind/parameter": tensor} of what the optimizer keeps for the parameters that it trains."""
    return {
        f"{kind}/{name}": value
        for name, parameter in net.named_parameters()
        if parameter.requires_grad
        for kind, value in optimizer.state[parameter].items()
    }


def new_moments(net: nn.Module, names: Iterable[str]) -> dict[str, Tensor]:
    """Room for what `optimizer_tensors` calls so; moments with their parameter's layout: the fused AdamW
    walks both in the order of memory, so that moments of another layout would meet other weights."""
    parameters = dict(net.named_parameters())
    room = {}
    for key in names:
        kind, name = key.split("/", 1)
        if name in parameters:
            room[key] = torch.zeros(()) if kind == "step" else torch.zeros_like(parameters[name].detach())
    return room


def restore_optimizer(
    net: nn.Module, optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]
) -> None:
    """The inverse of `optimizer_tensors`."""
    by_parameter: dict[str, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        kind, name = key.split("/", 1)
        by_parameter.setdefault(name, {})[kind] = value
    order = [name for name, parameter in net.named_parameters() if parameter.requires_grad]
    state = {i: by_parameter[name] for i, name in enumerate(order) if name in by_parameter}
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})


def adamw(net: nn.Module, config: OptimizerConfig) -> torch.optim.Optimizer:
    parameters = [parameter for parameter in net.parameters() if parameter.requires_grad]
    return optimizer_part(config).make(parameters, config.learning_rate)


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
