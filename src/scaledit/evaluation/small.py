"""What stands in for Inception where that was not made for the data: a small classifier, its random twin.

    NAME          trained on the training split, frozen, shipped with its hash: features, logits
    NAME-random   the same network with random weights; a trained one hardly sees fine noise, this one does

The distance on their features is called FD-NAME, never FID, and compares with nothing but itself.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from importlib.resources import files

import numpy as np
import torch
from torch import Tensor, nn

from scaledit.data.sets import Images
from scaledit.diffusion.noise import Stream, generator
from scaledit.errors import RunError

TWIN_SEED = 2022


class SmallExtractor:
    """images (N, 3, H, W) uint8 -> {"pool": (N, D), "logits": (N, K)} and what `more` adds; float32, CPU.

    network: x -> (features, logits). prepare: uint8 -> x, raising UsageError for images of another size.
    """

    resize = "none"

    def __init__(
        self,
        network: nn.Module,
        name: str,
        sha256: str,
        prepare: Callable[[Tensor], Tensor],
        more: Mapping[str, Callable[[Tensor], Tensor]] | None = None,
    ):
        self.network, self.name, self.sha256 = network.eval(), name, sha256
        self.prepare, self.more = prepare, more or {}

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> dict[str, Tensor]:
        x = self.prepare(images)
        features, logits = self.network(x)
        return {"pool": features, "logits": logits} | {name: of(x) for name, of in self.more.items()}


def load_shipped(network: nn.Module, file: str, sha256: str) -> None:
    """Fills `network` from scaledit's own file. Raises RunError if it is not the one that was shipped."""
    from safetensors.torch import load

    data = files("scaledit.evaluation").joinpath(file).read_bytes()
    found = hashlib.sha256(data).hexdigest()
    if found != sha256:
        raise RunError(f"scaledit's own {file} is corrupt (SHA-256 {found[:8]}...); install scaledit again")
    network.load_state_dict(load(data))


def randomise(network: nn.Module) -> str:
    """Gives `network` He-normal weights and zero biases, a function of TWIN_SEED alone; their hash."""
    state = {}
    for layer, (name, value) in enumerate(network.state_dict().items()):
        scale = np.sqrt(2 / value[0].numel()) if value.ndim > 1 else 0.0
        draw = generator(TWIN_SEED, layer, Stream.EXTRACTOR).standard_normal(value.shape, dtype=np.float32)
        state[name] = torch.from_numpy(draw * np.float32(scale))
    network.load_state_dict(state)
    joined = b"".join(value.numpy().tobytes() for value in state.values())
    return hashlib.sha256(joined).hexdigest()


def fit(
    network: nn.Module,
    data: Images,
    augment: Callable[[Tensor, np.random.Generator], Tensor],
    seed: int,
    steps: int,
    batch_size: int,
) -> nn.Module:
    """Trains a classifier: AdamW, one cycle, label smoothing; all randomness keyed by (seed, step)."""
    optimizer = torch.optim.AdamW(network.parameters(), weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, steps)
    loss_of = nn.CrossEntropyLoss(label_smoothing=0.05)
    for step in range(steps):
        rng = generator(seed, step, Stream.EXTRACTOR)
        chosen = torch.from_numpy(rng.integers(len(data), size=batch_size))
        loss = loss_of(network(augment(data.images[chosen], rng))[1], data.labels[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return network.eval()


@torch.inference_mode()
def accuracy(network: nn.Module, data: Images) -> float:
    """Share of real images that the classifier names rightly."""
    return float((network(data.images)[1].argmax(1) == data.labels).float().mean())
