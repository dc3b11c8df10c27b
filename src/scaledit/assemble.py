"""From a RunConfig to what it describes beyond its parts, with torch.

RunConfig -> network, denoiser, guided denoiser, times that learn, autoencoder, decoder, data
"""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Sequence
from typing import Any

import torch
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.dropout import _DropoutNd

from scaledit import diffusion, machine, part
from scaledit.autoencoders import Autoencoder, open_autoencoder
from scaledit.autoencoders.decoder import Decoder, autoencoder_info
from scaledit.autoencoders.encoded import EncodedImages
from scaledit.config import DataConfig, DiffusionConfig, LatentConfig, check_guidance
from scaledit.data.datasets import DataSet
from scaledit.data.latents import Latents
from scaledit.data.sets import Images, TrainingSet
from scaledit.errors import UsageError
from scaledit.models import flops
from scaledit.models.config import DiTConfig
from scaledit.models.dit import DiT
from scaledit.values import hints

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


def objective_modules(
    objective: diffusion.Objective, config: DiTConfig, seed: int, device: torch.device
) -> torch.nn.Module | None:
    """The modules of an objective's own, initialised by the seed; torch's global generator is left as it was.

    Raises UsageError for modules that are no functions of their inputs: dropout draws numbers that a resumed
    run would not draw again, and running statistics depend on how a batch is split over ranks.
    """
    with torch.random.fork_rng(devices=[]):
        # Other numbers than the network's.
        torch.manual_seed((seed ^ zlib.crc32(b"objective")) & (1 << 64) - 1)
        built = objective.modules(config)
    if built is None:
        return None
    for name, module in built.named_modules():
        if isinstance(module, _DropoutNd) and module.p > 0:
            raise UsageError(
                f"{objective.part_name()}: {name or 'its module'} is a dropout, whose random numbers cannot "
                "be drawn again when a run resumes; declare draws of the objective's own instead"
            )
        if isinstance(module, _NormBase) and module.track_running_stats:
            raise UsageError(
                f"{objective.part_name()}: {name or 'its module'} keeps running statistics, which depend on "
                "how a batch is split; use LayerNorm or GroupNorm, or track_running_stats=False"
            )
    return built.to(device).train()


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


def data_part(config: DataConfig, allowed: part.Allowed = part.YOURS) -> DataSet:
    """The data set that [data] names, with those of its fields that [data] has.

    allowed: which modules of a user's own may be imported. Raises UsageError for an unknown name or field,
    and for a key that says which of a set's images are read where the set has no such choice.
    """
    if ":" in config.name:
        return part.build(DataSet, {"name": config.name, **config.own}, "data", allowed)
    takes = hints(part.find(DataSet, config.name))
    for key in CHOICES:
        if getattr(config, key) and key not in takes:
            raise UsageError(
                f'data.{key} is of images in files, and data.name is "{config.name}"; leave it out'
            )
    return part.build(DataSet, {"name": config.name, **{key: getattr(config, key) for key in takes}}, "data")


CHOICES = ("split", "image_key")
"""Keys of [data] that would be missed without a word by a set that has none of them."""


def dataset(config: DataConfig, autoencoder: Autoencoder | None = None) -> TrainingSet:
    """The training split; images are encoded as they are read where there is an autoencoder."""
    chosen = data_part(config)
    images = chosen.open()
    return images if autoencoder is None or chosen.encoded else EncodedImages(images, autoencoder)


def autoencoder(config: LatentConfig, data: DataConfig, device: torch.device) -> Autoencoder | None:
    """What encodes images while they are read; None for latents, and where the model makes pixels."""
    if config.path in ("", "pixels") or data_part(data).encoded:
        return None
    return open_autoencoder(config.path, device=str(device), precision=config.precision, tiled=config.tiled)


def decoder(config: LatentConfig, dataset: TrainingSet, device: torch.device) -> Decoder | None:
    """What turns the model's latents into pictures; None where they are pixels already."""
    if isinstance(dataset, EncodedImages):
        maker = autoencoder_info(dataset.autoencoder)
    elif isinstance(dataset, Latents):
        maker = dataset.index.autoencoder
    else:
        return None
    return Decoder(config.path or maker.name, maker, str(device), config.precision, config.tiled)


def held_out(config: DataConfig) -> Images:
    """The images of a set that training does not see. Raises UsageError where it holds none out."""
    return data_part(config).held_out()


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
