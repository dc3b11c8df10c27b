"""The picture at the top of the README: digits emerging from noise, and quality against compute.

    python docs/figures/hero.py runs/demo  ->  docs/figures/hero.png

Left: x_t of the demo's model during 12 steps of DPM-Solver++ with guidance 1.5, one column per class.
Right: the twelve models of the digits study (docs/studies/digits/table.csv).
"""

from __future__ import annotations

import csv
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.ticker import FixedLocator, NullLocator

import scaledit
from scaledit.diffusion import ClassifierFree, DPMSolver, NetDenoiser, Noise, sample

DOCS = Path(__file__).resolve().parent.parent
SHOWN = (0, 3, 5, 7, 9, 10, 11)
"""Steps after which the images are shown, after the noise itself."""
SEED = 7
COLORS = {"S": "#9ecae1", "B": "#4292c6", "L": "#08519c", "XL": "#08306b"}
MARKERS = {"1": "D", "2": "o", "4": "s"}
INK = "#333333"
BELOW = ("XL/2", "XL/1")
"""Models whose names would cover another one's."""


def film(run: str) -> np.ndarray:
    """(8, 10, 8, 8): the noise and the images after SHOWN steps, of the classes 0 to 9."""
    pipeline = scaledit.load(run)
    parts = pipeline.config.diffusion
    noise = Noise(SEED, range(10), (1, 8, 8), pipeline.device)
    frames = [noise.initial()]
    denoiser = ClassifierFree(NetDenoiser(pipeline.net, parts.schedule, parts.parameterization), scale=1.5)
    y = pipeline.labels(list(range(10)))
    sample(denoiser, DPMSolver(steps=12), noise, y, on_step=lambda i, x: frames.append(x.clone()))
    shown = [frames[0], *(frames[i + 1] for i in SHOWN)]
    return np.stack([frame[:, 0].numpy() for frame in shown])


def models() -> list[tuple[str, str, float, float]]:
    """(size, patch, multiply-adds, FD-digits) of the study's models, means over training seeds."""
    with (DOCS / "studies/digits/table.csv").open(encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["part"] == "final" and row["fd"]]
    groups: dict[tuple[str, str, float], list[float]] = {}
    for row in rows:
        if row["conditioning"] == "adaln_zero" and row["steps"] == "1500":
            groups.setdefault((row["size"], row["patch_size"], float(row["macs"])), []).append(
                float(row["fd"])
            )
    return [(*key, float(np.mean(values))) for key, values in groups.items()]


def draw(run: str, out: Path) -> None:
    figure, (left, right) = plt.subplots(
        1, 2, figsize=(11, 4.1), width_ratios=(1.28, 1), layout="constrained", facecolor="white"
    )
    frames = np.clip((film(run) + 1) / 2, 0, 1)
    gap = 1
    rows, columns = frames.shape[:2]
    canvas = np.ones((rows * (8 + gap) - gap, columns * (8 + gap) - gap))
    for i in range(rows):
        for j in range(columns):
            canvas[i * (8 + gap) :, j * (8 + gap) :][:8, :8] = 1 - frames[i, j]
    left.imshow(canvas, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    left.set_axis_off()
    left.set_title("Noise to digits: 12 steps, guidance 1.5, one million parameters", fontsize=11, color=INK)
    for size, patch, macs, fd in models():
        right.plot(macs / 1e6, fd, MARKERS[patch], color=COLORS[size], markersize=9, markeredgecolor="white")
        name = f"{size}/{patch}"
        offset = (7, -12) if name in BELOW else (7, 4)
        right.annotate(name, (macs / 1e6, fd), offset, textcoords="offset points", fontsize=9, color=INK)
    right.set(xscale="log", yscale="log", xlabel="million multiply-adds per image")
    right.set_ylabel("FD-digits (lower is better)")
    right.xaxis.set_major_formatter("{x:g}")
    right.yaxis.set_major_locator(FixedLocator([8, 10, 12, 15, 20]))
    right.yaxis.set_major_formatter("{x:g}")
    right.yaxis.set_minor_locator(NullLocator())
    right.set_title("Twelve models, trained for equal steps", fontsize=11, color=INK)
    right.spines[["top", "right"]].set_visible(False)
    right.margins(x=0.12)
    figure.savefig(out, dpi=130)


if __name__ == "__main__":
    draw(sys.argv[1] if len(sys.argv) > 1 else "runs/demo", DOCS / "figures/hero.png")
