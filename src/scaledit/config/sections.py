"""The sections of a run's config: one frozen dataclass per section, one field per key with its bounds and
meaning.

    [sample]                                                        SampleConfig
    sampler = {name = "dpm", steps = 20}                            a part: scaledit.part
    guidance = [{name = "classifier_free", scale = 1.5}]            parts, the first one innermost

Imports no torch.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from scaledit import part
from scaledit.data.datasets import DataSet
from scaledit.diffusion.guidance import Guidance
from scaledit.diffusion.objectives import Hybrid, Objective
from scaledit.diffusion.parameterization import Epsilon, LearnedRange, Parameterization
from scaledit.diffusion.samplers import DDPM, Sampler
from scaledit.diffusion.schedule import LinearBeta, Schedule
from scaledit.diffusion.terms import Term
from scaledit.diffusion.timesteps import TimeDistribution, Uniform
from scaledit.errors import UsageError, did_you_mean, shown
from scaledit.optimizers import AdamW, Optimizer
from scaledit.values import field


@dataclass(frozen=True)
class DiffusionConfig:
    """Which parts of scaledit.diffusion the model is trained and sampled with."""

    schedule: Schedule = field(LinearBeta(), doc="signal and noise levels over time")
    prediction: Parameterization = field(Epsilon(), doc="what the network predicts")
    objective: Objective = field(Hybrid(), doc="the loss that training minimizes")
    times: TimeDistribution = field(Uniform(), doc="distribution that training draws its times from")
    terms: tuple[Term, ...] = field(
        (), doc="further terms of the loss, each added with its weight", added=True
    )

    @property
    def parameterization(self) -> Parameterization:
        """`prediction`, with a variance on further channels if the objective trains one. This is the only
        place that decides whether a variance is learned."""
        if self.objective.learns_variance and not isinstance(self.prediction, LearnedRange):
            return LearnedRange(self.prediction)
        return self.prediction

    @property
    def learns_variance(self) -> bool:
        """Whether the network has twice the channels (model.learn_sigma). Raises UsageError if no objective
        would train them."""
        if isinstance(self.prediction, LearnedRange) and not self.objective.learns_variance:
            raise UsageError(
                'diffusion.prediction="learned_range" predicts a variance, which '
                f'diffusion.objective="{self.objective.part_name()}" does not train; change one of them'
            )
        return self.objective.learns_variance


@dataclass(frozen=True)
class DataConfig:
    """What a run is trained on.

    own: the fields of a data set defined by the user, which has none of the others but `SHARED`. In a recipe
    and in config.json they appear beside those.
    """

    name: str = field(
        "digits",
        doc='"digits", "photos" or "emoji" (built in); "images" or "latents" with a path; or MODULE:CLASS of '
        "your own",
    )
    path: str = field(
        "",
        path=True,
        doc="images: class folders, tar shards, Parquet or a .zip; latents: what scaledit encode wrote",
    )
    flip: bool = field(False, doc="flip half of the images left to right, chosen at random")
    image_size: int = field(
        0,
        ge=0,
        doc="images: side in pixels after resizing and cropping to a square; emoji: of the drawings, 0: 32",
    )
    workers: int = field(2, ge=0, doc="processes per rank that read ahead; sets held in memory use none")
    verify: bool = field(True, doc="latents: check the SHA-256 of every file before training")
    background: str = field(
        "",
        doc='images: shown through transparent pixels: "white", "black", "#rrggbb", or "drop" to ignore '
        "alpha; empty: as the run began, white for a new one",
        added=True,
    )
    split: str = field(
        "", doc='images stored in splits: which one; empty: train; "all": all of them together', added=True
    )
    image_key: str = field(
        "", doc='WebDataset samples with several images: which file is the image ("jpg")', added=True
    )
    holdout: float = field(
        0.0,
        ge=0,
        lt=1,
        doc="images: share of each class that training does not see, chosen by their names; 0.1 for "
        "autoencoders",
        added=True,
    )
    classes: Literal["category", "subcategory"] = field(
        "category", doc="emoji: what the classes are, ten categories or their 101 subcategories", added=True
    )
    buckets: tuple[str, ...] = field(
        (),
        doc='sizes in pixels, ["24x24", "32x48"] (height x width): each batch has one of them; empty: the '
        "size of the model",
        added=True,
    )
    changed: Literal["refuse", "accept"] = field(
        "refuse",
        doc="what a resumed run does if its data has changed; accept records the change in the log",
        added=True,
    )
    own: Mapping[str, Any] = dataclasses.field(default_factory=dict, hash=False)

    SHARED: ClassVar[tuple[str, ...]] = ("name", "workers", "buckets", "changed")
    """Keys that every set has; the others are the set's own fields."""

    def flat(self) -> dict[str, Any]:
        """[data] as a table; the inverse of `with_own`."""
        values = {one.name: getattr(self, one.name) for one in dataclasses.fields(self) if one.name != "own"}
        if ":" not in self.name:
            return values
        return {**{key: values[key] for key in self.SHARED}, **self.own}

    @staticmethod
    def with_own(values: Mapping[str, Any]) -> Mapping[str, Any]:
        """[data] as a table, with the fields of a user's own set apart, under "own". They are checked where
        the set is opened, so that a foreign config imports nothing. Raises UsageError for an unknown set."""
        name = values.get("name", DataConfig.name)
        if not isinstance(name, str):
            return values
        if "own" in values:
            raise UsageError("unknown key data.own; write the fields of your own data set directly in [data]")
        if ":" not in name:
            if name not in part.names(DataSet):
                raise UsageError(f"data.name is {shown(name)}{did_you_mean(name, part.names(DataSet))}")
            return values
        shared = {key: value for key, value in values.items() if key in DataConfig.SHARED}
        return {**shared, "own": {key: value for key, value in values.items() if key not in shared}}


@dataclass(frozen=True)
class LatentConfig:
    """The autoencoder between images and latents."""

    path: str = field(
        "", path=True, doc="a folder or a hub id; empty: the one that made data.path (images: none)"
    )
    compare: str = field("", doc="a second decoder of the same latents, shown beside the first in the report")
    precision: Literal["fp32", "bf16", "fp16"] = field("fp32", doc="precision of decoding")
    tiled: bool = field(False, doc="decode in overlapping tiles, for large images in little memory")


@dataclass(frozen=True)
class OptimizerConfig:
    """The optimizer and its learning rate: a linear rise, then `decay`."""

    algorithm: Optimizer = field(AdamW(), doc="the optimizer")
    learning_rate: float = field(1e-4, ge=0, doc="peak learning rate")
    warmup_steps: int = field(0, ge=0, doc="steps over which the learning rate rises from 0")
    decay: Literal["constant", "cosine", "linear"] = field(
        "constant", doc="course of the learning rate after the warm-up; cosine and linear end at 0"
    )
    clip: float = field(0.0, ge=0, doc="largest norm of the gradient; 0: no clipping")
    base_width: int = field(
        0,
        ge=0,
        doc="the hidden_size that learning_rate was found at; at any other, rates and initial weights are "
        "scaled so that it stays the best one (muP, Yang et al. 2022, table 8); 0: no scaling",
        added=True,
    )


@dataclass(frozen=True)
class TrainConfig:
    """Length, batch, seed and precision of the training."""

    steps: int = field(400_000, ge=1, doc="optimizer steps")
    batch_size: int = field(256, ge=1, doc="images per step over all ranks")
    accumulate: int = field(1, ge=1, doc="micro-batches that each rank's share of the batch is split into")
    seed: int = field(
        0,
        doc="seed of the initial weights, the order of the data, the noise and the times: any 64-bit integer",
    )
    precision: Literal["fp32", "tf32", "bf16"] = field(
        "fp32", doc="precision of matrix products; weights and optimizer state stay in fp32"
    )
    log_every: int = field(100, ge=1, doc="steps between lines of the log")
    max_skips: int = field(5, ge=1, doc="non-finite steps in a row after which the run stops")
    spike: float = field(
        10.0, ge=0, doc="flag a loss this many standard deviations above the recent median; 0: never"
    )
    rollback: bool = field(False, doc="after a spike, go back to the last checkpoint; skip the batches since")


@dataclass(frozen=True)
class ModelTrainConfig(TrainConfig):
    """The same for a diffusion model, and what it starts from."""

    init: str = field(
        "",
        doc="the model whose weights a new run starts from: whatever scaledit sample accepts; empty: random "
        "weights",
        added=True,
    )
    freeze: tuple[str, ...] = field(
        (),
        doc='names of weights that are not trained, with wildcards: ["blocks.*.attn.*", "patch_embed.*"]',
        added=True,
    )


@dataclass(frozen=True)
class LoRAConfig:
    """Low-rank adaptation: y = W x + (alpha / rank) B A x, in which A and B are trained instead of W (Hu et
    al. 2021). It needs train.init."""

    rank: int = field(0, ge=0, doc="rank of B A; 0: no LoRA, all weights are trained")
    alpha: float = field(16.0, gt=0, doc="weight of B A, which is multiplied by alpha / rank")
    targets: tuple[str, ...] = field(
        ("blocks.*.attn.qkv", "blocks.*.attn.proj"),
        doc="names of the linear layers that are adapted, with wildcards",
    )
    also: tuple[str, ...] = field(
        ("label_embed.*",),
        doc="names of weights that are trained beside A and B, with wildcards; the class table by default, "
        "as new classes need their rows",
    )

    @property
    def scale(self) -> float:
        """alpha / rank."""
        return self.alpha / self.rank


@dataclass(frozen=True)
class EngineConfig:
    """How training is computed. Nothing here changes the result except for rounding."""

    parallel: Literal["ddp", "fsdp", "hybrid"] = field(
        "ddp",
        doc="several ranks: ddp copies the model; fsdp shards weights, gradients and optimizer state; hybrid "
        "shards within a machine and copies between machines",
    )
    recompute: Literal["none", "blocks", "selective"] = field(
        "none",
        doc="activations that the backward pass computes again; blocks: all inside each block; selective: "
        "all but the results of matrix products and attention",
    )
    compile: bool = field(False, doc="compile each block with torch.compile")
    timeout: float = field(
        600.0, ge=1, doc="seconds without progress after which the job ends and names what is stuck"
    )


@dataclass(frozen=True)
class EMAConfig:
    """The exponential moving average of the weights, which samples are made with."""

    decay: float = field(0.9999, ge=0, lt=1, doc="decay of the average per step")
    warmup: bool = field(False, doc="use min(decay, (1 + n) / (10 + n)) at step n, for short runs")
    power: tuple[float, ...] = field(
        (),
        doc="relative lengths of power-function averages kept beside it, such as [0.05, 0.1], from whose "
        "snapshots the average of any length is computed after training; 4 bytes per weight and length",
        added=True,
    )
    snapshots: int = field(
        32,
        ge=1,
        doc="snapshots of the power-function averages over train.steps, in the run folder",
        added=True,
    )
    snapshot_precision: Literal["fp16", "fp32"] = field(
        "fp16", doc="number format of the snapshots; training keeps fp32", added=True
    )


@dataclass(frozen=True)
class CheckpointConfig:
    """When checkpoints are written, and which are kept."""

    every: int = field(10_000, ge=1, doc="steps between checkpoints")
    keep: int = field(3, ge=2, doc="number of the newest checkpoints that are kept")
    keep_every: int = field(
        0, ge=0, doc="also keep the checkpoints of steps that this number divides; 0: none"
    )
    background: bool = field(True, doc="write checkpoints while training continues")


@dataclass(frozen=True)
class SampleConfig:
    """How the run's sample grids are made, and the defaults of `scaledit sample`."""

    every: int = field(10_000, ge=0, doc="steps between sample grids during training; 0: none")
    early: bool = field(
        True,
        doc="also sample after every/8, every/4 and every/2 steps, to show early how the run goes",
        added=True,
    )
    per_class: int = field(8, ge=1, doc="images per class")
    classes: int = field(10, ge=1, doc="number of classes that a grid shows, counted from the first")
    sampler: Sampler = field(DDPM(), doc="the sampler")
    guidance: tuple[Guidance, ...] = field((), doc="guidance around the denoiser, the first part innermost")
    seed: int = field(0, doc="seed of the noise: any 64-bit integer")
    average: float = field(
        0.0,
        ge=0,
        doc="relative length of the power-function average (ema.power) that the trained run is sampled with; "
        "0: the EMA",
        added=True,
    )

    def due(self, step: int, last: bool) -> bool:
        """Whether a grid follows this step of training. last: it is the last one."""
        first = [self.every // part for part in (8, 4, 2)] if self.early else []
        return self.every > 0 and (last or step % self.every == 0 or step in first)

    def grid_classes(self, num_classes: int) -> list[int]:
        """The classes of a sample grid, row after row: the first `classes`, `per_class` times each."""
        return [c for c in range(min(self.classes, num_classes)) for _ in range(self.per_class)]


@dataclass(frozen=True)
class EvaluateConfig:
    """How the run is evaluated, during training and by `scaledit evaluate RUN`, with [sample]'s sampler."""

    every: int = field(0, ge=0, doc="steps between evaluations during training; 0: none")
    reference: str = field(
        "",
        path=True,
        doc='a built-in set (digits, photos, emoji), ADM\'s .npz, or real images; "held-out": the images of '
        "this run's own data that training does not see",
    )
    extractor: str = field(
        "",
        doc="the network whose features are compared, unless the reference is a built-in set; empty: "
        "inception where its weights are found, else efficientnet-lite0 where it is installed, else "
        "efficientnet-lite0-random",
    )
    inception: str = field(
        "",
        path=True,
        doc="file with the Inception weights; empty: the places that the page on evaluation lists",
    )
    any_inception: bool = field(False, doc="accept Inception weights whose hash is unknown")
    dinov2: str = field("", path=True, doc="folder of a DINOv2 model, whose features replace Inception's")
    metrics: str | tuple[Any, ...] = field(
        "",
        doc="names separated by commas, or a list of names and of tables with a name and fields; empty: all "
        "but those on request",
    )
    precision: Literal["fp32", "adm_fp16"] = field(
        "fp32", doc="precision of the distances in precision and recall; adm_fp16: as ADM computes them"
    )
    num: int = field(50_000, ge=2, doc="number of images per seed")
    seeds: int = field(1, ge=1, doc="number of sample sets; their spread is reported")
    seed: int = field(1, doc="seed of the first sample set; the others use the seeds after it")
    labels: Literal["equal", "real", "uniform"] = field(
        "uniform", doc="classes sampled: equally often, as the reference has them, or drawn uniformly"
    )
    guidance: tuple[Guidance, ...] = field((), doc="guidance around the denoiser, the first part innermost")
    batch_size: int = field(125, ge=1, doc="images sampled at once")


@dataclass(frozen=True)
class LogConfig:
    """Where else the lines of log.jsonl are sent (scaledit.training.trackers)."""

    tensorboard: bool = field(False, doc="event files in the run folder's tensorboard/")
    wandb: str = field("", doc="a Weights & Biases project, or ENTITY/PROJECT; empty: none")
    wandb_mode: Literal["auto", "online", "offline"] = field(
        "auto", doc="auto: what WANDB_MODE says, else online; offline: files for wandb sync"
    )
