"""Builds what a RunConfig describes.

RunConfig -> network, denoiser, guided denoiser, time distribution, autoencoder, decoder, data set
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
from scaledit.config import (
    DataConfig,
    DiffusionConfig,
    LatentConfig,
    RunConfig,
    check_guidance,
    trained,
    updates,
)
from scaledit.data.datasets import DataSet
from scaledit.data.latents import Latents
from scaledit.data.sets import TrainingSet
from scaledit.diffusion.terms import Term, logged_names
from scaledit.errors import UsageError, listed
from scaledit.models import flops, lora
from scaledit.models.config import DiTConfig
from scaledit.models.dit import DiT
from scaledit.values import hints

BYTES_OF_A_WEIGHT = 4


def network(config: DiTConfig, seed: int) -> DiT:
    """A freshly initialized DiT. torch's global generator is not changed. Raises UsageError, before anything
    is built, if the weights alone exceed the machine's memory."""
    check_weights(config)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return DiT(config)


def trainable(config: RunConfig) -> DiT:
    """The network of a run, freshly initialized (as optimizer.base_width says): with the low-rank terms of
    [lora], and with gradients for the weights that the run trains. Raises UsageError as
    `config.trained.names` does."""
    net, names = network(config.model, config.train.seed), trained.names(config)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(_derived(config.train.seed, b"lora"))
        if config.lora.rank:
            lora.attach(net, trained.adapted(config), config.lora.rank, config.lora.scale)
    with torch.no_grad():
        for name, factor in updates.initial_scales(config).items():
            net.get_parameter(name).mul_(factor)
    for name, parameter in net.named_parameters():
        parameter.requires_grad_(name in names)
    return net


def _derived(seed: int, stream: bytes) -> int:
    """Another seed, so that a stream does not repeat the numbers that initialize the network."""
    return (seed ^ zlib.crc32(stream)) & (1 << 64) - 1


def check_weights(config: DiTConfig) -> None:
    """Raises UsageError if a DiT's weights and position table, in float32, exceed this machine's memory.
    (Training takes several times as much: see `scaledit plan`.)"""
    params = flops.count(config).params
    machine.check_memory(
        BYTES_OF_A_WEIGHT * (params + config.tokens * config.hidden_size),
        f"a model of {params:,} parameters for {config.tokens:,} tokens (model.depth {config.depth:,}, "
        f"model.hidden_size {config.hidden_size:,}, model.num_classes {config.num_classes:,})",
        "make it smaller",
    )


def denoiser(config: DiffusionConfig, net: diffusion.Network) -> diffusion.NetDenoiser:
    """The denoiser of a network: its output interpreted with the schedule and parameterization of
    training."""
    return diffusion.NetDenoiser(net, config.schedule, config.parameterization)


def objective_modules(
    objective: diffusion.Objective, config: DiTConfig, seed: int, device: torch.device
) -> torch.nn.Module | None:
    """The trainable modules of an objective, initialized from the seed; None if it has none. torch's global
    generator is not changed. Raises UsageError as `_trainable` does."""
    return _trainable(objective, config, _derived(seed, b"objective"), device)


def term_modules(
    terms: Sequence[Term], config: DiTConfig, seed: int, device: torch.device
) -> dict[str, torch.nn.Module]:
    """The trainable modules of the terms that have some, likewise, by the terms' names in the log."""
    built = {
        name: _trainable(term, config, _derived(seed, f"term.{name}".encode()), device)
        for name, term in zip(logged_names(terms), terms, strict=True)
    }
    return {name: module for name, module in built.items() if module is not None}


def _trainable(
    of: diffusion.Objective | Term, config: DiTConfig, seed: int, device: torch.device
) -> torch.nn.Module | None:
    """Raises UsageError for modules that are not functions of their inputs: a resumed run would not repeat
    the random numbers of dropout, and running statistics depend on how a batch is split over ranks."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        built = of.modules(config)
    if built is None:
        return None
    for name, module in built.named_modules():
        if isinstance(module, _DropoutNd) and module.p > 0:
            raise UsageError(
                f"{of.part_name()}: {name or 'its module'} is a dropout, whose random numbers cannot "
                f"be repeated when a run resumes; declare the {of.KIND}'s own draws instead"
            )
        if isinstance(module, _NormBase) and module.track_running_stats:
            raise UsageError(
                f"{of.part_name()}: {name or 'its module'} keeps running statistics, which depend on "
                "how a batch is split; use LayerNorm or GroupNorm, or track_running_stats=False"
            )
    return built.to(device).train()


def frozen(terms: Sequence[Term], config: DiTConfig, device: torch.device) -> dict[str, Any]:
    """What the terms read and nothing trains, by their names in the log. Raises UsageError or RunError if
    weights are missing or wrong."""
    return {name: term.frozen(config, device) for name, term in zip(logged_names(terms), terms, strict=True)}


def check_terms(config: RunConfig, dataset: TrainingSet) -> None:
    """Raises UsageError if a term of the loss needs a file or images that are missing, or if no term trains
    the early head of a model that is trained as a whole."""
    terms = config.diffusion.terms
    for term in terms:
        if term.images and not gives_images(dataset):
            raise UsageError(
                f"diffusion.terms: {term.part_name()} needs images, but data.name={config.data.name} gives "
                "latents only; train on the images themselves (data.name=images, with autoencoder.path to "
                "encode them as they are read), or leave the term out"
            )
        term.ready()
    partial = config.lora.rank or config.train.freeze
    if config.model.early_output and not partial and not any(term.early for term in terms):
        raise UsageError(
            "model.early_output adds a second final layer, which nothing trains; add diffusion.terms.early "
            "(diffusion.terms=early), or set model.early_output=0"
        )


def gives_images(dataset: TrainingSet) -> bool:
    """Whether training sees pixels: the set holds images, or encodes them as they are read."""
    return not isinstance(dataset, Latents) and (
        isinstance(dataset, EncodedImages) or dataset.shape[0] in PIXEL_CHANNELS
    )


PIXEL_CHANNELS = (1, 3)
"""Gray and color."""


def guided(inside: diffusion.Denoiser, guidance: Sequence[diffusion.Guidance]) -> diffusion.Denoiser:
    """`inside` with guidance; guidance that changes nothing costs nothing. Raises UsageError if `inside` is a
    DiT that it does not fit."""
    if isinstance(inside, diffusion.NetDenoiser) and isinstance(inside.net, DiT):
        check_guidance(inside.net.config, inside.schedule, guidance)
    return diffusion.guided(inside, guidance)


def times(config: DiffusionConfig, shape: Sequence[int]) -> diffusion.TimeDistribution:
    """A fresh time distribution for inputs (C, H, W), whose state is its initial one."""
    return dataclasses.replace(config.times).chosen_for(shape)  # pyright: ignore[reportArgumentType]


def sampler_json(
    sampler: diffusion.Sampler, schedule: diffusion.Schedule, shape: Sequence[int]
) -> dict[str, Any]:
    """A sampler with all of its fields, for protocols, with the times that it chooses on this schedule for
    inputs (C, H, W)."""
    chosen = sampler.times.chosen(schedule).chosen_for(shape)
    return dataclasses.replace(sampler, times=chosen).to_json()


def data_part(config: DataConfig, allowed: part.Allowed = part.YOURS) -> DataSet:
    """The data set that [data] names.

    allowed: which modules may be imported for a set defined by the user. Raises UsageError for an unknown
    name or field, and for a key in `CHOICES` that the set does not have.
    """
    if ":" in config.name:
        return part.build(DataSet, {"name": config.name, **config.own}, "data", allowed)
    takes = hints(part.find(DataSet, config.name))
    for key in CHOICES:
        if getattr(config, key) != getattr(DataConfig, key) and key not in takes:
            raise UsageError(
                f'data.{key} is a key for {CHOICES[key]}, but data.name is "{config.name}"; leave it out'
            )
    return part.build(DataSet, {"name": config.name, **{key: getattr(config, key) for key in takes}}, "data")


CHOICES = {
    "split": "images in files",
    "image_key": "images in files",
    "holdout": "images in files",
    "classes": "emoji",
}
"""Keys of [data] that are refused, not ignored, if the set does not have them."""


def dataset(config: DataConfig, autoencoder: Autoencoder | None = None) -> TrainingSet:
    """The training split. With an autoencoder, images are encoded as they are read."""
    data = data_part(config)
    images = data.open()
    return images if autoencoder is None or data.encoded else EncodedImages(images, autoencoder)


def autoencoder(config: LatentConfig, data: DataConfig, device: torch.device) -> Autoencoder | None:
    """The autoencoder that encodes images as they are read; None for latents and for models of pixels."""
    if config.path in ("", "pixels") or data_part(data).encoded:
        return None
    return open_autoencoder(config.path, device=str(device), precision=config.precision, tiled=config.tiled)


def decoder(config: LatentConfig, dataset: TrainingSet, device: torch.device) -> Decoder | None:
    """The decoder of the model's latents; None for models of pixels."""
    if isinstance(dataset, EncodedImages):
        info = autoencoder_info(dataset.autoencoder)
    elif isinstance(dataset, Latents):
        info = dataset.index.autoencoder
    else:
        return None
    return Decoder(config.path or info.name, info, str(device), config.precision, config.tiled)


def held_out(config: DataConfig) -> TrainingSet:
    """The images of a set that training does not see. Raises NothingHeldOut if the set has none."""
    return data_part(config).held_out()


def device(name: str) -> torch.device:
    """The device called `name`; "auto" is CUDA, else MPS, else the CPU. Raises UsageError if it is not
    available."""
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        known = ("cpu", "cuda", "mps")
        if name.partition(":")[0] not in known:
            raise UsageError(f"unknown device {name!r}; use auto, {listed(known, 'or')}") from None
        reason = str(error).splitlines()[0]
        raise UsageError(f"device {name!r} is not available here ({reason}); use --device auto") from None
    return device
