"""What FD on EfficientNet-Lite0, on its random twin, and FD-photos see on the built-in photographs.

python benchmarks/features.py  ->  benchmarks/results/features.json

The reference is 12 x 4 training crops. Compared with it are 12 x 4 images each: other training crops, fresh
crops of the training regions, held-out crops of other regions, and the fresh crops blurred or with noise.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageFilter

from scaledit import images, machine
from scaledit.data.photos import fresh_photos, photos
from scaledit.data.sets import Images
from scaledit.evaluation import efficientnet
from scaledit.evaluation import photos as small
from scaledit.evaluation.extractors.efficientnet import EfficientNetFeatures, EfficientNetTwin
from scaledit.evaluation.features import FeatureNetwork
from scaledit.evaluation.metrics import frechet_distance, kid

RESULTS = Path(__file__).parent / "results" / "features.json"
EACH = 4
"""Crops per photograph."""
NOISE = (10, 30, 60)
"""Standard deviations in levels of 0..255."""
BLUR = (0.5, 1.0, 2.0)
"""Standard deviations in pixels."""
SEED = 0
BATCH = 32


def chosen(data: Images, first: int) -> np.ndarray:
    """EACH crops of every photograph, (192, 64, 64, 3) uint8, from number `first` on."""
    labels = data.labels.numpy()
    rows = [np.flatnonzero(labels == label)[first : first + EACH] for label in np.unique(labels)]
    return images.to_uint8(data.images[torch.from_numpy(np.concatenate(rows))])


def blurred(x: np.ndarray, radius: float) -> np.ndarray:
    blur = ImageFilter.GaussianBlur(radius)
    return np.stack([np.asarray(Image.fromarray(image).filter(blur)) for image in x])


def noisy(x: np.ndarray, deviation: float) -> np.ndarray:
    noise = np.random.default_rng(SEED).standard_normal(x.shape) * deviation
    return (x + noise).round().clip(0, 255).astype(np.uint8)


def features(network: FeatureNetwork, x: np.ndarray) -> np.ndarray:
    batches = [
        torch.from_numpy(x[first : first + BATCH]).permute(0, 3, 1, 2) for first in range(0, len(x), BATCH)
    ]
    return np.concatenate([network(batch)["pool"].numpy() for batch in batches])


def main() -> None:
    train, fresh = photos(), chosen(fresh_photos(), 0)
    reference = chosen(train, 0)
    compared = {
        "other training crops": chosen(train, EACH),
        "fresh crops": fresh,
        "held-out crops": chosen(photos(held_out=True), 0),
        **{f"fresh crops, noise {deviation}": noisy(fresh, deviation) for deviation in NOISE},
        **{f"fresh crops, blur {radius}": blurred(fresh, radius) for radius in BLUR},
        "half of the classes": np.repeat(fresh[: 6 * EACH], 2, axis=0),
    }
    networks = {
        "FD-EfficientNet-Lite0": EfficientNetFeatures().load(),
        "FD-EfficientNet-Lite0-random": EfficientNetTwin().load(),
        "FD-photos": small.trained(),
    }
    distances: dict[str, dict[str, float]] = {}
    for title, network in networks.items():
        real = features(network, reference)
        distances[title] = {}
        if title == "FD-EfficientNet-Lite0":
            distances["KD-EfficientNet-Lite0"] = {}
        for name, x in compared.items():
            found = features(network, x)
            distances[title][name] = float(f"{frechet_distance(real, found):.4g}")
            if title == "FD-EfficientNet-Lite0":
                distances["KD-EfficientNet-Lite0"][name] = float(f"{kid(real, found, subsets=1).mean:.3g}")
            print(f"{title}, {name}: {distances[title][name]}", flush=True)
    value = {
        "images": len(reference),
        "extractor_sha256": efficientnet.SHA256,
        "distances": distances,
        "machine": machine.described(),
    }
    RESULTS.write_text(json.dumps(value, indent=1) + "\n")


if __name__ == "__main__":
    main()
