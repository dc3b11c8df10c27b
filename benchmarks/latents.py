"""The speed of a latent cache, compared with encoding during training and with plain memory-mapped reads.

    python benchmarks/latents.py            prints the numbers and writes results/latents.json (1 minute)

The images are 64x64 crops of photographs. The autoencoder is that of the recipe photos-ae; its weights do not
matter here.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from scaledit.autoencoders import open_autoencoder
from scaledit.autoencoders.cache import Encoding, encode
from scaledit.autoencoders.config import AutoencoderRun
from scaledit.autoencoders.encoded import EncodedImages
from scaledit.config import load
from scaledit.data.files import BuiltIn
from scaledit.data.latents import Latents
from scaledit.data.photos import photos
from scaledit.data.sets import Images
from scaledit.machine import described
from scaledit.training.autoencoder_state import build

BATCH = 256
SIZES = {64: 1024, 256: 128}
"""Number of images by side length: that of the recipe, and that of the paper (the same crops, enlarged)."""


def rate(read: Callable[[np.ndarray, range], object], count: int, seconds: float = 4) -> float:
    """Images per second, in batches of random order."""
    rng = np.random.default_rng(0)
    read(rng.integers(0, count, BATCH), range(BATCH))
    began, done = time.perf_counter(), 0
    while time.perf_counter() - began < seconds:
        read(rng.integers(0, count, BATCH), range(done, done + BATCH))
        done += BATCH
    return done / (time.perf_counter() - began)


def crops(side: int, count: int) -> Images:
    everything = photos()
    chosen = torch.arange(len(everything))[:: len(everything) // count][:count]
    x = torch.nn.functional.interpolate(everything.images[chosen], size=side)
    return Images(x, everything.labels[chosen], everything.class_names, flip=True)


def measure(side: int, count: int) -> dict[str, Any]:
    images = crops(side, count)
    with tempfile.TemporaryDirectory() as folder:
        recipe = load("photos-ae", kind=AutoencoderRun)
        build(recipe.model, 64, seed=0).save_pretrained(f"{folder}/autoencoder")
        autoencoder = open_autoencoder(f"{folder}/autoencoder")
        out = Path(folder) / "latents"
        encode(BuiltIn("photos", images), autoencoder, out, Encoding(per_file=count // 4))
        latents = Latents.open(out, flip=True)
        np.save(f"{folder}/plain.npy", np.concatenate([table["moments"] for table in latents.tables]))
        plain = np.load(f"{folder}/plain.npy", mmap_mode="r")
        fly = EncodedImages(images, autoencoder)
        found = {
            "images": count,
            "moments": list(latents.index.shape),
            "encoding_on_the_fly": rate(lambda i, p: fly.batch(i, p, 0), count),
            "plain_mapped_reads": rate(lambda i, _: np.array(plain[i]), count),
            "reading_moments": rate(lambda i, _: latents.moments(i, [False] * len(i)), count),
            "reading_and_drawing": rate(lambda i, p: latents.batch(i, p, 0), count),
        }
    return {
        **found,
        "drawn_over_encoded": found["reading_and_drawing"] / found["encoding_on_the_fly"],
        "moments_over_plain": found["reading_moments"] / found["plain_mapped_reads"],
    }


def main() -> None:
    found: dict[str, Any] = {"machine": described()}
    found |= {f"{side}x{side}": measure(side, count) for side, count in SIZES.items()}
    print(json.dumps(found, indent=1))
    (Path(__file__).parent / "results" / "latents.json").write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
