"""The state of an autoencoder in training, and how its loss is computed.

    x --encoder--> moments --mean + exp(logvar / 2) eps--> z --decoder--> xhat,  theta <- AdamW(theta, grad L)

Flips and eps are keyed by (seed, position in the stream), so no generator has to be saved.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from scaledit import assemble
from scaledit.autoencoders import kl
from scaledit.autoencoders.config import AutoencoderConfig, AutoencoderRun
from scaledit.autoencoders.losses import FeatureMaps, losses
from scaledit.config import EngineConfig
from scaledit.config.recipes import toml
from scaledit.data.loader import PATIENCE, Loader
from scaledit.data.order import samples_at
from scaledit.data.posterior import sample
from scaledit.data.sets import TrainingSet
from scaledit.diffusion.noise import Stream, generator, normal
from scaledit.errors import UsageError, counted
from scaledit.evaluation import efficientnet, reconstruction
from scaledit.training.learner import Learner, LossTerms, autocast, make_optimizer
from scaledit.training.parallel import Parallel
from scaledit.training.ranks import Ranks

DECODER_PARTS = ("decoder.", "post_quant_conv.")


def build(config: AutoencoderConfig, side: int, seed: int) -> Any:
    """A freshly initialized AutoencoderKL for images of side x side; torch's generator keeps its state."""
    AutoencoderKL = kl.diffusers_class()
    levels = len(config.widths)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return AutoencoderKL(
            latent_channels=config.channels,
            block_out_channels=config.widths,
            down_block_types=("DownEncoderBlock2D",) * levels,
            up_block_types=("UpDecoderBlock2D",) * levels,
            layers_per_block=config.layers,
            norm_num_groups=config.groups,
            mid_block_add_attention=config.attention,
            sample_size=side,
        )


def architecture(net: Any) -> AutoencoderConfig:
    """The [model] section that describes an AutoencoderKL."""
    config = net.config
    return AutoencoderConfig(
        channels=config.latent_channels,
        widths=tuple(config.block_out_channels),
        layers=config.layers_per_block,
        groups=config.norm_num_groups,
        attention=config.get("mid_block_add_attention", True),
    )


@dataclass(frozen=True)
class Start:
    """The autoencoder that training starts from: `train.init`. config: the [model] that describes it."""

    name: str
    net: Any
    config: AutoencoderConfig
    scale: float


def opened(config: AutoencoderRun) -> Start | None:
    """The autoencoder that `train.init` names, or None if it names none.

    The shape of its latents must be that of [model]: the model of these latents depends on it. The inside may
    differ, since weights have only one shape. Raises UsageError if the latents differ, and as
    `KLAutoencoder.open` does.
    """
    if not config.train.init:
        return None
    start = kl.KLAutoencoder.open(config.train.init)
    model, asked = architecture(start.net), config.model
    if (model.channels, len(model.widths)) != (asked.channels, len(asked.widths)):
        keys = ("channels", "widths", "layers", "groups", "attention")
        differing = [key for key in keys if getattr(model, key) != getattr(asked, key)]
        overrides = " ".join(f"model.{key}={toml(getattr(model, key)).replace(' ', '')}" for key in differing)
        raise UsageError(
            f"{config.train.init} has latents of {_latents(model)}, but [model] describes latents of "
            f"{_latents(asked)}; to train this autoencoder, add {overrides}"
        )
    return Start(config.train.init, start.net, model, start.scale)


def _latents(model: AutoencoderConfig) -> str:
    return f"{counted(model.channels, 'channel')} at 1/{2 ** (len(model.widths) - 1)} of the side"


def in_words(model: AutoencoderConfig) -> str:
    """[model] as a sentence's end."""
    attention = "with" if model.attention else "without"
    widths = ", ".join(map(str, model.widths))
    return f"widths {widths}, {counted(model.layers, 'block')} per resolution, {attention} attention"


def perceptual_maps(weight: float, device: torch.device) -> FeatureMaps | None:
    """The frozen network of the perceptual loss, or None if the loss has no weight. Raises UsageError if the
    network's weights are not installed."""
    if not weight:
        return None
    try:
        network = efficientnet.pretrained()
    except UsageError as error:
        raise UsageError(f"{error}, or set loss.perceptual_weight=0") from None
    network.requires_grad_(False).to(device, memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    return reconstruction.feature_maps(network)


def cropped(x: Tensor, side: int, positions: range, seed: int) -> Tensor:
    """A random side x side crop of each image (N, C, H, W), keyed by its position in the stream."""
    spans = np.array(x.shape[2:]) - side + 1
    draws = [generator(seed, position, Stream.CROP).random(2) for position in positions]
    corners = np.floor(np.array(draws) * spans).astype(int)
    rows = zip(x, corners, strict=True)
    return torch.stack([image[:, top : top + side, left : left + side] for image, (top, left) in rows])


class Autoencoding(nn.Module):
    """Encoding, drawing a latent and decoding as one forward pass, which DDP can wrap."""

    def __init__(self, net: Any, *, decoder_only: bool):
        super().__init__()
        self.net, self.decoder_only = net, decoder_only

    def forward(self, x: Tensor, eps: Tensor) -> tuple[Tensor, Tensor]:
        """x (N, 3, H, W), standard normal eps (N, C, h, w) -> reconstructions, raw moments; float32."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.decoder_only):
            moments = self.net.encode(x).latent_dist.parameters.float()
        return self.net.decode(sample(moments, eps)).sample.float(), moments


class Read(NamedTuple):
    """What a loader reads for some positions of the stream: images and the noise of their latents."""

    x: Tensor
    eps: Tensor


@dataclass(frozen=True)
class Reader:
    """positions -> Read; runs in the loader's processes. shape: (channels, downsampling) of the latents."""

    dataset: TrainingSet
    seed: int
    crop: int
    channels: int
    downsampling: int

    def __call__(self, positions: range) -> Read:
        x = self.dataset.batch(samples_at(positions, len(self.dataset), self.seed), positions, self.seed).x0
        if self.crop:
            x = cropped(x, self.crop, positions, self.seed)
        latent = (self.channels, *(side // self.downsampling for side in x.shape[2:]))
        return Read(x, normal(self.seed, positions, latent, Stream.TRAIN_LATENT))


@dataclass(eq=False, kw_only=True)
class AutoencoderState(Learner[Read]):
    """An AutoencoderKL in training. scale: that of `train.init` if the encoder is frozen; otherwise None, and
    measured at the end. maps: of the perceptual loss, the same frozen network on every rank."""

    config: AutoencoderRun  # pyright: ignore[reportIncompatibleVariableOverride]
    net: Any
    scale: float | None = None
    maps: FeatureMaps | None = None

    @classmethod
    def create(
        cls, config: AutoencoderRun, dataset: TrainingSet, ranks: Ranks, start: Start | None
    ) -> AutoencoderState:
        """A fresh state; start: as `opened` gives, with the shape of config.model. Raises UsageError for
        shards and other settings of [engine], which these small networks do not need, and for a perceptual
        loss without its network."""
        if config.engine != EngineConfig(timeout=config.engine.timeout):
            raise UsageError(
                "the training of an autoencoder supports only timeout in [engine]; leave the other keys out"
            )
        net = build(config.model, dataset.shape[1], config.train.seed) if start is None else start.net
        scale = start.scale if start is not None and config.train.decoder_only else None
        for name, parameter in net.named_parameters():
            parameter.requires_grad_(name.startswith(DECODER_PARTS) or not config.train.decoder_only)
        # On a CPU convolutions are faster in this layout.
        net = net.to(ranks.device, memory_format=torch.channels_last).train()
        train, model = config.train, config.model
        module = Autoencoding(net, decoder_only=train.decoder_only)
        reader = Reader(dataset, train.seed, train.crop, model.channels, config.downsampling)
        workers = 0 if assemble.data_part(config.data).in_memory else config.data.workers
        return cls(
            config=config,
            net=net,
            parallel=Parallel(module, nn.ModuleList(), config.engine, train.precision, ranks),
            optimizer=make_optimizer(net, config.optimizer),
            ranks=ranks,
            loader=Loader(reader, train.batch_size, workers, PATIENCE * config.engine.timeout),
            samples=len(dataset),
            scale=scale,
            maps=perceptual_maps(config.loss.perceptual_weight, ranks.device),
        )

    def compute_loss(self, item: Read, part: slice, positions: range) -> LossTerms:
        x = item.x[part].to(self.ranks.device, memory_format=torch.channels_last)
        with autocast(self.config.train.precision, self.ranks.device):
            xhat, moments = self.parallel(x, item.eps[part].to(self.ranks.device))
        found = losses(self.config.loss, x, xhat, moments, self.maps)
        total, *_ = found
        terms = found._asdict().items()
        return LossTerms(total, {name: term for name, term in terms if name != "total" and term is not None})

    def state_dict(self) -> dict[str, dict[str, Tensor]]:
        return {"model": dict(self.net.state_dict()), "optimizer": self.optimizer_state()}
