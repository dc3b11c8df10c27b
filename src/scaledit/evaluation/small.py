"""Stands in for Inception on small built-in sets: a small classifier, and its twin with random weights.

    NAME          trained on the training split, frozen, shipped with its hash: features, logits
    NAME-random   the same network with random weights; a trained one hardly sees fine noise, this one does

The distance on their features is called FD-NAME, never FID, and is comparable only with itself.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from scaledit.data.sets import Images
from scaledit.diffusion.noise import Stream, generator
from scaledit.errors import RunError, UsageError

TWIN_SEED = 2022


@dataclass
class SmallExtractor:
    """images (N, 3, H, W) uint8 -> {"pool": (N, D), "logits": (N, K)} and what `more` adds; float32, CPU.

    network: x -> (features, logits). prepare: uint8 -> x, raising UsageError for images of another size
    unless it resizes them; resize says how.
    """

    network: nn.Module
    name: str
    sha256: str
    prepare: Callable[[Tensor], Tensor]
    more: Mapping[str, Callable[[Tensor], Tensor]] = field(default_factory=dict)
    resize: str = "none"

    def __post_init__(self) -> None:
        self.network.eval()

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> dict[str, Tensor]:
        x = self.prepare(images)
        features, logits = self.network(x)
        return {"pool": features, "logits": logits} | {name: of(x) for name, of in self.more.items()}


def scaled(images: Tensor, side: int, extractor: str) -> Tensor:
    """(N, 3, side, side) uint8 -> float32 in [-1, 1]. Raises UsageError for images of another size."""
    if images.shape[1:] != (3, side, side):
        _, _, h, w = images.shape
        raise UsageError(f"{extractor} needs images of {side}x{side} pixels, but these have {w}x{h}")
    return (images.float() - 127.5) / 127.5


def load_shipped(network: nn.Module, file: str, sha256: str) -> None:
    """Loads scaledit's own file into `network`. Raises RunError if the file is not the shipped one."""
    from safetensors.torch import load

    data = files("scaledit.evaluation").joinpath(file).read_bytes()
    actual = hashlib.sha256(data).hexdigest()
    if actual != sha256:
        raise RunError(f"scaledit's own {file} is corrupt (SHA-256 {actual[:8]}...); install scaledit again")
    network.load_state_dict(load(data))


def randomize(network: nn.Module) -> str:
    """Sets He-normal weights and zero biases, a function of TWIN_SEED alone. Returns their hash."""
    state = {}
    for layer, (name, value) in enumerate(network.state_dict().items()):
        scale = np.sqrt(2 / value[0].numel()) if value.ndim > 1 else 0.0
        draw = generator(TWIN_SEED, layer, Stream.EXTRACTOR).standard_normal(value.shape, dtype=np.float32)
        state[name] = torch.from_numpy(draw * np.float32(scale))
    network.load_state_dict(state)
    joined = b"".join(value.numpy().tobytes() for value in state.values())
    return hashlib.sha256(joined).hexdigest()


def fit(
    network_class: Callable[[], nn.Module],
    data: Images,
    augment: Callable[[Tensor, np.random.Generator], Tensor],
    seed: int,
    steps: int,
    batch_size: int,
) -> nn.Module:
    """Trains a classifier on augmented images with a little noise: AdamW, one cycle, label smoothing. The
    initial weights follow from `seed`, all other randomness from (seed, step)."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = network_class()
    optimizer = torch.optim.AdamW(network.parameters(), weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, steps)
    loss_function = nn.CrossEntropyLoss(label_smoothing=0.05)
    for step in range(steps):
        rng = generator(seed, step, Stream.EXTRACTOR)
        chosen = torch.from_numpy(rng.integers(len(data), size=batch_size))
        x = augment(data.images[chosen], rng)
        x = x + 0.1 * torch.from_numpy(rng.standard_normal(x.shape, dtype=np.float32))
        loss = loss_function(network(x)[1], data.labels[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return network.eval()


@torch.inference_mode()
def accuracy(network: nn.Module, data: Images) -> float:
    """The share of real images that are classified correctly."""
    return float((network(data.images)[1].argmax(1) == data.labels).float().mean())


def write_shipped(
    network: nn.Module, file: str, held_out: Images, dtype: torch.dtype = torch.float32
) -> None:
    """Replaces scaledit's own file by the weights of `network`, rounded to `dtype`, and prints their accuracy
    and hash."""
    from safetensors.torch import save

    rounded = {name: value.to(dtype) for name, value in network.state_dict().items()}
    network.load_state_dict(rounded)
    data = save(rounded)
    (Path(__file__).parent / file).write_bytes(data)
    share = accuracy(network, held_out)
    print(f"{file}: {share:.1%} of held-out images; SHA256 = {hashlib.sha256(data).hexdigest()}")
