"""The sections of a run's config: a frozen dataclass each, a field each key, with its bounds and its meaning.

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
from scaledit.diffusion.timesteps import TimeDistribution, Uniform
from scaledit.errors import UsageError, did_you_mean, shown
from scaledit.values import field


@dataclass(frozen=True)
class DiffusionConfig:
    """Which parts of scaledit.diffusion the model is trained and sampled with."""

    schedule: Schedule = field(LinearBeta(), doc="how much signal and noise is left at a time")
    prediction: Parameterization = field(Epsilon(), doc="what the network's output means")
    objective: Objective = field(Hybrid(), doc="what is minimised")
    times: TimeDistribution = field(Uniform(), doc="which times are trained")

    @property
    def parameterization(self) -> Parameterization:
        """`prediction`, with a variance on further channels where the objective trains one: the one place
        that says whether a variance is learned."""
        if self.objective.learns_variance and not isinstance(self.prediction, LearnedRange):
            return LearnedRange(self.prediction)
        return self.prediction

    @property
    def learns_variance(self) -> bool:
        """Whether the network has twice the channels (model.learn_sigma).

        Raises UsageError where it would have them, and nothing trains them."""
        if isinstance(self.prediction, LearnedRange) and not self.objective.learns_variance:
            raise UsageError(
                f'diffusion.prediction="learned_range" has a variance, which '
                f'diffusion.objective="{self.objective.part_name()}" does not train; change one of them'
            )
        return self.objective.learns_variance


@dataclass(frozen=True)
class DataConfig:
    """name: a data set of scaledit.data.datasets: "digits" or "photos" (built in); or, with path, "images"
    (one folder per class, tar shards, Parquet, a .zip: read at image_size squared) or "latents" (what
    `scaledit encode` made, every byte of it checked before training where `verify`); or MODULE:CLASS of one's
    own.

    split: of images that are kept in several, "" for train, "all" for all as one set. image_key: which file
    of a WebDataset sample is the image ("jpg"), where there are several.

    workers: processes a rank that read ahead, 0 for none. The built-in sets lie in memory and need none.
    background: of images, what is seen where they are transparent: "white", "black", "#rrggbb", "drop" (the
    alpha channel is ignored, as it was before there was this key), or "": what the run began with, white for
    a new one. (data.background knows the words.)
    changed: what a resumed run does where the data is not what it was trained on so far: "refuse", or
    "accept", which goes on and says so in the log.
    own: the fields of a set of the user's own, which has none of the above but workers and changed. In a
    recipe and in config.json they stand beside those.
    """

    name: str = "digits"
    path: str = ""
    flip: bool = False
    image_size: int = field(0, ge=0)
    workers: int = field(2, ge=0)
    verify: bool = True
    background: str = ""
    split: str = ""
    image_key: str = ""
    changed: Literal["refuse", "accept"] = "refuse"
    own: Mapping[str, Any] = dataclasses.field(default_factory=dict, hash=False)

    SHARED: ClassVar[tuple[str, ...]] = ("name", "workers", "changed")
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
            raise UsageError("unknown key data.own; the fields of a set of your own stand in [data] itself")
        if ":" not in name:
            if name not in part.names(DataSet):
                raise UsageError(f"data.name is {shown(name)}{did_you_mean(name, part.names(DataSet))}")
            return values
        shared = {key: value for key, value in values.items() if key in DataConfig.SHARED}
        return {**shared, "own": {key: value for key, value in values.items() if key not in shared}}


@dataclass(frozen=True)
class LatentConfig:
    """Between pictures and what the model makes.

    path: the autoencoder: a folder, a hub id, or "" for the one that made data.path (and, for images, none).
    compare: another decoder of the same latents, which the report shows beside it. precision, tiled: of
    decoding.
    """

    path: str = ""
    compare: str = ""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    tiled: bool = False


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW. The learning rate rises linearly over warmup_steps, then follows `decay` to zero at
    train.steps ("constant" stays). clip: largest gradient norm, 0 for off."""

    learning_rate: float = field(1e-4, ge=0)
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = field(0.0, ge=0)
    warmup_steps: int = field(0, ge=0)
    decay: Literal["constant", "cosine", "linear"] = "constant"
    clip: float = field(0.0, ge=0)


@dataclass(frozen=True)
class TrainConfig:
    """batch_size is the global batch, whatever the number of ranks; each rank goes through its share in
    `accumulate` micro-batches.

    max_skips: non-finite steps in a row after which the run stops. spike: a loss that lies so many standard
    deviations above the median of the steps before is flagged with its samples, 0 for never; rollback: and
    then the run goes back to its last checkpoint and on with the batches after the spike.
    """

    steps: int = field(400_000, ge=1)
    batch_size: int = field(256, ge=1)
    accumulate: int = field(1, ge=1)
    seed: int = 0
    precision: Literal["fp32", "tf32", "bf16"] = "fp32"
    log_every: int = field(100, ge=1)
    max_skips: int = field(5, ge=1)
    spike: float = field(10.0, ge=0)
    rollback: bool = False


@dataclass(frozen=True)
class EngineConfig:
    """How training is computed, not what: nothing here changes the result but for rounding.

    parallel: what several ranks do: "ddp" copies the model, "fsdp" shards weights, gradients and optimizer
    over all of them, "hybrid" shards within a machine and copies between machines. recompute: activations
    that the backward pass makes anew: "none", those inside "blocks", or "selective": all but the results of
    products and attention. compile: each block by torch.compile. timeout: seconds without any progress after
    which the job is ended with the name of what is stuck.
    """

    parallel: Literal["ddp", "fsdp", "hybrid"] = "ddp"
    recompute: Literal["none", "blocks", "selective"] = "none"
    compile: bool = False
    timeout: float = field(600.0, ge=1)


@dataclass(frozen=True)
class EMAConfig:
    """warmup: the decay of step n is min(decay, (1 + n) / (10 + n)), for runs too short for `decay`."""

    decay: float = field(0.9999, ge=0, lt=1)
    warmup: bool = False


@dataclass(frozen=True)
class CheckpointConfig:
    """every: steps between checkpoints. keep: how many of the newest stay, at least 2, and keep_every: those
    of steps that it divides stay as well (0 for none). background: write while training goes on."""

    every: int = field(10_000, ge=1)
    keep: int = field(3, ge=2)
    keep_every: int = field(0, ge=0)
    background: bool = True


@dataclass(frozen=True)
class SampleConfig:
    """How the run's own pictures are made (and what `scaledit sample` does unless told otherwise)."""

    every: int = field(10_000, ge=0, doc="steps between sample grids in training, 0 for none")
    per_class: int = field(8, ge=1, doc="images of each class")
    classes: int = field(10, ge=1, doc="classes of a grid, the first ones")
    sampler: Sampler = field(DDPM(), doc="from noise to image")
    guidance: tuple[Guidance, ...] = field((), doc="around the denoiser, the first part innermost")
    seed: int = field(0, doc="of the noise")

    def grid_classes(self, num_classes: int) -> list[int]:
        """The classes of a sample grid, row after row: the first `classes`, `per_class` times each."""
        return [c for c in range(min(self.classes, num_classes)) for _ in range(self.per_class)]


@dataclass(frozen=True)
class EvaluateConfig:
    """How the run is judged: every so many steps in training (0 for never), and by `scaledit evaluate RUN`.

    reference: "digits", or a path: ADM's .npz, or real images. inception, dinov2: where the extractor's
    weights are (docs/evaluation.md). metrics: names separated by commas, empty for all. num: images a seed;
    seeds: how many of them, from `seed` on. labels: the rule of sampling.request. The sampler is [sample]'s,
    the guidance is its own.
    """

    every: int = field(0, ge=0)
    reference: str = ""
    inception: str = ""
    any_inception: bool = False
    dinov2: str = ""
    metrics: str = ""
    precision: Literal["fp32", "adm_fp16"] = "fp32"
    num: int = field(50_000, ge=2)
    seeds: int = field(1, ge=1)
    seed: int = 1
    labels: Literal["equal", "real", "uniform"] = "uniform"
    guidance: tuple[Guidance, ...] = field((), doc="around the denoiser, the first part innermost")
    batch_size: int = field(125, ge=1)


@dataclass(frozen=True)
class LogConfig:
    """Who else is told what log.jsonl is told (scaledit.training.trackers).

    tensorboard: event files in the run folder's tensorboard/. wandb: a Weights & Biases project, or
    ENTITY/PROJECT, "" for none. wandb_mode: "auto" is what WANDB_MODE says, else online, as everywhere with
    W&B; "offline" writes the run folder's wandb/ only, for `wandb sync`.
    """

    tensorboard: bool = False
    wandb: str = ""
    wandb_mode: Literal["auto", "online", "offline"] = "auto"
