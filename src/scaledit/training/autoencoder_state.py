"""Everything that training an autoencoder changes, and one step of it.

    x --encoder--> moments --mean + exp(logvar / 2) eps--> z --decoder--> xhat,  theta <- AdamW(theta, grad L)

Flips and eps are keyed by (seed, position in the stream), as everywhere: there is no generator to save.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from scaledit.autoencoders import kl
from scaledit.autoencoders.config import AutoencoderConfig, AutoencoderRun
from scaledit.autoencoders.losses import AutoencoderLosses, losses
from scaledit.checkpoint import Checkpoint
from scaledit.data.order import samples_at
from scaledit.data.posterior import draw
from scaledit.data.sets import TrainingSet
from scaledit.diffusion.noise import Stream, generator, normal
from scaledit.errors import UsageError
from scaledit.pipeline import load_weights
from scaledit.training.state import autocast, learning_rate, optimizer_tensors, restore_optimizer

DECODER_PARTS = ("decoder.", "post_quant_conv.")


def build(config: AutoencoderConfig, side: int, seed: int) -> Any:
    """A freshly initialised AutoencoderKL for images of side x side; torch's generator is left as it was."""
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
    """The [model] section that an AutoencoderKL is."""
    config = net.config
    return AutoencoderConfig(
        channels=config.latent_channels,
        widths=tuple(config.block_out_channels),
        layers=config.layers_per_block,
        groups=config.norm_num_groups,
        attention=config.get("mid_block_add_attention", True),
    )


def cropped(x: Tensor, side: int, positions: range, seed: int) -> Tensor:
    """A random side x side part of each image (N, C, H, W), keyed by its position in the stream."""
    spans = np.array(x.shape[2:]) - side + 1
    draws = [generator(seed, position, Stream.CROP).random(2) for position in positions]
    corners = np.floor(np.array(draws) * spans).astype(int)
    return torch.stack(
        [
            image[:, top : top + side, left : left + side]
            for image, (top, left) in zip(x, corners, strict=True)
        ]
    )


@dataclass
class AutoencoderState:
    """Everything that training changes. scale: None until it is measured at the end; that of `train.init`
    where the encoder stays."""

    config: AutoencoderRun
    net: Any
    optimizer: torch.optim.AdamW
    device: torch.device
    scale: float | None = None
    step: int = 0
    skipped: int = 0
    seconds: float = 0.0

    @classmethod
    def create(cls, config: AutoencoderRun, side: int, device: torch.device) -> AutoencoderState:
        """Raises UsageError where train.init is missing or is not what [model] says."""
        scale = None
        if config.train.init:
            start = kl.KLAutoencoder.open(config.train.init)
            net, own = start.net, architecture(start.net)
            if own != config.model:
                key = next(key for key in vars(own) if getattr(own, key) != getattr(config.model, key))
                value = getattr(own, key)
                raise UsageError(
                    f"{config.train.init} has another model.{key}; set model.{key}="
                    f"{list(value) if isinstance(value, tuple) else str(value).lower()}"
                )
            scale = start.scale if config.train.decoder_only else None
        else:
            net = build(config.model, side, config.train.seed)
        for name, parameter in net.named_parameters():
            parameter.requires_grad_(name.startswith(DECODER_PARTS) or not config.train.decoder_only)
        # Convolutions are faster in this layout on a CPU.
        net = net.to(device, memory_format=torch.channels_last).train()
        settings = config.optimizer
        optimizer = torch.optim.AdamW(
            [parameter for parameter in net.parameters() if parameter.requires_grad],
            lr=settings.learning_rate,
            betas=settings.betas,
            weight_decay=settings.weight_decay,
            fused=True,
        )
        return cls(config, net, optimizer, device, scale)

    def losses(self, dataset: TrainingSet, positions: range) -> AutoencoderLosses:
        """Of the samples at these positions of the stream."""
        config, seed = self.config, self.config.train.seed
        x = dataset.batch(samples_at(positions, len(dataset), seed), positions, seed).x0
        if config.train.crop:
            x = cropped(x, config.train.crop, positions, seed)
        x = x.to(self.device, memory_format=torch.channels_last)
        with autocast(config.train.precision, self.device):
            with torch.set_grad_enabled(not config.train.decoder_only):
                moments = self.net.encode(x).latent_dist.parameters.float()
            latent = (moments.shape[1] // 2, *moments.shape[2:])
            eps = normal(seed, positions, latent, Stream.TRAIN_LATENT).to(self.device)
            xhat = self.net.decode(draw(moments, eps)).sample.float()
        return losses(config.loss, x, xhat, moments)

    def advance(self, dataset: TrainingSet) -> tuple[AutoencoderLosses, float, bool]:
        """One optimizer step on the next batch; counts it even if it is skipped. Gives the losses, the norm
        of the gradient, and whether they were not finite, so that nothing was changed."""
        config, size = self.config, self.config.train.batch_size
        self.optimizer.zero_grad()
        found = self.losses(dataset, range(self.step * size, (self.step + 1) * size))
        found.total.backward()
        weights = [parameter for parameter in self.net.parameters() if parameter.grad is not None]
        norm = nn.utils.get_total_norm([weight.grad for weight in weights])
        skipped = not bool(torch.isfinite(found.total) & torch.isfinite(norm))
        if skipped:
            self.skipped += 1
        else:
            if config.optimizer.clip > 0:
                nn.utils.clip_grads_with_norm_(weights, config.optimizer.clip, norm)
            for group in self.optimizer.param_groups:
                group["lr"] = learning_rate(config.optimizer, self.step, config.train.steps)
            self.optimizer.step()
        self.step += 1
        return AutoencoderLosses(*(term.detach() for term in found)), float(norm), skipped

    def is_finite(self) -> bool:
        return all(bool(parameter.isfinite().all()) for parameter in self.net.parameters())

    def parts(self) -> dict[str, dict[str, Tensor]]:
        """What a checkpoint holds, a file each."""
        optimizer = optimizer_tensors(self.net, self.optimizer)
        return {"model": dict(self.net.state_dict()), "optimizer": optimizer}

    def restore(self, saved: Checkpoint) -> None:
        """Continues from a checkpoint; every file is verified before anything is changed."""
        model, optimizer = saved.tensors("model"), saved.tensors("optimizer")
        load_weights(self.net, model, saved.folder)
        restore_optimizer(self.net, self.optimizer, optimizer)
        self.step = saved.step
        self.skipped = saved.manifest["state"]["skipped"]
        self.seconds = saved.manifest["state"]["seconds"]
