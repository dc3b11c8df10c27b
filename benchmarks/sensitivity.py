"""The sensitivity of FD-digits to degraded digits, for the trained extractor and its random twin.

held-out digits --noise | blur | classes left out--> 8 bits --> features --> distance to the training digits

python benchmarks/sensitivity.py        prints the tables of docs/evaluation.md and writes
                                        results/sensitivity.json
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import conv2d, pad

from scaledit import images
from scaledit.data.sets import Images, digits
from scaledit.evaluation.digits import random_twin, trained
from scaledit.evaluation.metrics import Statistics, frechet_distance
from scaledit.evaluation.small import SmallExtractor

SEEDS = 5
EXTRACTORS: dict[str, Callable[[], SmallExtractor]] = {
    "FD-digits": trained,
    "FD-digits-random": random_twin,
}


def noise(data: Images, deviation: float, seed: int) -> Tensor:
    """Adds Gaussian noise with standard deviation `deviation` on the scale [-1, 1]."""
    draw = torch.randn(data.images.shape, generator=torch.Generator().manual_seed(seed))
    return data.images + deviation * draw


def blur(data: Images, deviation: float, seed: int) -> Tensor:
    """Blurs three quarters of the digits, chosen by the seed, with a Gaussian of `deviation` pixels."""
    chosen = torch.randperm(len(data), generator=torch.Generator().manual_seed(seed))[: len(data) * 3 // 4]
    if deviation == 0:
        return data.images[chosen]
    kernel = torch.exp(-(torch.arange(-3, 4.0) ** 2) / (2 * deviation**2))
    kernel = kernel / kernel.sum()
    x = pad(data.images[chosen], (3, 3, 3, 3), value=-1.0)
    return conv2d(conv2d(x, kernel[None, None, None]), kernel[None, None, :, None])


def dropped(data: Images, classes: float, seed: int) -> Tensor:
    """Leaves out `classes` classes, chosen by the seed."""
    order = torch.randperm(10, generator=torch.Generator().manual_seed(seed))
    return data.images[~torch.isin(data.labels, order[: int(classes)])]


DAMAGE: dict[str, tuple[Callable[[Images, float, int], Tensor], tuple[float, ...]]] = {
    "noise, sd": (noise, (0, 0.06, 0.12, 0.25, 0.5, 1)),
    "blur, pixels": (blur, (0, 0.4, 0.5, 0.65, 0.8, 1.2)),
    "classes dropped": (dropped, (0, 1, 2, 4, 6, 8)),
}


def distance(extractor: SmallExtractor, x: Tensor) -> float:
    """The distance of images in [-1, 1], rounded to 8 bits as samples are, to the training digits."""

    def features(x: Tensor):
        return extractor(torch.from_numpy(images.to_uint8(x)).permute(0, 3, 1, 2))["pool"].numpy()

    return frechet_distance(Statistics.of(features(digits().images)), features(x))


def measure(extractor: SmallExtractor, damage: str, seed: int) -> list[float]:
    """The distance at each level of one kind of damage."""
    spoil, levels = DAMAGE[damage]
    return [distance(extractor, spoil(digits(held_out=True), level, seed)) for level in levels]


def main() -> None:
    found = {
        name: {damage: [measure(extractor(), damage, seed) for seed in range(SEEDS)] for damage in DAMAGE}
        for name, extractor in EXTRACTORS.items()
    }
    for damage, (_, levels) in DAMAGE.items():
        print(f"| {damage} | " + " | ".join(f"{level:g}" for level in levels) + " |")
        print("|---|" + "---|" * len(levels))
        for name in EXTRACTORS:
            cells = torch.tensor(found[name][damage]).mean(0).tolist()
            print(f"| {name} | " + " | ".join(f"{cell:.3g}" for cell in cells) + " |")
        print()
    out = Path(__file__).parent / "results" / "sensitivity.json"
    levels = {damage: list(levels) for damage, (_, levels) in DAMAGE.items()}
    out.write_text(json.dumps({"seeds": SEEDS, "levels": levels, "distances": found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
