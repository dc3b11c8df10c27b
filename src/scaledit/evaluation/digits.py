"""What stands in for Inception on the 8x8 digits, which Inception was not made for.

    digits          a small classifier, trained on the training digits, frozen: 64 features, 10 logits
    digits-random   the same network with random weights; a trained one hardly sees fine noise, this one does
    nearest         mean distance of samples to their nearest training digit, over that of held-out digits
                    (well below 1: the model copies; well above: it does not make digits)

The distance on their features is called FD-digits, never FID. `python -m scaledit.evaluation.digits` trains
the shipped weights again.
"""

from __future__ import annotations

import hashlib
from functools import lru_cache
from importlib.resources import files
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, gelu, pad

from scaledit.data.sets import DIGITS_SIDE, Images, digits
from scaledit.diffusion.noise import Stream, generator
from scaledit.errors import RunError, UsageError

FEATURES = 64
WEIGHTS = "digits.safetensors"
SHA256 = "c6868c14880d9a4640d298db5e54538bf9ffd835886e5b8f25cf61520bb001a1"
TWIN_SEED = 2022


class DigitClassifier(nn.Module):
    """81,000 parameters: three 3x3 convolutions, the last with stride 2, then two linear layers."""

    def __init__(self, width: int = 24):
        super().__init__()
        self.conv1 = nn.Conv2d(1, width, 3, padding=1)
        self.conv2 = nn.Conv2d(width, 2 * width, 3, padding=1)
        self.conv3 = nn.Conv2d(2 * width, 2 * width, 3, padding=1, stride=2)
        self.features = nn.Linear(2 * width * (DIGITS_SIDE // 2) ** 2, FEATURES)
        self.classes = nn.Linear(FEATURES, 10)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x (N, 1, 8, 8) in [-1, 1] -> features (N, 64), logits (N, 10)."""
        for layer in (self.conv1, self.conv2, self.conv3):
            x = gelu(layer(x))
        features = gelu(self.features(x.flatten(1)))
        return features, self.classes(features)


class DigitExtractor:
    """images (N, 3, 8, 8) uint8, grey -> {"pool": (N, 64), "logits": (N, 10), "nearest": (N,)}, float32 on
    the CPU. Raises UsageError for images of another size."""

    resize = "none"

    def __init__(self, network: DigitClassifier, name: str, sha256: str):
        self.network, self.name, self.sha256 = network.eval(), name, sha256

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> dict[str, Tensor]:
        x = as_pixels(images)
        features, logits = self.network(x)
        return {"pool": features, "logits": logits, "nearest": nearest_distance(x)}


def as_pixels(images: Tensor) -> Tensor:
    """(N, 3, 8, 8) uint8 -> (N, 1, 8, 8) in [-1, 1]."""
    if images.shape[1:] != (3, DIGITS_SIDE, DIGITS_SIDE):
        _, _, h, w = images.shape
        raise UsageError(f"the digits' extractor reads {DIGITS_SIDE}x{DIGITS_SIDE} images, these are {w}x{h}")
    return (images[:, :1].float() - 127.5) / 127.5


@lru_cache(maxsize=1)
def trained() -> DigitExtractor:
    """The shipped classifier. Raises RunError if its file is not the one that was shipped."""
    from safetensors.torch import load

    data = files("scaledit.evaluation").joinpath(WEIGHTS).read_bytes()
    sha256 = hashlib.sha256(data).hexdigest()
    if sha256 != SHA256:
        raise RunError(
            f"scaledit's own {WEIGHTS} is damaged (SHA-256 {sha256[:8]}...); install scaledit again"
        )
    network = DigitClassifier()
    network.load_state_dict(load(data))
    return DigitExtractor(network, "digits", sha256)


@lru_cache(maxsize=1)
def random_twin() -> DigitExtractor:
    """The classifier's network with He-normal weights and zero biases, a function of TWIN_SEED alone."""
    network = DigitClassifier()
    state = {}
    for layer, (name, value) in enumerate(network.state_dict().items()):
        scale = np.sqrt(2 / value[0].numel()) if value.ndim > 1 else 0.0
        draw = generator(TWIN_SEED, layer, Stream.EXTRACTOR).standard_normal(value.shape, dtype=np.float32)
        state[name] = torch.from_numpy(draw * np.float32(scale))
    network.load_state_dict(state)
    joined = b"".join(value.numpy().tobytes() for value in state.values())
    return DigitExtractor(network, "digits-random", hashlib.sha256(joined).hexdigest())


def nearest_distance(x: Tensor) -> Tensor:
    """(N, 1, 8, 8) in [-1, 1] -> (N,): the Euclidean distance to the nearest training digit."""
    return torch.cdist(x.flatten(1), digits().images.flatten(1)).min(dim=1).values


def train(seed: int = 0, steps: int = 600, batch_size: int = 64) -> DigitClassifier:
    """The classifier from nothing, in about 10 s: AdamW, one cycle, shifts by up to a pixel, a little
    noise."""
    data = digits()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = DigitClassifier()
    optimizer = torch.optim.AdamW(network.parameters(), weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, steps)
    for step in range(steps):
        rng = generator(seed, step, Stream.EXTRACTOR)
        chosen = torch.from_numpy(rng.integers(len(data), size=batch_size))
        x = _shifted(data.images[chosen], rng)
        x = x + 0.1 * torch.from_numpy(rng.standard_normal(x.shape, dtype=np.float32))
        loss = cross_entropy(network(x)[1], data.labels[chosen], label_smoothing=0.05)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return network.eval()


def _shifted(x: Tensor, rng: np.random.Generator) -> Tensor:
    """Each image moved by -1, 0 or 1 pixel along both axes, dark coming in."""
    padded = pad(x, (1, 1, 1, 1), value=-1.0)
    corners = rng.integers(0, 3, size=(len(x), 2)).tolist()
    return torch.stack(
        [padded[i, :, a : a + DIGITS_SIDE, b : b + DIGITS_SIDE] for i, (a, b) in enumerate(corners)]
    )


@torch.inference_mode()
def accuracy(network: DigitClassifier, data: Images) -> float:
    """Share of real digits that the classifier names rightly."""
    return float((network(data.images)[1].argmax(1) == data.labels).float().mean())


def _main() -> None:
    from safetensors.torch import save

    network = train()
    data = save(network.state_dict())
    (Path(__file__).parent / WEIGHTS).write_bytes(data)
    held_out = accuracy(network, digits(held_out=True))
    print(f"{WEIGHTS}: {held_out:.1%} of held-out digits; SHA256 = {hashlib.sha256(data).hexdigest()}")


if __name__ == "__main__":
    _main()
