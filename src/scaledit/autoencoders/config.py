"""The config of an autoencoder's training. Like scaledit.config, imports no torch.

recipe with trains = "autoencoder"  +  section.key=value overrides  ->  AutoencoderRun  ->  config.json
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

from scaledit.config import (
    CheckpointConfig,
    Config,
    DataConfig,
    EngineConfig,
    LogConfig,
    OptimizerConfig,
    TrainConfig,
    check,
)
from scaledit.config.tables import Table
from scaledit.errors import UsageError
from scaledit.part import Allowed
from scaledit.values import field as bounded

HOLDOUT = 0.1
"""data.holdout of images in files, unless it is set: without held-out images, nothing would show that an
autoencoder only remembers its images."""


@dataclass(frozen=True)
class AutoencoderConfig:
    """The shape of an AutoencoderKL."""

    channels: int = bounded(4, ge=1, doc="channels of the latents")
    widths: tuple[int, ...] = bounded(
        (32, 64, 128),
        doc="channels per resolution; each but the last halves it: three widths make an f4, four an f8",
    )
    layers: int = bounded(1, ge=1, doc="residual blocks per resolution; the decoder has one more")
    groups: int = bounded(8, ge=1, doc="groups of the group normalization; divides every width")
    attention: bool = bounded(
        False, doc="whether there is an attention layer in the middle, as in latent diffusion"
    )


@dataclass(frozen=True)
class LossConfig:
    """The weights of the terms in scaledit.autoencoders.losses."""

    kl_weight: float = bounded(
        1e-6, ge=0, doc="weight of the KL divergence of the latents from a standard normal"
    )
    gradient_weight: float = bounded(
        0.0, ge=0, doc="weight of the error in differences between neighboring pixels"
    )
    perceptual_weight: float = bounded(
        0.0, ge=0, doc='weight of the distance of EfficientNet-Lite0\'s features; needs "scaledit[features]"'
    )


@dataclass(frozen=True)
class AutoencoderTrainConfig(TrainConfig):
    """As for a diffusion model, and what the autoencoder starts from."""

    steps: int = bounded(10_000, ge=1, doc="optimizer steps")
    batch_size: int = bounded(16, ge=1, doc="images per step over all ranks")
    crop: int = bounded(0, ge=0, doc="side in pixels of the random crop of each image; 0: full images")
    init: str = bounded(
        "",
        path=True,
        doc="a folder or hub id of an autoencoder with latents of the same shape to start from",
    )
    decoder_only: bool = bounded(
        False,
        doc="train only the decoder: the encoder and the scale of init, and so its latents, stay as they are",
    )


@dataclass(frozen=True)
class ReconstructionConfig:
    """The evaluation of the run on held-out images; on training images, labeled so, if none are held out."""

    every: int = bounded(0, ge=0, doc="steps between evaluations; 0: only at the end")
    num: int = bounded(96, ge=1, doc="number of held-out images, evenly spaced in their list")


@dataclass(frozen=True)
class AutoencoderRun(Config):
    """The config of an autoencoder's training."""

    TRAINS: ClassVar[str] = "autoencoder"

    name: str
    model: AutoencoderConfig = field(default_factory=AutoencoderConfig)
    data: DataConfig = field(default_factory=DataConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    train: AutoencoderTrainConfig = field(default_factory=AutoencoderTrainConfig)  # pyright: ignore[reportIncompatibleVariableOverride]
    engine: EngineConfig = field(default_factory=EngineConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    evaluate: ReconstructionConfig = field(default_factory=ReconstructionConfig)
    log: LogConfig = field(default_factory=LogConfig)

    @classmethod
    def of(cls, table: Table, name: object, allowed: Allowed) -> AutoencoderRun:
        """As for all configs; data.holdout of images in files is HOLDOUT unless it is set."""
        data = table.get("data", {})
        if data.get("name") == "images":
            table = {**table, "data": {"holdout": HOLDOUT, **data}}
        return super().of(table, name, allowed)

    def to_json(self) -> dict[str, Any]:
        """As for all configs; data.holdout of images in files is always there, since its default is not 0."""
        value = super().to_json()
        if self.data.name == "images":
            value["data"]["holdout"] = self.data.holdout
        return value

    @property
    def downsampling(self) -> int:
        """f: pixels per latent along one side."""
        return 2 ** (len(self.model.widths) - 1)

    def __post_init__(self) -> None:
        check(self)
        widths, groups = self.model.widths, self.model.groups
        if not widths or any(width < 1 or width % groups for width in widths):
            raise UsageError(f"model.widths must be multiples of model.groups {groups}, got {list(widths)}")
        if self.train.decoder_only and not self.train.init:
            raise UsageError(
                "train.decoder_only keeps the encoder of an existing autoencoder; set train.init=FOLDER"
            )
        if self.optimizer.algorithm.splits_matrices:
            raise UsageError(
                f"optimizer.algorithm {self.optimizer.algorithm.part_name()} updates the matrices of a "
                'transformer\'s blocks, and an autoencoder has none; use optimizer.algorithm="adamw"'
            )
        if self.optimizer.base_width:
            raise UsageError(
                "optimizer.base_width is a hidden_size, and an autoencoder has none; leave it out"
            )
        if self.data.name == "latents":
            raise UsageError(
                'an autoencoder is trained on images, not on latents; use data.name="photos", for instance'
            )
