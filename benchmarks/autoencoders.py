"""The quality of small autoencoders after minutes of training on a CPU, and what a perceptual loss changes.

    python -m benchmarks.autoencoders own       f4 and f8 on 144 image files: results/own-autoencoders.json
    python -m benchmarks.autoencoders losses    photos-ae with and without: results/autoencoder-losses.json

The folder holds parts of scikit-image's twelve photographs, 3 x 4 of each, with sides from 63 to 470 pixels,
as PNG, JPEG, WebP and BMP, some of them gray. Every run has the learning rate of its full length (linear to
0), so the quality after m minutes is that of a run that was planned for m minutes.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from scaledit.autoencoders import open_autoencoder
from scaledit.data.photos import PHOTOGRAPHS, photos
from scaledit.data.posterior import split
from scaledit.evaluation.metrics import frechet_distance
from scaledit.evaluation.photos import trained
from scaledit.images import to_uint8
from scaledit.machine import described

RESULTS = Path(__file__).parent / "results"
ROWS, COLUMNS = 3, 4
FORMATS = (("png", {}), ("jpg", {"quality": 92}), ("webp", {"quality": 90}), ("bmp", {}))


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


def train(out: Path, *words: str) -> list[dict[str, Any]]:
    """The lines of the log of `scaledit autoencoder train`."""
    command = [
        sys.executable,
        "-m",
        "scaledit.cli",
        "autoencoder",
        "train",
        *words,
        "--out",
        str(out),
        "--json",
    ]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


def measured(lines: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The speed of a run, and its quality on held-out images at the end and on the way."""
    fitted = [line for line in lines if line["event"] == "fitted"]
    seconds = {line["step"]: line["seconds"] for line in fitted}
    points = [line for line in lines if line["event"] == "reconstructed"]
    keys = ("psnr", "ssim", "perceptual", "fd", "extractor")
    steady = fitted[len(fitted) // 2]  # after the first steps, which allocate memory
    rate = (fitted[-1]["seconds"] - steady["seconds"]) / (fitted[-1]["step"] - steady["step"])
    return {
        "steps": fitted[-1]["step"],
        "seconds": round(fitted[-1]["seconds"], 1),
        "seconds_per_step": round(rate, 4),
        "waiting_for_data": round(fitted[-1]["data_wait"], 3),
        "held_out_images": points[-1]["images"],
        "quality": [
            {"step": line["step"], "seconds": round(seconds[line["step"]], 1)}
            | {key: line[key] for key in keys if key in line}
            for line in points
        ],
    }


OWN = {
    "f4, 64 pixels": ("images-ae-f4", "data.image_size=64", "train.crop=32", "train.batch_size=8"),
    "f4, 128 pixels": ("images-ae-f4", "data.image_size=128", "train.crop=32", "train.batch_size=8"),
    "f8, 64 pixels": ("images-ae-f8", "data.image_size=64", "train.crop=48", "train.batch_size=4"),
    "f8, 128 pixels": ("images-ae-f8", "data.image_size=128", "train.crop=64", "train.batch_size=4"),
}


def own(scratch: Path, minutes: Sequence[float], only: Sequence[str]) -> dict[str, Any]:
    """Each of OWN trained for each number of minutes, by the speed that a short run finds."""
    folder = cut_photographs(scratch / "photographs")
    found: dict[str, Any] = {}
    for name, words in OWN.items():
        if only and name not in only:
            continue
        common = (*words, f"data.path={folder}", "evaluate.every=0", "train.log_every=10")
        trial = measured(train(scratch / f"trial {name}", *common, "train.steps=60"))
        speed = trial["seconds_per_step"]
        runs = {}
        for count in minutes:
            steps = round(60 * count / speed)
            runs[f"{count:g}"] = measured(train(scratch / f"{name} {count}", *common, f"train.steps={steps}"))
            print(name, count, json.dumps(runs[f"{count:g}"]), file=sys.stderr, flush=True)
        found[name] = {"command": " ".join(words), "minutes": runs}
    return {"images": len(PHOTOGRAPHS) * ROWS * COLUMNS, "classes": len(PHOTOGRAPHS), "runs": found}


WEIGHTS = (0.0, 0.05, 0.2)
"""Of the perceptual loss."""


def losses(scratch: Path, steps: int, seeds: int) -> dict[str, Any]:
    """photos-ae, shortened, with each of WEIGHTS: for `steps` steps, and for as long as without the term."""
    found: dict[str, list[dict[str, Any]]] = {}
    base = ("photos-ae", "evaluate.every=0", "train.log_every=10")
    for seed in range(seeds):
        speeds: dict[float, float] = {}
        for weight in WEIGHTS:
            for kind in ("equal steps", "equal time") if weight else ("equal steps",):
                count = steps if kind == "equal steps" else round(steps * speeds[0.0] / speeds[weight])
                out = scratch / f"{weight} {seed} {kind}"
                words = (f"train.seed={seed}", f"train.steps={count}", f"loss.perceptual_weight={weight}")
                run = measured(train(out, *base, *words))
                speeds.setdefault(weight, run["seconds_per_step"])
                name = f"weight {weight:g}" + (f", {kind}" if weight else "")
                found.setdefault(name, []).append({"seed": seed, **run, **judged(out)})
                print(name, json.dumps(found[name][-1]), file=sys.stderr, flush=True)
    return {"steps": steps, "runs": found}


def judged(run: Path) -> dict[str, float]:
    """Distances of the reconstructions of all 768 held-out crops on a network that no loss has seen."""
    held_out = photos(held_out=True).images
    autoencoder = open_autoencoder(str(run))
    parts = []
    for x in held_out.split(64):
        mean, _ = split(autoencoder.encode(x))
        parts.append(autoencoder.decode(autoencoder.scale * mean))
    pairs = [torch.from_numpy(to_uint8(x)).permute(0, 3, 1, 2) for x in (held_out, torch.cat(parts))]
    network = trained()
    a, b = (network(images)["pool"].numpy() for images in pairs)
    return {"fd_photos": frechet_distance(a, b)}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=["own", "losses"])
    parser.add_argument("--minutes", type=float, nargs="+", default=[1, 2, 4])
    parser.add_argument("--only", nargs="*", default=[], choices=[*OWN])
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        if given.what == "own":
            found = own(Path(scratch), given.minutes, given.only)
        else:
            found = losses(Path(scratch), given.steps, given.seeds)
    names = {"own": "own-autoencoders.json", "losses": "autoencoder-losses.json"}
    path = given.json or RESULTS / names[given.what]
    path.write_text(json.dumps({"machine": described(), **found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
