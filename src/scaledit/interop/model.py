"""A model between two layouts: weights by our names, not read yet, and what is known of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from scaledit.config import DataConfig, DiffusionConfig, LatentConfig, RunConfig, SampleConfig
from scaledit.data.latents import AutoencoderInfo
from scaledit.diffusion import DDPM, ClassifierFree, Heun, LinearFlow, Simple, Velocity
from scaledit.errors import UsageError
from scaledit.interop.infer import name_of
from scaledit.interop.lazy_tensors import Lazy
from scaledit.models.config import LATENT_CHANNELS, LATENT_DOWNSAMPLING, DiTConfig

OFFICIAL_SCALE = 0.18215
"""Of the latents that the official DiT and SiT weights were trained on: Stable Diffusion's f8 autoencoder."""
UNNAMED = AutoencoderInfo("", "", "", OFFICIAL_SCALE, LATENT_CHANNELS, LATENT_DOWNSAMPLING)
"""The official latents, where nobody has said which copy of the autoencoder decodes them."""
PIXELS = (1, 3)
"""Channels of models that make pictures themselves, where nothing says what they make."""

EPSILON = DiffusionConfig()
"""The paper's, and every official DiT's."""
SIT = DiffusionConfig(LinearFlow(), Velocity(tells="alpha"), Simple())


@dataclass(frozen=True)
class Model:
    """config: its model fits the weights. autoencoder_info: the autoencoder of its latents, None for pixels.
    step: of its training, 0 where it is not known. source: where the weights came from first; empty for a run
    of ours. kind: "ema" or "model", where it is known. sha256: of the file they were read from, where it has
    been hashed. notes: what a person should know, a sentence each."""

    config: RunConfig
    weights: Mapping[str, Lazy]
    class_names: tuple[str, ...]
    autoencoder_info: AutoencoderInfo | None
    source: Mapping[str, Any]
    step: int = 0
    kind: str = "model"
    sha256: str = ""
    notes: tuple[str, ...] = ()

    @property
    def nbytes(self) -> int:
        return sum(lazy.nbytes for lazy in self.weights.values())

    def noting(self, *notes: str) -> Model:
        return dataclasses.replace(self, notes=(*self.notes, *notes))


def described(
    config: DiTConfig,
    weights: Mapping[str, Lazy],
    diffusion: DiffusionConfig,
    source: Mapping[str, Any],
    notes: tuple[str, ...] = (),
) -> Model:
    """A model that came without a config of ours: the paper's settings for what the weights do not say.

    Sampling as the official programs do it: 250 DDPM steps, or for a flow Heun's 50; guidance 4 on three
    channels, or none where there is no null label.
    """
    if diffusion.learns_variance and not config.learn_sigma:
        diffusion = dataclasses.replace(diffusion, objective=Simple())
    is_flow = isinstance(diffusion.prediction, Velocity)
    pixels = config.in_channels in PIXELS
    run = RunConfig(
        name=(name_of(config) or "dit").lower().replace("/", "-"),
        model=config,
        diffusion=diffusion,
        data=DataConfig(name="images" if pixels else "latents"),
        sample=SampleConfig(
            sampler=Heun(steps=50) if is_flow else DDPM(steps=250),
            guidance=(ClassifierFree(scale=4.0 if config.has_null_label else 1.0, channels=3),),
        ),
    )
    names = tuple(str(c) for c in range(config.num_classes))
    info = None if pixels else UNNAMED._replace(channels=config.in_channels)
    return Model(run, weights, names, info, source, notes=notes)


def decoded_by(model: Model, autoencoder: str) -> Model:
    """The model with an autoencoder recorded: a folder or a hub id (fetched if need be), or "pixels".

    Raises UsageError where it is not there or makes latents of other channels.
    """
    if autoencoder == "pixels":
        return dataclasses.replace(model, autoencoder_info=None)
    from scaledit.autoencoders import open_autoencoder
    from scaledit.autoencoders.decoder import autoencoder_info, check_same_latents
    from scaledit.autoencoders.kl import KLAutoencoder

    opened = open_autoencoder(autoencoder)
    found = autoencoder_info(opened)
    channels = model.config.model.in_channels
    if found.channels != channels:
        raise UsageError(f"{autoencoder} has latents of {found.channels} channels, this model {channels}")
    if model.autoencoder_info is not None and model.autoencoder_info.encoder_sha256:
        check_same_latents(opened, model.autoencoder_info)
        found = model.autoencoder_info
    config = dataclasses.replace(model.config, autoencoder=LatentConfig(path=autoencoder))
    notes = opened.notes if isinstance(opened, KLAutoencoder) else ()
    return dataclasses.replace(model, config=config, autoencoder_info=found).noting(*notes)
