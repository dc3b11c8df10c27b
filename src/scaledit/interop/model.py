"""A model between two layouts: weights under scaledit's names, not read yet, and their description."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from scaledit.config import DataConfig, DiffusionConfig, LatentConfig, RunConfig, SampleConfig
from scaledit.data import imagenet
from scaledit.data.latents import AutoencoderInfo
from scaledit.diffusion import DDPM, ClassifierFree, Heun, LinearFlow, Simple, Velocity
from scaledit.errors import UsageError, counted
from scaledit.interop.averaged import Averaged
from scaledit.interop.infer import name_of
from scaledit.interop.lazy_tensors import Lazy
from scaledit.interop.official import check_shapes
from scaledit.models.config import IMAGENET_CLASSES, LATENT_CHANNELS, LATENT_DOWNSAMPLING, DiTConfig
from scaledit.models.dit import DiT

OFFICIAL_SCALE = 0.18215
"""Latent scale of the official DiT and SiT weights: that of Stable Diffusion's f8 autoencoder."""
UNNAMED = AutoencoderInfo("", "", "", OFFICIAL_SCALE, LATENT_CHANNELS, LATENT_DOWNSAMPLING)
"""The official latents, when it is not recorded which copy of the autoencoder decodes them."""
PIXELS = (1, 3)
"""Numbers of channels that are read as pixels when nothing says what the model makes."""

EPSILON = DiffusionConfig()
"""The paper's, and that of every official DiT."""
SIT = DiffusionConfig(LinearFlow(), Velocity(tells="alpha"), Simple())


@dataclass(frozen=True)
class Model:
    """config: the run's, whose model section fits the weights. autoencoder_info: the autoencoder of its
    latents, None for pixels. source: where the weights came from originally, empty for scaledit's own runs.
    step: of training, 0 if unknown. kind: "ema", "model" or the name of another part. sha256: of the file
    they were read from, "" if it was not hashed. notes: sentences that the user should see. breaks: the steps
    from which it was trained with other settings, as a checkpoint's manifest has them. factors: of LoRA, by
    their names in a checkpoint; they are merged into the weights. averaged: what the weights average, if they
    are a power-function average."""

    config: RunConfig
    weights: Mapping[str, Lazy]
    class_names: tuple[str, ...]
    autoencoder_info: AutoencoderInfo | None
    source: Mapping[str, Any]
    step: int = 0
    kind: str = "model"
    sha256: str = ""
    notes: tuple[str, ...] = ()
    breaks: tuple[Mapping[str, Any], ...] = ()
    factors: Mapping[str, Lazy] = field(default_factory=dict)
    averaged: Averaged | None = None

    @property
    def has_class_names(self) -> bool:
        """Whether the names of its classes are known. In weights that scaledit did not train (step 0), other
        than ImageNet's, classes have numbers only."""
        return self.step > 0 or self.class_names != tuple(map(str, range(len(self.class_names))))

    @property
    def nbytes(self) -> int:
        return sum(lazy.nbytes for lazy in self.weights.values())

    def noting(self, *notes: str) -> Model:
        return dataclasses.replace(self, notes=(*self.notes, *notes))

    def state(self) -> dict[str, Any]:
        """The JSON values that exported folders record beside the config."""
        return {
            "class_names": self.class_names,
            "autoencoder_info": None if self.autoencoder_info is None else self.autoencoder_info._asdict(),
            "kind": self.kind,
            "source": dict(self.source),
            **({"breaks": list(self.breaks)} if self.breaks else {}),
        }

    def network(self) -> DiT:
        """A DiT with these weights, on the CPU. Raises UsageError if they do not fit the config."""
        check_shapes({key: lazy.shape for key, lazy in self.weights.items()}, self.config.model)
        net = DiT(self.config.model)
        net.load_state_dict({key: lazy.read() for key, lazy in self.weights.items()})
        return net


def from_weights(
    config: DiTConfig,
    weights: Mapping[str, Lazy],
    diffusion: DiffusionConfig,
    source: Mapping[str, Any],
    notes: tuple[str, ...] = (),
) -> Model:
    """A model without a config of scaledit, with the paper's settings for what the weights do not show.

    It is sampled as the official programs do: 250 DDPM steps, or 50 Heun steps for a flow; guidance 4 on
    three channels, or none without a null label. A model with 1,000 classes has the names of ImageNet's.
    """
    if diffusion.learns_variance and not config.learn_sigma:
        diffusion = dataclasses.replace(diffusion, objective=Simple())
    is_flow = isinstance(diffusion.prediction, Velocity)
    is_pixels = config.in_channels in PIXELS
    run = RunConfig(
        name=(name_of(config) or "dit").lower().replace("/", "-"),
        model=config,
        diffusion=diffusion,
        data=DataConfig(name="images" if is_pixels else "latents"),
        sample=SampleConfig(
            sampler=Heun(steps=50) if is_flow else DDPM(steps=250),
            guidance=(ClassifierFree(scale=4.0 if config.has_null_label else 1.0, channels=3),),
        ),
    )
    is_imagenet = config.num_classes == IMAGENET_CLASSES
    names = imagenet.names() if is_imagenet else tuple(str(c) for c in range(config.num_classes))
    info = None if is_pixels else UNNAMED._replace(channels=config.in_channels)
    return Model(run, weights, names, info, source, notes=notes)


def decoded_by(model: Model, autoencoder: str) -> Model:
    """The model with its autoencoder recorded: a folder, a Hub id (which is fetched), or "pixels" for none.

    Raises UsageError if the autoencoder is missing or its latents have another number of channels.
    """
    if autoencoder == "pixels":
        return dataclasses.replace(model, autoencoder_info=None)
    from scaledit.autoencoders import open_autoencoder
    from scaledit.autoencoders.decoder import autoencoder_info, check_same_latents
    from scaledit.autoencoders.kl import KLAutoencoder

    opened = open_autoencoder(autoencoder)
    info = autoencoder_info(opened)
    channels = model.config.model.in_channels
    if info.channels != channels:
        raise UsageError(
            f"{autoencoder} has latents of {counted(info.channels, 'channel')}, but this model has {channels}"
        )
    if model.autoencoder_info is not None and model.autoencoder_info.encoder_sha256:
        check_same_latents(opened, model.autoencoder_info)
        info = model.autoencoder_info
    config = dataclasses.replace(model.config, autoencoder=LatentConfig(path=autoencoder))
    notes = opened.notes if isinstance(opened, KLAutoencoder) else ()
    return dataclasses.replace(model, config=config, autoencoder_info=info).noting(*notes)
