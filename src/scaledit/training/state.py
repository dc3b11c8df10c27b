"""The training of a DiT: what is learned besides the weights, and how samples are scored.

    theta <- AdamW(theta, grad of the mean over the batch of  weight L(theta; x_0, y, t, eps))
    ema   <- beta ema + (1 - beta) theta

All randomness of step i is keyed by (seed, position in the stream): there is no generator to save, and
a resumed run draws what an uninterrupted one would have.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from scaledit import assemble
from scaledit.autoencoders.encoded import EncodedImages
from scaledit.config import RunConfig
from scaledit.data.loader import PATIENCE, Loader
from scaledit.data.order import samples_at
from scaledit.data.sets import BUILT_IN, Batch, TrainingSet
from scaledit.diffusion import NetDenoiser, TimeDistribution
from scaledit.diffusion.noise import TrainingDraws, training_draws
from scaledit.diffusion.objectives import Objective
from scaledit.models.dit import DiT
from scaledit.training import ema
from scaledit.training.learner import Learner, Scored, adamw, autocast, optimizer_tensors
from scaledit.training.parallel import Parallel, local, shard, whole
from scaledit.training.ranks import Ranks


class Read(NamedTuple):
    """What a loader makes of some positions of the stream."""

    batch: Batch
    draws: TrainingDraws


@dataclass(frozen=True)
class Reader:
    """positions -> Read; runs in the loader's processes."""

    dataset: TrainingSet
    seed: int
    shape: tuple[int, ...]

    def __call__(self, positions: range) -> Read:
        indices = samples_at(positions, len(self.dataset), self.seed)
        batch = self.dataset.batch(indices, positions, self.seed)
        return Read(batch, training_draws(self.seed, positions, self.shape))


class Network(NamedTuple):
    """What a denoiser asks of a network, with the ranks behind it."""

    parallel: Parallel
    null_label: int

    def __call__(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        return self.parallel(x, t, y)


@dataclass(eq=False, kw_only=True)
class TrainState(Learner[Read]):
    """A DiT, its average, and what the time distribution has learned. encoder: what turns images into latents
    as they come; None where the set holds what the model sees."""

    COLUMNS: ClassVar[tuple[str, ...]] = ("mse", "vlb", "unweighted", "fraction")

    config: RunConfig  # pyright: ignore[reportIncompatibleVariableOverride]
    net: DiT  # pyright: ignore[reportIncompatibleVariableOverride]
    ema: DiT
    times: TimeDistribution
    encoder: EncodedImages | None = None

    @classmethod
    def create(cls, config: RunConfig, dataset: TrainingSet, ranks: Ranks) -> TrainState:
        """A fresh state, the same on all ranks. Raises UsageError for more ranks than samples in a batch."""
        net, average = (assemble.network(config.model, config.train.seed).to(ranks.device) for _ in range(2))
        for parameter in average.parameters():
            parameter.requires_grad_(False)
        precision = config.train.precision
        parallel = Parallel(net.train(), net.blocks, config.engine, precision, ranks)
        if parallel.sharded:
            shard(average, average.blocks, config.engine.parallel == "hybrid", precision, ranks)
        encoder = dataset if isinstance(dataset, EncodedImages) else None
        reader = Reader(dataset if encoder is None else encoder.images, config.train.seed, config.model.shape)
        in_memory = config.data.name in BUILT_IN
        return cls(
            config=config,
            net=net,
            ema=average.eval(),
            parallel=parallel,
            optimizer=adamw(net, config.optimizer),
            times=assemble.times(config.diffusion),
            ranks=ranks,
            loader=Loader(
                reader,
                config.train.batch_size,
                0 if in_memory else config.data.workers,
                PATIENCE * config.engine.timeout,
            ),
            samples=len(dataset),
            encoder=encoder,
        )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.averages: list[Tensor] = [local(parameter) for parameter in self.ema.parameters()]
        self.averaged: list[Tensor] = [local(parameter.detach()) for parameter in self.net.parameters()]
        network = Network(self.parallel, self.net.null_label)
        self.denoiser: NetDenoiser = assemble.denoiser(self.config.diffusion, network)
        self.objective: Objective = self.config.diffusion.objective

    def score(self, item: Read, part: slice, positions: range) -> Scored:
        config, device = self.config, self.ranks.device
        x0, y = (one[part] for one in item.batch)
        time, label_drop, eps = (one[part] for one in item.draws)
        if self.encoder is not None:
            x0 = self.encoder.encoded(x0, positions, config.train.seed)
        y = self.net.drop_labels(y, label_drop)
        fraction, weight = self.times.draw(time)
        with autocast(config.train.precision, device):
            losses = self.objective(
                self.denoiser,
                x0.to(device),
                y.to(device),
                self.denoiser.schedule.at(fraction),
                eps.to(device),
            )
        total = losses.total.detach()
        vlb = torch.zeros_like(total) if losses.vlb is None else losses.vlb.detach()
        columns = (losses.mse.detach(), vlb, total, fraction)
        return Scored(losses.total * weight.to(total), columns)

    def applied(self, table: Tensor) -> None:
        ema.update(self.averages, self.averaged, ema.decay_at(self.config.ema, self.step))
        self.times.update(table[:, -1], table[:, -2])

    def held(self) -> dict[str, dict[str, Tensor]]:
        return {
            "model": dict(self.net.state_dict()),
            "ema": dict(self.ema.state_dict()),
            "optimizer": optimizer_tensors(self.net, self.optimizer),
            "times": self.times.state(),
        }

    @torch.no_grad()
    def ema_distance(self) -> float:
        """|ema - weights| / |weights|, over all of them: how far the average lags behind."""
        pairs = zip(self.averages, self.averaged, strict=True)
        here = torch.zeros(2, dtype=torch.float64)
        for average, weight in pairs:
            here += torch.stack([(average - weight).square().sum(), weight.square().sum()]).to(here)
        if self.parallel.sharded:
            self.ranks.sum_(here)
        return float((here[0] / here[1]).sqrt())

    def averaged_network(self) -> DiT:
        """The average as a plain network on this rank; where it is sharded, all ranks must call this."""
        if not self.parallel.sharded:
            return self.ema
        tensors = {name: whole(tensor) for name, tensor in self.ema.state_dict().items()}
        plain = assemble.network(self.config.model, seed=0).to(self.ranks.device).eval()
        plain.load_state_dict(tensors)
        return plain
