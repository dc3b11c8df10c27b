"""The state of a DiT in training: what is learned besides the weights, and how the loss is computed.

    theta <- AdamW(theta, grad of the mean over the batch of  weight L(theta; x_0, y, t, eps))
    ema   <- beta ema + (1 - beta) theta, and likewise the averages of ema.power (scaledit.training.power)

All randomness of step i is keyed by (seed, position in the stream): no generator has to be saved, and a
resumed run draws the same numbers as an uninterrupted one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from scaledit import assemble, checks
from scaledit.autoencoders.encoded import EncodedImages
from scaledit.checkpoint import POWER
from scaledit.conditions.labels import Labels
from scaledit.config import RunConfig, models_at
from scaledit.config.updates import updates
from scaledit.data.buckets import Buckets, Drawn, bucketed
from scaledit.data.latents import Latents
from scaledit.data.loader import PATIENCE, Loader
from scaledit.data.order import paired, samples_at
from scaledit.data.sets import Batch, TrainingSet
from scaledit.diffusion import NetDenoiser, TimeDistribution
from scaledit.diffusion.noise import TrainingDraws, named_draws, training_draws
from scaledit.diffusion.objectives import Context, Objective
from scaledit.diffusion.terms import Partner, Term, all_draws, losses
from scaledit.models import flops
from scaledit.models.config import DiTConfig
from scaledit.models.dit import DiT
from scaledit.training import ema
from scaledit.training.learner import REPLICATED, Learner, LossTerms, autocast, make_optimizer
from scaledit.training.parallel import Parallel, full, local, shard
from scaledit.training.power import Tracks
from scaledit.training.ranks import Ranks
from scaledit.training.start import Start


class Read(NamedTuple):
    """What a loader reads for some positions of the stream. named: the draws that the objective and the terms
    of the loss declare. If a term needs partners, batch and draws are of `data.order.paired(positions)`."""

    batch: Batch
    draws: TrainingDraws
    named: dict[str, Tensor]


@dataclass(frozen=True)
class Mixed:
    """The sizes of the batches of a rank. models: the model at each of them. batch_size: over all ranks.
    offset: of this rank's first image in a batch."""

    buckets: Buckets
    models: tuple[DiTConfig, ...]
    batch_size: int
    offset: int

    @classmethod
    def of(cls, config: RunConfig, dataset: TrainingSet, ranks: Ranks) -> Mixed | None:
        """What data.buckets names; None if it is empty. Raises UsageError and RunError as `bucketed` and
        `models_at` do."""
        sizes = checks.image_sizes(config.data.buckets, "data.buckets")
        if not sizes:
            return None
        encoder = dataset if isinstance(dataset, EncodedImages) else None
        factor = 1
        if encoder is not None:
            factor = encoder.autoencoder.downsampling
        elif isinstance(dataset, Latents):
            factor = dataset.index.autoencoder.downsampling
        models = tuple(models_at(config.model, sizes, factor))
        buckets = bucketed(dataset if encoder is None else encoder.images, sizes)
        size = config.train.batch_size
        return cls(buckets, models, size, ranks.share(size).start)

    @property
    def shapes(self) -> tuple[tuple[int, int, int], ...]:
        """(C, H, W) of the model's inputs in each bucket."""
        return tuple(model.shape for model in self.models)

    @property
    def largest(self) -> DiTConfig:
        """The model at the bucket with the most tokens."""
        return max(self.models, key=lambda model: model.tokens)

    @property
    def macs(self) -> int:
        """Multiply-adds of one forward pass of one image, on average over the batches."""
        counts = self.buckets.counts
        each = (flops.count(model).macs * count for model, count in zip(self.models, counts, strict=True))
        return round(sum(each) / sum(counts))

    def drawn(self, positions: range, seed: int, offset: int | None = None) -> Drawn:
        """offset: of the first position in its batch, by default this rank's."""
        offset = self.offset if offset is None else offset
        return self.buckets.drawn(positions, offset, self.batch_size, seed)


@dataclass(frozen=True)
class Reader:
    """positions -> Read; runs in the loader's processes. shape: of the model's inputs. named: as
    `Objective.draws`. partners: whether a term of the loss needs a partner for each sample. mixed: the sizes
    of the batches, if they have several; a partner has the size of its sample."""

    dataset: TrainingSet
    seed: int
    shape: tuple[int, ...]
    named: Mapping[str, str] = field(default_factory=dict)
    partners: bool = False
    mixed: Mixed | None = None

    def __call__(self, positions: range) -> Read:
        read = paired(positions) if self.partners else positions
        dataset, shape, before = self.dataset, self.shape, positions.start - read.start
        if self.mixed is None:
            indices = samples_at(read, len(dataset), self.seed)
        else:
            bucket, indices = self.mixed.drawn(read, self.seed, self.mixed.offset - before)
            dataset, shape = self.mixed.buckets.sets[bucket], self.mixed.shapes[bucket]
        return Read(
            dataset.batch(indices, read, self.seed),
            training_draws(self.seed, read, shape),
            named_draws(self.seed, positions, shape, self.named),
        )


@dataclass(eq=False, kw_only=True)
class TrainState(Learner[Read]):
    """A DiT, its moving average, its objective and further terms of the loss with their own modules
    (`replicated`), and what the time distribution has learned.

    objective_modules: the objective's part of `replicated`. term_modules, frozen: what each term trains and
    reads, by its name in the log. encoder: turns images into latents during training; None if the data set
    holds the model's inputs. images: whether training sees pixels. mixed: the sizes of the batches, if they
    have several.
    """

    config: RunConfig  # pyright: ignore[reportIncompatibleVariableOverride]
    net: DiT  # pyright: ignore[reportIncompatibleVariableOverride]
    ema: DiT
    objective: Objective
    times: TimeDistribution
    terms: tuple[Term, ...] = ()
    objective_modules: torch.nn.Module | None = None
    term_modules: Mapping[str, torch.nn.Module] = field(default_factory=dict)
    frozen: Mapping[str, Any] = field(default_factory=dict)
    encoder: EncodedImages | None = None
    images: bool = True
    mixed: Mixed | None = None

    @classmethod
    def create(
        cls,
        config: RunConfig,
        dataset: TrainingSet,
        ranks: Ranks,
        start: Start | None = None,
        mixed: Mixed | None = None,
    ) -> TrainState:
        """A fresh state, the same on all ranks. start: the model that the weights and their average start
        from, instead of random weights. mixed: as `Mixed.of`, if it is known. Raises UsageError if there are
        more ranks than samples in a batch, if modules of the objective or a term cannot be trained exactly,
        or if a term lacks what it reads, and as `Mixed.of`."""
        net, average = (assemble.trainable(config) for _ in range(2))
        if start is not None:
            start.load(net)
            average.load_state_dict(net.state_dict())
        net, average = net.to(ranks.device), average.to(ranks.device)
        for parameter in average.parameters():
            parameter.requires_grad_(False)
        precision = config.train.precision
        parallel = Parallel(net.train(), net.blocks, config.engine, precision, ranks)
        if parallel.sharded:
            hybrid = config.engine.parallel == "hybrid"
            shard(average, average.blocks, hybrid, precision, ranks, trained=False)
        objective, terms = config.diffusion.objective, config.diffusion.terms
        assemble.check_terms(config, dataset)
        own = assemble.objective_modules(objective, config.model, config.train.seed, ranks.device)
        of_terms = assemble.term_modules(terms, config.model, config.train.seed, ranks.device)
        replicated = _together(own, of_terms)
        encoder = dataset if isinstance(dataset, EncodedImages) else None
        images = dataset if encoder is None else encoder.images
        if mixed is None:
            mixed = Mixed.of(config, dataset, ranks)
        partners, draws = any(term.partner for term in terms), all_draws(objective, terms)
        reader = Reader(images, config.train.seed, config.model.shape, draws, partners, mixed)
        workers = 0 if assemble.data_part(config.data).in_memory else config.data.workers
        return cls(
            config=config,
            net=net,
            ema=average.eval(),
            parallel=parallel,
            replicated=replicated,
            optimizer=make_optimizer(net, config.optimizer, replicated, updates(config)),
            objective=objective,
            terms=terms,
            objective_modules=own,
            term_modules=of_terms,
            frozen=assemble.frozen(terms, config.model, ranks.device),
            times=assemble.times(config.diffusion, config.model.shape),
            ranks=ranks,
            loader=Loader(reader, config.train.batch_size, workers, PATIENCE * config.engine.timeout),
            samples=len(dataset),
            encoder=encoder,
            images=assemble.gives_images(dataset),
            mixed=mixed,
        )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.ema_weights: list[Tensor] = [local(parameter) for parameter in self.ema.parameters()]
        self.net_weights: list[Tensor] = [local(parameter.detach()) for parameter in self.net.parameters()]
        pairs = zip(self.ema_weights, self.net_weights, self.net.parameters(), strict=True)
        moving = [(average, weight) for average, weight, trained in pairs if trained.requires_grad]
        self.moving: tuple[list[Tensor], list[Tensor]] = ([a for a, _ in moving], [w for _, w in moving])
        self.power = Tracks(
            self.config.ema, {name: p for name, p in self.net.named_parameters() if p.requires_grad}
        )
        network: Any = self.parallel
        self.denoiser: NetDenoiser = assemble.denoiser(self.config.diffusion, network)
        self.ema_denoiser: NetDenoiser = assemble.denoiser(self.config.diffusion, self.ema)
        self.learned_times = self.times.begin()

    def indices(self, step: int) -> np.ndarray:
        """As for all learners; with buckets, into the set of the bucket of that step."""
        if self.mixed is None:
            return super().indices(step)
        return self.mixed.drawn(self.positions(step), self.config.train.seed, offset=0).indices

    def compute_loss(self, item: Read, part: slice, positions: range) -> LossTerms:
        config, device = self.config, self.ranks.device
        has_partners = any(term.partner for term in self.terms)
        read, rows, inside = positions, part, slice(None)
        if has_partners:
            read = paired(positions)
            start = positions.start - part.start  # of the item
            first, before = read.start - (start - start % 2), positions.start - read.start
            rows, inside = slice(first, first + len(read)), slice(before, before + len(positions))
        x0, y = (column[rows] for column in item.batch)
        time, label_drop, eps = (draw[rows] for draw in item.draws)
        pixels = x0[inside].to(device) if self.images and any(term.images for term in self.terms) else None
        if self.encoder is not None:
            x0 = self.encoder.encoded(x0, read, config.train.seed)
        partner = None
        if has_partners:
            others = torch.tensor([(position ^ 1) - read.start for position in positions])
            partner = Partner(*(column[others].to(device) for column in (x0, y, eps)))
        x0, y, time, label_drop, eps = (column[inside] for column in (x0, y, time, label_drop, eps))
        condition: Any = self.net.drop(self.net.condition(y), label_drop)
        if isinstance(condition, Labels):
            condition = condition.values  # objectives take labels as a tensor
        if self.mixed is not None:  # a shift may depend on the size, which a batch has only one of
            self.times = assemble.times(config.diffusion, x0.shape[1:])
        fraction, weight = self.times.draw(time, self.learned_times)
        named = {name: draw[part].to(device) for name, draw in item.named.items()}
        with autocast(config.train.precision, device):
            terms = losses(
                self.objective,
                self.terms,
                self.denoiser,
                x0.to(device),
                condition.to(device),
                self.denoiser.schedule.time_at(fraction),
                eps.to(device),
                Context(named, self.objective_modules, self.ema_denoiser),
                images=pixels,
                partner=partner,
                modules=self.term_modules,
                frozen=self.frozen,
                step=self.step,
            )
        if self.terms and any(term.active(self.step) != term.active(self.step - 1) for term in self.terms):
            self._names = None  # the log has one term less from this step on
        total = terms.pop("total")
        extras = {"unweighted": total.detach(), "fraction": fraction}
        return LossTerms(total * weight.to(total), terms, extras)

    def after_step(self, table: Tensor) -> None:
        ema.update(*self.moving, ema.decay_at(self.config.ema, self.step))  # the others are equal
        unweighted, fraction = table[:, -2], table[:, -1]
        self.times.update(self.learned_times, fraction, unweighted)

    def after_any_step(self, n: int) -> None:
        self.power.update(n)

    def state_dict(self) -> dict[str, dict[str, Tensor]]:
        parts = {
            "model": dict(self.net.state_dict()),
            "ema": dict(self.ema.state_dict()),
            "optimizer": self.optimizer_state(),
            "times": dict(self.learned_times),
        }
        if self.config.ema.power:
            parts[POWER] = self.power.state_dict()
        return parts if self.replicated is None else {**parts, REPLICATED: dict(self.replicated.state_dict())}

    @torch.no_grad()
    def ema_distance(self) -> float:
        """|ema - weights| / |weights| over all weights: how far the average lags behind."""
        squares = torch.zeros(2, dtype=torch.float64)
        for average, weight in zip(self.ema_weights, self.net_weights, strict=True):
            squares += torch.stack([(average - weight).square().sum(), weight.square().sum()]).to(squares)
        if self.parallel.sharded:
            self.ranks.sum_(squares)
        return float((squares[0] / squares[1]).sqrt())

    def averaged_network(self) -> DiT:
        """The average as a plain network on this rank; with shards all ranks must call this."""
        if not self.parallel.sharded:
            return self.ema
        tensors = {name: full(tensor) for name, tensor in self.ema.state_dict().items()}
        plain = assemble.trainable(self.config).to(self.ranks.device).requires_grad_(False).eval()
        plain.load_state_dict(tensors)
        return plain


def _together(own: torch.nn.Module | None, of_terms: Mapping[str, torch.nn.Module]) -> torch.nn.Module | None:
    """The modules of the objective and of the terms as one; None if there are none. Those of an objective
    alone keep the names that they have without terms."""
    if not of_terms:
        return own
    terms = torch.nn.ModuleDict(of_terms)
    return torch.nn.ModuleDict({"terms": terms} if own is None else {"objective": own, "terms": terms})
