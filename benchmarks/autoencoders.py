"""The quality of small autoencoders after minutes of training on a CPU, and what a perceptual loss changes.

    python -m benchmarks.autoencoders own       f4 and f8 on 144 image files: results/own-autoencoders.json
    python -m benchmarks.autoencoders losses    photos-ae with and without: results/autoencoder-losses.json

The image files are parts of scikit-image's twelve photographs, 3 x 4 of each, with sides from 63 to 470
pixels, as PNG, JPEG, WebP and BMP, some of them gray.

Runs have one thread each, two at a time, and are timed by the CPU seconds of that thread, which other work on
the machine changes little. `seconds` scales them to two cores by the recipe photos-ae: its network and crops,
which images-ae-f4 shares, took 236 s for 2,600 steps on two idle cores.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image

from scaledit.autoencoders import open_autoencoder
from scaledit.autoencoders.config import AutoencoderRun
from scaledit.config import load
from scaledit.data.photos import PHOTOGRAPHS, photos
from scaledit.data.posterior import split
from scaledit.evaluation.metrics import frechet_distance
from scaledit.evaluation.photos import trained
from scaledit.images import to_uint8
from scaledit.machine import described
from scaledit.training.autoencoder import train
from scaledit.training.events import Fitted, Reconstructed, Started

RESULTS = Path(__file__).parent / "results"
ROWS, COLUMNS = 3, 4
FORMATS = (("png", {}), ("jpg", {"quality": 92}), ("webp", {"quality": 90}), ("bmp", {}))
SECONDS_PER_STEP = 236 / 2600
"""Of photos-ae on two idle cores, from the header of the recipe."""
QUALITY = ("psnr", "ssim", "perceptual", "fd", "extractor", "images")


class Job(NamedTuple):
    """A run: recipe and overrides. out: its folder."""

    out: Path
    words: tuple[str, ...]


def cut_photographs(folder: Path) -> Path:
    """One folder per photograph with its ROWS x COLUMNS parts, the formats in turn."""
    import skimage.data

    for photograph in PHOTOGRAPHS:
        pixels = getattr(skimage.data, photograph.function)()
        pixels = pixels[0] if isinstance(pixels, tuple) else pixels  # the left one of a stereo pair
        where = folder / photograph.name
        where.mkdir(parents=True)
        bands = np.array_split(pixels, ROWS, axis=0)
        parts = [part for band in bands for part in np.array_split(band, COLUMNS, axis=1)]
        for i, part in enumerate(parts):
            suffix, options = FORMATS[i % len(FORMATS)]
            Image.fromarray(np.ascontiguousarray(part)).save(where / f"{i:02d}.{suffix}", **options)
    return folder


def measured(job: Job) -> dict[str, Any]:
    """Trains; returns the CPU seconds per step of the training process and the quality on the way."""
    recipe, *overrides = job.words
    config = load(recipe, [*overrides, "train.log_every=10", "data.workers=0"], AutoencoderRun)
    began, cpu, steps = 0.0, 0.0, 0
    quality: list[dict[str, Any]] = []
    for event in train(config, job.out, device="cpu"):
        now = time.process_time()
        if isinstance(event, Started):
            began = now
        elif isinstance(event, Fitted):
            cpu, steps = cpu + now - began, event.step
            began = now
        elif isinstance(event, Reconstructed):
            values = {key: value for key, value in event._asdict().items() if key in QUALITY}
            quality.append({"step": event.step, **values})
            began = time.process_time()  # evaluating is not training
    return {"steps": steps, "cpu_per_step": cpu / steps, "quality": quality}


def in_parallel(jobs: Sequence[Job]) -> list[dict[str, Any]]:
    with ProcessPoolExecutor(2, get_context("spawn"), torch.set_num_threads, (1,)) as pool:
        return list(pool.map(measured, jobs))


OWN = {
    "f4, 64 pixels": ("images-ae-f4", "data.image_size=64", "train.crop=32", "train.batch_size=8"),
    "f8, 128 pixels": ("images-ae-f8", "data.image_size=128", "train.crop=64", "train.batch_size=4"),
    "f8, 64 pixels": ("images-ae-f8", "data.image_size=64", "train.crop=48", "train.batch_size=4"),
    "f4, 128 pixels": ("images-ae-f4", "data.image_size=128", "train.crop=32", "train.batch_size=8"),
}
STEPS = {"f4": 1320, "f8": 660}
"""About two minutes on two cores."""


def own(scratch: Path, only: Sequence[str]) -> dict[str, Any]:
    """Each of OWN, evaluated after a quarter, half and all of STEPS."""
    folder = cut_photographs(scratch / "photographs")
    names = [name for name in OWN if not only or name in only]
    jobs = []
    for name in names:
        steps = STEPS[name[:2]]
        words = (*OWN[name], f"data.path={folder}", f"train.steps={steps}", f"evaluate.every={steps // 4}")
        jobs.append(Job(scratch / name.replace(" ", ""), words))
    found = dict(zip(names, in_parallel(jobs), strict=True))
    reference = min(run["cpu_per_step"] for name, run in found.items() if name.startswith("f4"))
    for name, run in found.items():
        run["seconds_per_step"] = SECONDS_PER_STEP * run["cpu_per_step"] / reference
        for point in run["quality"]:
            point["seconds"] = round(point["step"] * run["seconds_per_step"], 1)
        run["command"] = " ".join(OWN[name])
    return {"images": len(PHOTOGRAPHS) * ROWS * COLUMNS, "classes": len(PHOTOGRAPHS), "runs": found}


WEIGHT = 0.1
"""Of the perceptual loss."""


def losses(scratch: Path, steps: int, seeds: int) -> dict[str, Any]:
    """photos-ae, shortened: without the perceptual loss, with it, and with it for as long as without."""

    def jobs(weight: float, count: int) -> list[Job]:
        words = ("photos-ae", "evaluate.every=0", f"loss.perceptual_weight={weight}", f"train.steps={count}")
        return [
            Job(scratch / f"{weight}-{count}-{seed}", (*words, f"train.seed={seed}")) for seed in range(seeds)
        ]

    def results(weight: float, count: int) -> list[dict[str, Any]]:
        which = jobs(weight, count)
        runs = in_parallel(which)
        found = [run | judged(job.out) for job, run in zip(which, runs, strict=True)]
        print(weight, count, json.dumps(found), file=sys.stderr, flush=True)
        return found

    without, equal_steps = results(0.0, steps), results(WEIGHT, steps)
    ratio = sum(run["cpu_per_step"] for run in without) / sum(run["cpu_per_step"] for run in equal_steps)
    equal_time = results(WEIGHT, round(steps * ratio))
    return {
        "recipe": "photos-ae",
        "weight": WEIGHT,
        "without": without,
        "with, equal steps": equal_steps,
        "with, equal time": equal_time,
    }


def judged(run: Path) -> dict[str, float]:
    """Distances of the reconstructions of all 768 held-out crops on a network that no loss has seen."""
    held_out = photos(held_out=True).images
    autoencoder = open_autoencoder(str(run))
    parts = []
    for x in held_out.split(64):
        mean, _ = split(autoencoder.encode(x))
        parts.append(autoencoder.decode(autoencoder.scale * mean))
    pair = [torch.from_numpy(to_uint8(x)).permute(0, 3, 1, 2) for x in (held_out, torch.cat(parts))]
    network = trained()
    a, b = (network(images)["pool"].numpy() for images in pair)
    return {"fd_photos": frechet_distance(a, b)}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=["own", "losses"])
    parser.add_argument("--only", nargs="*", default=[], choices=[*OWN])
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        if given.what == "own":
            found = own(Path(scratch), given.only)
        else:
            found = losses(Path(scratch), given.steps, given.seeds)
    names = {"own": "own-autoencoders.json", "losses": "autoencoder-losses.json"}
    path = given.json or RESULTS / names[given.what]
    path.write_text(json.dumps({"machine": described(), **found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
