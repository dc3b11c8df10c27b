"""One optimizer step of any model, on any number of ranks.

    g = sum over ranks, micro-batches and samples of  grad loss_j / B        theta <- AdamW(theta, g)

Each sample's loss is divided by the global batch size B where it is computed, so any split of the batch gives
the same gradient. The losses are exchanged as one table with one row per sample: all ranks see the same
numbers and make the same decisions.
"""

from __future__ import annotations

import abc
import gc
import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from scaledit.checkpoint import Checkpoint, corrupt
from scaledit.config import Config, OptimizerConfig
from scaledit.config.updates import Update
from scaledit.data.loader import Loader
from scaledit.data.order import samples_at
from scaledit.errors import RunError, UsageError, shown
from scaledit.optimizers.base import LR_SCALE, MATRICES
from scaledit.training.events import is_term
from scaledit.training.parallel import Parallel, full, local
from scaledit.training.ranks import Ranks
from scaledit.training.saving import keys, read_into
from scaledit.training.watch import COMPUTING

Item = TypeVar("Item")
Heartbeat = Callable[[str, int], None]

REPLICATED = "objective"
"""The checkpoint file of the modules trained beside the network, and the prefix of their parameters' names in
the optimizer's file."""


class LossTerms(NamedTuple):
    """The losses of n samples. weighted: (n,), the minimized loss. terms: its parts by name, (n,) each, with
    the same names at every step. extras: further values per sample, (n,) each, for `Learner.after_step`."""

    weighted: Tensor
    terms: dict[str, Tensor]
    extras: dict[str, Tensor] = {}  # noqa: RUF012


class StepResult(NamedTuple):
    """loss, terms: the minimized loss and its named parts, means over the batch. skipped: loss or gradient
    was not finite, so nothing was changed. table: (B, 1 + terms + extras) float64, one row per sample: the
    weighted loss, then `LossTerms.terms`, then `LossTerms.extras`. stop: whether any rank was asked to stop.
    micro_batch: samples that pass through a rank at once."""

    loss: float
    terms: dict[str, float]
    grad_norm: float
    skipped: bool
    table: Tensor
    stop: bool
    micro_batch: int


@dataclass(eq=False, kw_only=True)
class Learner(abc.ABC, Generic[Item]):
    """The state that a run changes (weights, optimizer, counters), and how the loss of a batch is computed.

    net: the module whose parameters are trained. parallel: the same module as wrapped for the ranks.
    replicated: modules trained beside it, complete on each rank; their gradients are summed over the ranks
    after the backward pass, so they may be called in any way. position: where the next step begins in the
    stream of training samples. skipped_batches: batches left out by rollbacks. seconds: training time;
    waited: the part of it spent waiting for data. heartbeat: called with the next activity and the step.
    micro_batch: samples that pass through a rank at once.
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
    position: int = 0
    skipped: int = 0
    skipped_batches: int = 0
    seconds: float = 0.0
    waited: float = 0.0
    heartbeat: Heartbeat = lambda activity, step: None
    micro_batch: int = field(init=False)

    def __post_init__(self) -> None:
        # Listed once: walking the modules again would slow down each step.
        self.weights: list[Tensor] = [p for p in self.net.parameters() if p.requires_grad]
        replicated = self.replicated.parameters() if self.replicated else ()
        self.replicated_weights: list[Tensor] = [p for p in replicated if p.requires_grad]
        self._names: tuple[tuple[str, ...], tuple[str, ...]] | None = None
        self.share = self.ranks.share(self.config.train.batch_size)
        # Of the largest share, so that all ranks agree on it and one checkpoint holds it for all.
        largest = -(-self.config.train.batch_size // self.ranks.world)
        self.micro_batch = -(-largest // self.config.train.accumulate)
        self._fits = not self.ranks.grouped  # a single process finds out while it trains

    @abc.abstractmethod
    def compute_loss(self, item: Item, part: slice, positions: range) -> LossTerms:
        """The forward pass of the samples `part` of the item, which are at `positions` of the stream."""

    def after_step(self, table: Tensor) -> None:
        """Called after each optimizer step; table: as in StepResult."""

    def after_any_step(self, n: int) -> None:
        """Called after each step, also a skipped one. n: its number, from 1."""

    @abc.abstractmethod
    def state_dict(self) -> dict[str, dict[str, Tensor]]:
        """The tensors of a checkpoint, by file and name; they may be shards."""

    def trained_parameters(self) -> dict[str, Tensor]:
        """The parameters that the optimizer trains, by their names in a checkpoint."""
        named = dict(self.net.named_parameters())
        if self.replicated is not None:
            replicated = self.replicated.named_parameters()
            named |= {f"{REPLICATED}.{name}": parameter for name, parameter in replicated}
        return {name: parameter for name, parameter in named.items() if parameter.requires_grad}

    def optimizer_state(self) -> dict[str, Tensor]:
        """{"kind/parameter": tensor}: the optimizer's state of each trained parameter."""
        return {
            f"{kind}/{name}": value
            for name, parameter in self.trained_parameters().items()
            for kind, value in self.optimizer.state[parameter].items()
        }

    @property
    def last_rate(self) -> float:
        """The learning rate of the last step, without the factors of groups."""
        group = self.optimizer.param_groups[0]
        return group["lr"] / group.get(LR_SCALE, 1.0)

    def positions(self, step: int) -> range:
        """The positions in the stream of training samples that step `step` sees, on all ranks: the next step,
        or one before or after it with the same batch size."""
        size = self.config.train.batch_size
        first = self.position + (step - self.step) * size
        return range(first, first + size)

    def indices(self, step: int) -> np.ndarray:
        """The indices into the data set of the samples that step `step` sees."""
        return samples_at(self.positions(step), self.samples, self.config.train.seed)

    def train_step(self, stop: bool = False) -> StepResult:
        """Makes one optimizer step on the next train.batch_size samples; counts it even if it is skipped.

        stop: whether this rank was asked to stop, which is sent to all ranks. Raises RunError if a single
        sample does not fit into memory or the data cannot be read.
        """
        began = time.perf_counter()
        settings, batch = self.config.optimizer, self.positions(self.step)
        positions = batch[self.share.start : self.share.stop]
        self.heartbeat(f"waiting for {self.loader.source}", self.step)
        item = self.loader.take(positions)
        self.heartbeat(COMPUTING, self.step)
        self.waited += time.perf_counter() - began
        if not self._fits:
            self._find_micro_batch(item, positions)
        self.optimizer.zero_grad()
        while (table := self._accumulate(item, positions, len(positions))) is None:
            self._halve()
        self._sum_replicated()
        table[-1] = float(stop)
        self.ranks.sum_(table)
        table, stops = table[:-1], bool(table[-1].any())
        norm = self._grad_norm()
        assert self._names is not None  # set with the first sample
        loss, *means = table.mean(dim=0).tolist()
        terms = dict(zip(self._names[0], means, strict=False))
        grad_norm = float(norm)
        skipped = not (math.isfinite(loss) and math.isfinite(grad_norm))
        if skipped:
            self.skipped += 1
        else:
            if settings.clip > 0:
                factor = (settings.clip / (norm + 1e-6)).clamp(max=1.0)
                weights = [*self.weights, *self.replicated_weights]
                gradients = [local(weight.grad) for weight in weights if weight.grad is not None]
                torch._foreach_mul_(gradients, factor)  # pyright: ignore[reportPrivateImportUsage]
            for group in self.optimizer.param_groups:
                rate = learning_rate(settings, self.step, self.config.train.steps)
                group["lr"] = rate * group.get(LR_SCALE, 1.0)
            self.optimizer.step()
            self.after_step(table)
        self.after_any_step(self.step + 1)
        self.step += 1
        self.position += len(batch)
        self.seconds += time.perf_counter() - began
        return StepResult(loss, terms, grad_norm, skipped, table, stops, self.micro_batch)

    def _sum_replicated(self) -> None:
        """Sums the gradients of the replicated weights over the ranks. A weight that the loss does not reach
        gets the gradient 0, on one rank as on several."""
        for weight in self.replicated_weights:
            if weight.grad is None:
                weight.grad = torch.zeros_like(weight)
        if not (self.replicated_weights and self.ranks.grouped):
            return
        gradients = [weight.grad for weight in self.replicated_weights if weight.grad is not None]
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        # `_accumulate` multiplied the losses by the number of ranks.
        self.ranks.sum_(flat).div_(self.ranks.world)
        sizes = [gradient.numel() for gradient in gradients]
        for gradient, total in zip(gradients, flat.split(sizes), strict=True):
            gradient.copy_(total.view_as(gradient))

    def _grad_norm(self) -> Tensor:
        """The norm of all gradients together, which the clip limits."""
        norm = full(nn.utils.get_total_norm([w.grad for w in self.weights if w.grad is not None]))
        if self.replicated_weights:
            gradients = [w.grad for w in self.replicated_weights if w.grad is not None]
            norm = torch.hypot(norm, nn.utils.get_total_norm(gradients).to(norm))
        return norm

    def _find_micro_batch(self, item: Item, positions: range) -> None:
        """Halves the micro-batch until one fits on all ranks. Done once, apart from training: a rank that
        runs out of memory in the middle of a sum over ranks would leave the others waiting."""
        while not self.parallel.sharded:
            with self.parallel.without_sum():
                count = min(self.micro_batch, len(positions))
                fits = self._accumulate(item, positions, count) is not None
            self.optimizer.zero_grad()
            if self.ranks.all_agree(fits):
                break
            self._halve()
        self._fits = True
        if not self.parallel.sharded:
            # After its first sum DDP makes a new layout of its buckets, which changes the order of sums. So
            # that sum is made here and dropped: a resumed run then sums as an uninterrupted one.
            self._accumulate(item, positions, len(positions))
            self.optimizer.zero_grad()

    def _accumulate(self, item: Item, positions: range, count: int) -> Tensor | None:
        """Accumulates the gradients of the first `count` samples of this rank, in micro-batches.

        Returns the table with zeros for the other ranks' samples and one more row, or None if memory ran out.
        """
        size = self.config.train.batch_size
        rows: list[Tensor] = []
        try:
            for part in self._parts(count):
                last = part.stop == len(positions)
                with nullcontext() if last else self.parallel.without_sum():
                    losses = self.compute_loss(item, part, positions[part])
                    # DDP and FSDP2 divide the sum over the ranks by their number.
                    (losses.weighted.sum() / (size / self.ranks.world)).backward()
                rows.append(self._rows(losses))
            table = torch.zeros(size + 1, rows[0].shape[1], dtype=torch.float64)
            table[self.share.start : self.share.start + count] = torch.cat(rows)
            return table
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            if self._fits and self.ranks.grouped:
                raise RunError(
                    f"rank {self.ranks.rank} ran out of memory with micro-batches of {self.micro_batch}; run "
                    f"the same command with train.accumulate={2 * self.config.train.accumulate} to resume "
                    "from the last checkpoint"
                ) from error
        return None

    def _rows(self, losses: LossTerms) -> Tensor:
        """(n, columns) float64, as in StepResult. Raises UsageError for a term whose name is no key of the
        log, and RunError if the terms differ from those of earlier samples."""
        names = tuple(losses.terms), tuple(losses.extras)
        if self._names is None:
            for name in losses.terms:
                if not is_term(name):
                    raise UsageError(
                        f"the loss has a term {shown(name)}, which cannot be a key of the log; give it "
                        "another name, of letters and digits"
                    )
            self._names = names
        if set(names[0]) != set(self._names[0]):
            before, now = (", ".join(sorted(terms)) for terms in (self._names[0], names[0]))
            raise RunError(
                f"the loss has the terms {now} at step {self.step + 1}, but had {before} before; an "
                "objective must return the same terms for each batch"
            )
        columns = [losses.weighted]
        columns += [losses.terms[name] for name in self._names[0]]
        columns += [losses.extras[name] for name in self._names[1]]
        return torch.stack([column.detach().cpu().double() for column in columns], dim=1)

    def _parts(self, count: int) -> list[slice]:
        """`count` samples of this rank in micro-batches. With shards each forward pass needs all ranks, so
        unequal shares are split into the same number."""
        number = -(-count // self.micro_batch)
        if self.parallel.sharded:
            size, world = self.config.train.batch_size, self.ranks.world
            number = min(-(-size // world // self.micro_batch), size // world)
        return [slice(count * k // number, count * (k + 1) // number) for k in range(number)]

    def _halve(self) -> None:
        if self.micro_batch == 1:
            raise RunError(
                "even one image at a time does not fit into memory; engine.recompute=blocks needs less"
            )
        self.micro_batch = -(-self.micro_batch // 2)
        self.optimizer.zero_grad()
        gc.collect()
        if self.ranks.device.type == "cuda":
            torch.cuda.empty_cache()

    def is_finite(self) -> bool:
        """Whether everything that a checkpoint would hold is finite, on every rank."""
        finite = [
            local(tensor).isfinite().all() for part in self.state_dict().values() for tensor in part.values()
        ]
        return self.ranks.all_agree(all(map(bool, finite)))

    def counters(self) -> dict[str, Any]:
        """The entries of a manifest's `state` that `restore` reads."""
        return {
            "skipped": self.skipped,
            "seconds": self.seconds,
            "skipped_batches": self.skipped_batches,
            "position": self.position,
            "micro_batch": self.micro_batch,
            "accumulate": self.config.train.accumulate,
        }

    def restore(self, saved: Checkpoint) -> None:
        """Resumes from a checkpoint, written by any number of ranks; changes nothing if it does not fit."""
        state = saved.manifest["state"]
        if missing := [key for key in ("skipped", "seconds") if key not in state]:
            raise corrupt(saved.folder, f"its manifest lacks state.{missing[0]}")
        part, names = self.config.optimizer.algorithm, keys(saved, "optimizer")
        if unknown := {name.partition("/")[0] for name in names} - {*part.state}:
            raise corrupt(saved.folder, f"{part.part_name()} keeps no optimizer state {shown(min(unknown))}")
        # zeros_like keeps the memory layout of the parameter. The fused AdamW walks both in the order of
        # memory, so moments of another layout would meet other weights.
        trained = self.trained_parameters()
        state_of = {
            name: {
                kind: torch.zeros(()) if kind in part.scalars else torch.zeros_like(parameter.detach())
                for kind in part.state
                if f"{kind}/{name}" in names
            }
            for name, parameter in trained.items()
        }
        moments = {
            f"{kind}/{name}": value for name, kinds in state_of.items() for kind, value in kinds.items()
        }
        read_into(saved, {**self.state_dict(), "optimizer": moments})
        weights = (weight for group in self.optimizer.param_groups for weight in group["params"])
        index = {weight: i for i, weight in enumerate(weights)}  # torch's order, which is that of the groups
        by_index = {index[trained[name]]: kinds for name, kinds in state_of.items() if kinds}
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": by_index})
        self.step = saved.step
        self.skipped, self.seconds = state["skipped"], state["seconds"]
        self.skipped_batches = state.get("skipped_batches", 0)
        size = batch_size_of(saved)
        # Manifests without a position are of runs whose batch size never changed.
        self.position = state.get("position", (saved.step + self.skipped_batches) * size)
        same = (size, state.get("accumulate"), saved.manifest.get("world"))
        if same == (self.config.train.batch_size, self.config.train.accumulate, self.ranks.world):
            self.micro_batch = state.get("micro_batch", self.micro_batch)  # it may have been halved


def batch_size_of(saved: Checkpoint) -> int:
    """The batch size of the steps before a checkpoint. Raises RunError if its config has none."""
    train = saved.config.get("train")
    size = train.get("batch_size") if isinstance(train, dict) else None
    if not isinstance(size, int) or isinstance(size, bool) or size < 1:
        raise corrupt(saved.folder, f"its config has the train.batch_size {shown(size)}")
    return size


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a GPU, or the CPU (for which torch raises a plain RuntimeError), ran out of memory."""
    kinds = (torch.OutOfMemoryError, MemoryError)
    return isinstance(error, kinds) or "can't allocate memory" in str(error)


def make_optimizer(
    net: nn.Module,
    config: OptimizerConfig,
    replicated: nn.Module | None = None,
    updates: Mapping[str, Update] = MappingProxyType({}),
) -> torch.optim.Optimizer:
    """The optimizer of a run. replicated: as in Learner; its weights form a separate group, because the fused
    AdamW takes no plain tensors among shards. updates: {name: update} of the weights of `net` that are not
    updated like all others; each different update has a group."""
    groups: dict[Update, list[Tensor]] = {}
    for name, weight in net.named_parameters():
        if weight.requires_grad:
            groups.setdefault(updates.get(name, Update()), []).append(weight)
    made = [_group(weights, update) for update, weights in groups.items()]
    if beside := [weight for weight in replicated.parameters() if weight.requires_grad] if replicated else []:
        made.append(_group(beside, Update()))
    return config.algorithm.make(made, config.learning_rate)


def _group(weights: Sequence[Tensor], update: Update) -> dict[str, Any]:
    """A group as `scaledit.optimizers.base` describes it."""
    group: dict[str, Any] = {"params": list(weights)}
    if update.lr_scale != 1:
        group[LR_SCALE] = update.lr_scale
    if update.matrices:
        group[MATRICES] = update.matrices
    return group


def learning_rate(config: OptimizerConfig, step: int, steps: int) -> float:
    """The learning rate of step `step` (0 for the first) of `steps`."""
    warm = min(1.0, (step + 1) / config.warmup_steps) if config.warmup_steps else 1.0
    done = step / steps
    decay = {"constant": 1.0, "linear": 1 - done, "cosine": 0.5 * (1 + math.cos(math.pi * done))}
    return config.learning_rate * warm * decay[config.decay]


def autocast(precision: str, device: torch.device) -> AbstractContextManager[object]:
    """bf16 autocast, or a null context; "tf32" makes CUDA round the inputs of float32 products to 10 bits."""
    torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
    if precision == "bf16":
        return torch.autocast(device.type, torch.bfloat16)
    return nullcontext()
