"""From a RunConfig to what it describes beyond its parts, with torch.

RunConfig -> network, denoiser, guided denoiser, times that learn, autoencoder, decoder, data
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch

from scaledit import diffusion, machine
from scaledit.autoencoders import Autoencoder, open_autoencoder
from scaledit.autoencoders.decoder import Decoder, made_by
from scaledit.autoencoders.encoded import EncodedImages
from scaledit.config import DataConfig, DiffusionConfig, LatentConfig, check_guidance
from scaledit.data.latents import Latents
from scaledit.data.photos import photos
from scaledit.data.sets import Images, TrainingSet, digits
from scaledit.errors import UsageError
from scaledit.models import flops
from scaledit.models.config import DiTConfig
from scaledit.models.dit import DiT

BYTES_OF_A_WEIGHT = 4


def network(config: DiTConfig, seed: int) -> DiT:
    """A freshly initialised DiT; torch's global generator is left as it was. Raises UsageError, before
    anything is built, where its weights alone are more than the machine's memory."""
    check_weights(config)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return DiT(config)


def check_weights(config: DiTConfig) -> None:
    """Raises UsageError where a DiT's weights and its position table, in float32, are more than this
    machine's memory. (Training takes several times as much: `scaledit plan` says how much.)"""
    params = flops.count(config).params
    machine.check_memory(
        BYTES_OF_A_WEIGHT * (params + config.tokens * config.hidden_size),
        f"a model of {params:,} parameters for {config.tokens:,} tokens (model.depth {config.depth:,}, "
        f"model.hidden_size {config.hidden_size:,}, model.num_classes {config.num_classes:,})",
        "make it smaller",
    )


def denoiser(config: DiffusionConfig, net: diffusion.Network) -> diffusion.NetDenoiser:
    """The network read the way it is trained."""
    return diffusion.NetDenoiser(net, config.schedule, config.parameterization)


def guided(inside: diffusion.Denoiser, guidance: Sequence[diffusion.Guidance]) -> diffusion.Denoiser:
    """`inside` with guidance, which costs nothing where it changes nothing. Raises UsageError where it is a
    DiT whose null label was never trained."""
    if isinstance(inside, diffusion.NetDenoiser) and isinstance(inside.net, DiT):
        check_guidance(inside.net.config, guidance)
    return diffusion.guided(inside, guidance)


def times(config: DiffusionConfig) -> diffusion.TimeDistribution:
    """A distribution of its own, that has learned nothing yet."""
    return dataclasses.replace(config.times)  # pyright: ignore[reportArgumentType]


def said(sampler: diffusion.Sampler, schedule: diffusion.Schedule) -> dict[str, Any]:
    """A sampler whole, for protocols, with the times that it chooses on this schedule."""
    return dataclasses.replace(sampler, times=sampler.times.chosen(schedule)).to_json()


def dataset(config: DataConfig, autoencoder: Autoencoder | None = None) -> TrainingSet:
    """The training split; images are encoded as they are read where there is an autoencoder."""
    if config.name != "images" and (config.split or config.image_key):
        key = "split" if config.split else "image_key"
        raise UsageError(f'data.{key} is of images in files, and data.name is "{config.name}"; leave it out')
    if config.name == "latents":
        return _latents(config)
    images = _images(config)
    return images if autoencoder is None else EncodedImages(images, autoencoder)


def _images(config: DataConfig) -> TrainingSet:
    if config.name == "digits":
        return digits(flip=config.flip)
    if config.name == "photos":
        return photos(flip=config.flip)
    if not config.path:
        raise UsageError("this recipe trains on images; say where they are with data.path=PATH")
    if not config.image_size:
        raise UsageError("this recipe trains on images; say how large they are with data.image_size=256")
    from scaledit.data.files import ImageFiles
    from scaledit.data.sources import open_source

    source = open_source(config.path, config.split, config.image_key)
    return ImageFiles(source, config.image_size, config.flip, behind=config.background)


def _latents(config: DataConfig) -> TrainingSet:
    if not config.path:
        raise UsageError(
            "this recipe trains on encoded images; say where they are with data.path=FOLDER "
            "(scaledit encode makes such a folder)"
        )
    return Latents.open(config.path, flip=config.flip)


def autoencoder(config: LatentConfig, data: DataConfig, device: torch.device) -> Autoencoder | None:
    """What encodes images while they are read; None for latents, and where the model makes pixels."""
    if data.name == "latents" or config.path in ("", "pixels"):
        return None
    return open_autoencoder(config.path, device=str(device), precision=config.precision, tiled=config.tiled)


def decoder(config: LatentConfig, dataset: TrainingSet, device: torch.device) -> Decoder | None:
    """What turns the model's latents into pictures; None where they are pixels already."""
    if isinstance(dataset, EncodedImages):
        maker = made_by(dataset.autoencoder)
    elif isinstance(dataset, Latents):
        maker = dataset.index.autoencoder
    else:
        return None
    return Decoder(config.path or maker.name, maker, str(device), config.precision, config.tiled)


def held_out(config: DataConfig) -> Images:
    """The images of a built-in set that training does not see. Raises UsageError for other data."""
    if config.name == "digits":
        return digits(held_out=True)
    if config.name == "photos":
        return photos(held_out=True)
    raise UsageError(f'data.name="{config.name}" holds no images out')


def device(name: str) -> torch.device:
    """`auto` is CUDA, else MPS, else the CPU."""
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        chosen = torch.device(name)
        torch.empty(1, device=chosen)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise UsageError(f"device {name!r} is not available here ({reason}); use --device auto") from None
    return chosen
