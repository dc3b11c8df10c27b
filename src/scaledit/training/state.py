"""The training of a DiT: what is learned besides the weights, and how the loss is computed.

    theta <- AdamW(theta, grad of the mean over the batch of  weight L(theta; x_0, y, t, eps))
    ema   <- beta ema + (1 - beta) theta

All randomness of step i is keyed by (seed, position in the stream): there is no generator to save, and
a resumed run draws what an uninterrupted one would have.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from scaledit import assemble
from scaledit.autoencoders.encoded import EncodedImages
from scaledit.conditions.labels import Labels
from scaledit.config import RunConfig
from scaledit.data.loader import PATIENCE, Loader
from scaledit.data.order import samples_at
from scaledit.data.sets import Batch, TrainingSet
from scaledit.diffusion import NetDenoiser, TimeDistribution
from scaledit.diffusion.noise import TrainingDraws, named_draws, training_draws
from scaledit.diffusion.objectives import Context, Objective, named_terms
from scaledit.models.dit import DiT
from scaledit.training import ema
from scaledit.training.learner import REPLICATED, Learner, LossTerms, adamw, autocast, optimizer_tensors
from scaledit.training.parallel import Parallel, full, local, shard
from scaledit.training.ranks import Ranks


class Read(NamedTuple):
    """What a loader makes of some positions of the stream. named: the draws that the objective declares."""

    batch: Batch
    draws: TrainingDraws
    named: dict[str, Tensor]


@dataclass(frozen=True)
class Reader:
    """positions -> Read; runs in the loader's processes. named: as `Objective.draws`."""

    dataset: TrainingSet
    seed: int
    shape: tuple[int, ...]
    named: Mapping[str, str] = field(default_factory=dict)

    def __call__(self, positions: range) -> Read:
        indices = samples_at(positions, len(self.dataset), self.seed)
        batch = self.dataset.batch(indices, positions, self.seed)
        return Read(
            batch,
            training_draws(self.seed, positions, self.shape),
            named_draws(self.seed, positions, self.shape, self.named),
        )


@dataclass(frozen=True)
class Network:
    """What a denoiser asks of a network, with the ranks behind it: calls go through them, all else is
    answered by the network itself."""

    parallel: Parallel
    net: DiT

    @property
    def null_label(self) -> int:
        return self.net.null_label

    def __getattr__(self, name: str) -> Any:
        return getattr(self.net, name)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.parallel(*args, **kwargs)


@dataclass(eq=False, kw_only=True)
class TrainState(Learner[Read]):
    """A DiT, its average, its objective with modules of its own (`replicated`), and what the time
    distribution has learned. encoder: what turns images into latents as they come; None where the set holds
    what the model sees."""

    config: RunConfig  # pyright: ignore[reportIncompatibleVariableOverride]
    net: DiT  # pyright: ignore[reportIncompatibleVariableOverride]
    ema: DiT
    objective: Objective
    times: TimeDistribution
    encoder: EncodedImages | None = None

    @classmethod
    def create(cls, config: RunConfig, dataset: TrainingSet, ranks: Ranks) -> TrainState:
        """A fresh state, the same on all ranks. Raises UsageError for more ranks than samples in a batch, and
        for modules of an objective that cannot be trained exactly."""
        net, average = (assemble.network(config.model, config.train.seed).to(ranks.device) for _ in range(2))
        for parameter in average.parameters():
            parameter.requires_grad_(False)
        precision = config.train.precision
        parallel = Parallel(net.train(), net.blocks, config.engine, precision, ranks)
        if parallel.sharded:
            hybrid = config.engine.parallel == "hybrid"
            shard(average, average.blocks, hybrid, precision, ranks, trained=False)
        objective = config.diffusion.objective
        own = assemble.objective_modules(objective, config.model, config.train.seed, ranks.device)
        encoder = dataset if isinstance(dataset, EncodedImages) else None
        images = dataset if encoder is None else encoder.images
        reader = Reader(images, config.train.seed, config.model.shape, dict(objective.draws))
        in_memory = assemble.data_part(config.data).in_memory
        return cls(
            config=config,
            net=net,
            ema=average.eval(),
            parallel=parallel,
            replicated=own,
            optimizer=adamw(net, config.optimizer, own),
            objective=objective,
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
        network = Network(self.parallel, self.net)
        self.denoiser: NetDenoiser = assemble.denoiser(self.config.diffusion, network)
        self.average: NetDenoiser = assemble.denoiser(self.config.diffusion, self.ema)
        self.learned_times = self.times.begin()

    def compute_loss(self, item: Read, part: slice, positions: range) -> LossTerms:
        config, device = self.config, self.ranks.device
        x0, y = (one[part] for one in item.batch)
        time, label_drop, eps = (one[part] for one in item.draws)
        if self.encoder is not None:
            x0 = self.encoder.encoded(x0, positions, config.train.seed)
        condition: Any = self.net.drop(self.net.condition(y), label_drop)
        if isinstance(condition, Labels):
            condition = condition.values  # objectives take labels as a tensor
        fraction, weight = self.times.draw(time, self.learned_times)
        named = {name: draw[part].to(device) for name, draw in item.named.items()}
        with autocast(config.train.precision, device):
            losses = self.objective(
                self.denoiser,
                x0.to(device),
                condition.to(device),
                self.denoiser.schedule.time_at(fraction),
                eps.to(device),
                context=Context(named, self.replicated, self.average),
            )
        terms = named_terms(self.objective, losses, len(x0))
        total = terms.pop("total")
        others = {"unweighted": total.detach(), "fraction": fraction}
        return LossTerms(total * weight.to(total), terms, others)

    def after_step(self, table: Tensor) -> None:
        ema.update(self.averages, self.averaged, ema.decay_at(self.config.ema, self.step))
        unweighted, fraction = table[:, -2], table[:, -1]
        self.times.update(self.learned_times, fraction, unweighted)

    def state_dict(self) -> dict[str, dict[str, Tensor]]:
        held = {
            "model": dict(self.net.state_dict()),
            "ema": dict(self.ema.state_dict()),
            "optimizer": optimizer_tensors(self.trained_parameters(), self.optimizer),
            "times": dict(self.learned_times),
        }
        return held if self.replicated is None else {**held, REPLICATED: dict(self.replicated.state_dict())}

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
        tensors = {name: full(tensor) for name, tensor in self.ema.state_dict().items()}
        plain = assemble.network(self.config.model, seed=0).to(self.ranks.device).eval()
        plain.load_state_dict(tensors)
        return plain
