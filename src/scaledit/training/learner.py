"""One optimizer step, of whatever is trained, on however many ranks.

    g = sum over ranks, micro-batches, samples of  grad loss_j / B        theta <- AdamW(theta, g)

Each sample's loss is divided by the global batch B where it is made, so any split of the batch gives the same
gradient. The losses are exchanged as one table with a row for each sample: all ranks see the same numbers and
decide the same.
"""

from __future__ import annotations

import abc
import gc
import math
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from scaledit.checkpoint import Checkpoint, corrupt
from scaledit.config import Config, OptimizerConfig
from scaledit.data.loader import Loader
from scaledit.data.order import samples_at
from scaledit.errors import RunError, UsageError, shown
from scaledit.training.events import is_term
from scaledit.training.parallel import Parallel, full, local
from scaledit.training.ranks import Ranks
from scaledit.training.saving import keys, read_into
from scaledit.training.watch import COMPUTING

Item = TypeVar("Item")
Heartbeat = Callable[[str, int], None]


def _no_watch(what: str, step: int) -> None:
    return None


REPLICATED = "objective"
"""The checkpoint's file of the modules that are trained beside the network, and the first part of their
parameters' names in the optimizer's file."""


class LossTerms(NamedTuple):
    """The losses of n samples. weighted: (n,), what is minimised. terms: its parts by name, (n,) each; the
    same names at every step. others: what else `Learner.applied` must know of each sample, (n,) each."""

    weighted: Tensor
    terms: dict[str, Tensor]
    others: dict[str, Tensor] = {}  # noqa: RUF012


class StepResult(NamedTuple):
    """loss: what is minimised, and terms: its named parts, as means over the batch. skipped: loss or gradient
    was not finite, so nothing was changed. table: (B, 1 + terms + others) float64, a row for each sample: the
    weighted loss, then `LossTerms.terms`, then `LossTerms.others`. stop: whether any rank was asked to stop.
    micro_batch: samples that go through a rank at once."""

    loss: float
    terms: dict[str, float]
    grad_norm: float
    skipped: bool
    table: Tensor
    stop: bool
    micro_batch: int


@dataclass(eq=False, kw_only=True)
class Learner(abc.ABC, Generic[Item]):
    """What a run changes: weights, the optimizer, counters; and how the loss of a batch is computed.

    net: the module whose parameters are trained. parallel: the same as its ranks train it. replicated:
    modules that are trained beside it, of which each rank has all; their gradients are summed over the ranks
    after the backward pass, so that they may be called in any way. skipped_batches: those that a
    roll-back left out. heartbeat: is called with what comes next and the step. micro_batch: samples that go
    through at once.
    waited: seconds for data, of `seconds`.
    """

    config: Config
    net: nn.Module
    parallel: Parallel
    optimizer: torch.optim.Optimizer
    ranks: Ranks
    loader: Loader[Item]
    samples: int
    replicated: nn.Module | None = None
    step: int = 0
    skipped: int = 0
    skipped_batches: int = 0
    seconds: float = 0.0
    waited: float = 0.0
    heartbeat: Heartbeat = _no_watch
    micro_batch: int = field(init=False)

    def __post_init__(self) -> None:
        # Made once: walking the modules anew would cost each step.
        self.weights: list[Tensor] = [p for p in self.net.parameters() if p.requires_grad]
        self.beside: list[Tensor] = [
            p for p in (self.replicated.parameters() if self.replicated else ()) if p.requires_grad
        ]
        self._names: tuple[tuple[str, ...], tuple[str, ...]] | None = None
        self.mine = self.ranks.share(self.config.train.batch_size)
        # Of the largest share, so that it is the same on all ranks, and one checkpoint's right for all.
        largest = -(-self.config.train.batch_size // self.ranks.world)
        self.micro_batch = -(-largest // self.config.train.accumulate)
        self._fits = not self.ranks.grouped  # one process finds out as it goes

    @abc.abstractmethod
    def compute_loss(self, item: Item, part: slice, positions: range) -> LossTerms:
        """The forward pass of some samples: `part` of the item, which are at `positions` of the stream."""

    def after_step(self, table: Tensor) -> None:
        """After an optimizer step; table as in StepResult."""

    @abc.abstractmethod
    def state_dict(self) -> dict[str, dict[str, Tensor]]:
        """What a checkpoint holds, a file each; tensors may be shards."""

    def trained_parameters(self) -> dict[str, Tensor]:
        """The parameters that the optimizer trains, by the names that a checkpoint has for them."""
        named = dict(self.net.named_parameters())
        if self.replicated is not None:
            beside = self.replicated.named_parameters()
            named |= {f"{REPLICATED}.{name}": parameter for name, parameter in beside}
        return {name: parameter for name, parameter in named.items() if parameter.requires_grad}

    def positions(self, step: int) -> range:
        """Of the stream of training samples, as step `step` sees them: all ranks'."""
        size = self.config.train.batch_size
        first = (step + self.skipped_batches) * size
        return range(first, first + size)

    def indices(self, step: int) -> np.ndarray:
        """The samples of the set that step `step` sees."""
        return samples_at(self.positions(step), self.samples, self.config.train.seed)

    def train_step(self, stop: bool = False) -> StepResult:
        """One optimizer step on the next train.batch_size samples; counts it even if it is skipped. stop:
        this rank was asked to stop, which all hear of.

        Raises RunError where memory does not suffice for a single sample, or the data cannot be read.
        """
        began = time.perf_counter()
        settings, batch = self.config.optimizer, self.positions(self.step)
        mine = batch[self.mine.start : self.mine.stop]
        self.heartbeat(f"waiting for {self.loader.source}", self.step)
        item = self.loader.take(mine)
        self.heartbeat(COMPUTING, self.step)
        self.waited += time.perf_counter() - began
        if not self._fits:
            self._find_micro_batch(item, mine)
        self.optimizer.zero_grad()
        table = self._with_gradients(item, mine)
        self._sum_replicated()
        table[-1] = float(stop)  # a last row, for what else all must know
        self.ranks.sum_(table)
        table, stops = table[:-1], bool(table[-1].any())
        norm = self._grad_norm()
        assert self._names is not None  # since the first sample of all
        loss, *means = table.mean(dim=0).tolist()
        terms = dict(zip(self._names[0], means, strict=False))
        grad_norm = float(norm)
        skipped = not (math.isfinite(loss) and math.isfinite(grad_norm))
        if skipped:
            self.skipped += 1
        else:
            if settings.clip > 0:
                factor = (settings.clip / (norm + 1e-6)).clamp(max=1.0)
                weights = [*self.weights, *self.beside]
                gradients = [local(weight.grad) for weight in weights if weight.grad is not None]
                torch._foreach_mul_(gradients, factor)  # pyright: ignore[reportPrivateImportUsage]
            for group in self.optimizer.param_groups:
                group["lr"] = learning_rate(settings, self.step, self.config.train.steps)
            self.optimizer.step()
            self.after_step(table)
        self.step += 1
        self.seconds += time.perf_counter() - began
        return StepResult(loss, terms, grad_norm, skipped, table, stops, self.micro_batch)

    def _sum_replicated(self) -> None:
        """Sums the gradients of the replicated weights over the ranks. A weight that the loss does not reach
        has the gradient 0, on one rank as on several."""
        for weight in self.beside:
            if weight.grad is None:
                weight.grad = torch.zeros_like(weight)
        if not (self.beside and self.ranks.grouped):
            return
        gradients = [weight.grad for weight in self.beside if weight.grad is not None]
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        # Losses were multiplied by the number of ranks, by which DDP and FSDP2 divide.
        self.ranks.sum_(flat).div_(self.ranks.world)
        for gradient, part in zip(gradients, flat.split([one.numel() for one in gradients]), strict=True):
            gradient.copy_(part.view_as(gradient))

    def _grad_norm(self) -> Tensor:
        """Of all gradients together, as the clip takes it."""
        norm = full(nn.utils.get_total_norm([w.grad for w in self.weights if w.grad is not None]))
        if self.beside:
            beside = nn.utils.get_total_norm([w.grad for w in self.beside if w.grad is not None])
            norm = torch.hypot(norm, beside.to(norm))
        return norm

    def _with_gradients(self, item: Item, mine: range) -> Tensor:
        """Gradients and losses of this rank's share: the table with zeros for the other ranks' samples, and
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
                    losses = self.compute_loss(item, part, mine[part])
                    # DDP and FSDP2 divide the sum over the ranks by their number.
                    (losses.weighted.sum() / (size / self.ranks.world)).backward()
                found.append(self._rows(losses))
            table = torch.zeros(size + 1, found[0].shape[1], dtype=torch.float64)
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

    def _rows(self, losses: LossTerms) -> Tensor:
        """(n, columns) float64, as in StepResult. Raises UsageError for a term that cannot be logged under
        its name, and RunError where the terms are not those of the samples before."""
        names = tuple(losses.terms), tuple(losses.others)
        if self._names is None:
            for name in losses.terms:
                if not is_term(name):
                    raise UsageError(
                        f"the loss has a term {shown(name)}, which cannot be a key of the log; give it "
                        "another name, of letters and digits"
                    )
            self._names = names
        if set(names[0]) != set(self._names[0]):
            before, now = (", ".join(sorted(one)) for one in (self._names[0], names[0]))
            raise RunError(
                f"the loss has the terms {now} at step {self.step + 1}, and had {before} before; an "
                "objective returns the same terms for every batch"
            )
        columns = [losses.weighted.detach()]
        columns += [losses.terms[name] for name in self._names[0]]
        columns += [losses.others[name] for name in self._names[1]]
        return torch.stack([column.detach().cpu().double() for column in columns], dim=1)

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
        here = [
            local(tensor).isfinite().all() for part in self.state_dict().values() for tensor in part.values()
        ]
        return self.ranks.all_agree(all(bool(finite) for finite in here))

    def counters(self) -> dict[str, Any]:
        """What of this belongs into a manifest."""
        return {
            "skipped": self.skipped,
            "seconds": self.seconds,
            "skipped_batches": self.skipped_batches,
            "micro_batch": self.micro_batch,
            "accumulate": self.config.train.accumulate,
        }

    def restore(self, saved: Checkpoint) -> None:
        """Continues from a checkpoint, made by any number of ranks; changes nothing if it does not fit."""
        state = saved.manifest["state"]
        if missing := [key for key in ("skipped", "seconds") if key not in state]:
            raise corrupt(saved.folder, f"its manifest lacks state.{missing[0]}")
        held, names = self.state_dict(), keys(saved, "optimizer")
        part = self.config.optimizer.algorithm
        if unknown := {name.partition("/")[0] for name in names} - {*part.state}:
            raise corrupt(saved.folder, f"{part.part_name()} keeps no optimizer state {shown(min(unknown))}")
        trained = self.trained_parameters()
        moments = new_moments(trained, names, part.scalars)
        read_into(saved, {**held, "optimizer": moments})
        restore_optimizer(trained, self.optimizer, moments)
        self.step = saved.step
        self.skipped, self.seconds = state["skipped"], state["seconds"]
        self.skipped_batches = state.get("skipped_batches", 0)
        same = (state.get("accumulate"), saved.manifest.get("world"))
        if same == (self.config.train.accumulate, self.ranks.world):
            self.micro_batch = state.get("micro_batch", self.micro_batch)  # it may have been halved


def is_out_of_memory(error: BaseException) -> bool:
    """Of a GPU, or of the CPU (where torch raises a plain RuntimeError)."""
    kinds = (torch.OutOfMemoryError, MemoryError)
    return isinstance(error, kinds) or "can't allocate memory" in str(error)


def optimizer_tensors(trained: Mapping[str, Tensor], optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """{"kind/parameter": tensor} of what the optimizer keeps for the parameters that it trains, by name."""
    return {
        f"{kind}/{name}": value
        for name, parameter in trained.items()
        for kind, value in optimizer.state[parameter].items()
    }


def new_moments(
    trained: Mapping[str, Tensor], names: Iterable[str], scalars: Collection[str]
) -> dict[str, Tensor]:
    """Zeros to read the optimizer tensors `names` into, with their parameter's memory layout: the fused AdamW
    walks both in the order of memory, so moments of another layout would meet other weights."""
    room = {}
    for key in names:
        kind, _, name = key.partition("/")
        if name in trained:
            room[key] = torch.zeros(()) if kind in scalars else torch.zeros_like(trained[name].detach())
    return room


def restore_optimizer(
    trained: Mapping[str, Tensor], optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]
) -> None:
    """The inverse of `optimizer_tensors`; trained: in the order in which the optimizer has them."""
    by_parameter: dict[str, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        kind, name = key.split("/", 1)
        by_parameter.setdefault(name, {})[kind] = value
    state = {i: by_parameter[name] for i, name in enumerate(trained) if name in by_parameter}
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})


def adamw(
    net: nn.Module, config: OptimizerConfig, replicated: nn.Module | None = None
) -> torch.optim.Optimizer:
    """The run's optimizer. replicated: as in Learner. Its weights are a group of their own: the fused AdamW
    takes no plain tensors among shards."""
    modules = [net] if replicated is None else [net, replicated]
    groups = [[weight for weight in module.parameters() if weight.requires_grad] for module in modules]
    return config.algorithm.make([{"params": group} for group in groups if group], config.learning_rate)


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
