"""A synthetic study that follows a law.

fd = 2 + 60 C^-0.5 (1 + (s0 / steps)^0.8) * noise
"""

from __future__ import annotations

import io
from dataclasses import replace

import numpy as np
from PIL import Image

from scaledit.diffusion import DDPM, ClassifierFree
from scaledit.models import flops
from scaledit.scaling.table import (
    FINAL,
    GUIDANCE,
    SAMPLING,
    TRAINING,
    About,
    Loss,
    Row,
    Table,
    cell,
)

SIZES = {"S": (2, 32), "B": (4, 64), "L": (6, 96), "XL": (8, 128)}
PATCHES = (1, 2, 4)
BLOCKS = {"in_context": 1.9, "cross_attention": 1.4, "adaln": 1.25, "adaln_zero": 1.0}
STEPS = (500, 1000, 1500, 2000, 3000, 4000, 6000)
SAMPLING_STEPS = (16, 32, 64, 128, 256, 1000)
SCALES = (1.0, 1.25, 1.5, 2.0, 3.0, 4.0)
FLOOR = 1.9


def sampler(steps: int) -> str:
    """A cell of a table."""
    return cell(DDPM(steps).to_json())


def guidance(scale: float, channels: int | None = 3) -> str:
    """A cell of a table."""
    return cell([ClassifierFree(scale=scale, channels=channels).to_json()])


def _row(size: str, patch: int, block: str = "adaln_zero", seed: int = 0, steps: int = STEPS[-1]) -> Row:
    depth, width = SIZES[size]
    tokens = (8 // patch) ** 2
    params = 18 * depth * width**2 + patch**2 * width
    macs = 12 * depth * width**2 * tokens + 2 * depth * width * tokens**2
    name = " ".join(
        [f"{size}/{patch}", *([block] if block != "adaln_zero" else []), *([f"seed {seed}"] if seed else [])]
    )
    noise = np.random.default_rng([seed, patch, depth, steps, len(block)])
    worse = BLOCKS[block] * (1 + (900 / steps) ** 1.2)
    fd = FLOOR + 3.2 * (macs / 1e8) ** -0.55 * worse * np.exp(0.05 * noise.standard_normal())
    good = 1 / (1 + 0.08 * (fd - FLOOR))
    return Row(
        name=name,
        part=FINAL,
        size=size,
        patch_size=patch,
        conditioning=block,
        tokens=tokens,
        params=params,
        macs=macs,
        batch_size=64,
        steps=steps,
        images=64 * steps,
        train_macs=flops.train_macs(macs, 64 * steps),
        seed=seed,
        loss=0.1 + 0.002 * fd,
        fd=fd,
        fd_std=0.04 * fd,
        sampler=sampler(100),
        guidance=guidance(1.0),
        decoder="",
        sampling_macs=100 * macs,
        num=2000,
        sample_sets=3,
        protocol="final",
        metrics={
            "fd_digits": fd, "fd_digits_std": 0.04 * fd, "fd_digits_real": FLOOR,
            "fd_digits_random": 0.02 * fd**1.3, "fd_digits_random_real": 0.03,
            "class_accuracy": 0.1 + 0.88 * good, "class_accuracy_real": 0.985,
            "class_score": 1 + 8.2 * good, "class_score_real": 9.4,
            "precision": 0.9 * good, "precision_real": 0.93,
            "recall": 0.88 * good**0.5, "recall_real": 0.92,
            "density": 1.05 * good, "density_real": 1.0,
            "coverage": 0.95 * good, "coverage_real": 0.97,
            "kid": 1e-3 * (fd - 1.5), "kid_spread": 1e-4, "kid_real": 4e-4,
            "nearest": 1.6 - 0.6 * good, "nearest_real": 1.0,
        },
    )  # fmt: skip


def study() -> Table:
    """Twelve models with checkpoints, three seeds for the small sizes, blocks at XL/1, sweeps, losses,
    pictures."""
    runs = [(size, patch, "adaln_zero", 0) for size in SIZES for patch in PATCHES]
    runs += [(size, patch, "adaln_zero", seed) for size in ("S", "B") for patch in PATCHES for seed in (1, 2)]
    runs += [("XL", 1, block, 0) for block in BLOCKS if block != "adaln_zero"]
    rows = [_row(*run) for run in runs]
    rows += [
        replace(_row(*run, steps=steps), part=TRAINING, num=1000, sample_sets=1, fd_std=None, metrics={})
        for run in runs
        for steps in STEPS
    ]
    for size, patch in (("S", 1), ("B", 1), ("L", 1), ("XL", 1), ("XL", 2), ("XL", 4)):
        row = replace(_row(size, patch), part=SAMPLING)
        for steps in SAMPLING_STEPS:
            fd = (row.fd or 0) * (1 + 9 / steps)
            drawn = replace(row, sampler=sampler(steps), sampling_macs=steps * row.macs)
            rows.append(replace(drawn, fd=fd, metrics={}))
    for channels in (3,):
        row = replace(_row("XL", 1), part=GUIDANCE)
        for scale in SCALES:
            fd = (row.fd or 0) * (0.75 + 0.5 * (scale - 1.5) ** 2)
            trade = {"precision": 1 - 0.25 / scale, "recall": 0.95 / scale**0.5}
            trade |= {"precision_real": 0.93, "recall_real": 0.92}
            rows.append(replace(row, fd=fd, guidance=guidance(scale, channels), metrics=trade))
    about = About(
        name="digits",
        title="Digits",
        command="scaledit study digits",
        distance="FD-digits",
        floor=FLOOR,
        sizes=tuple(SIZES),
    )
    models = [_row(*run) for run in runs]
    losses = [loss for row in models for loss in _losses(row)]
    return Table(about, tuple(rows), tuple(losses), {row.name: _picture(row) for row in models})


def _losses(row: Row) -> list[Loss]:
    noise = np.random.default_rng(row.macs + row.seed)
    steps = np.arange(20, row.steps + 1, 20)
    end = 0.05 + 0.02 * (row.macs / 1e6) ** -0.3
    values = end + (1 - end) * (steps / 20) ** -0.9 + 0.008 * noise.standard_normal(len(steps))
    return [Loss(row.name, int(step), float(value)) for step, value in zip(steps, values, strict=True)]


def _picture(row: Row) -> bytes:
    """A sheet of 4 x 5 rings of 8 x 8 pixels, noisier for worse models."""
    y, x = np.mgrid[-1:1:8j, -1:1:8j]
    noise = np.random.default_rng(7)
    sheet = np.full((4 * 9 + 1, 5 * 9 + 1, 3), 255, np.uint8)
    for i in range(20):
        ring = np.exp(-(((x**2 + (1 + 0.1 * (i % 5)) * y**2) ** 0.5 - 0.3 - 0.1 * (i // 5)) ** 2) / 0.06)
        image = ring + 0.02 * (row.fd or 0) * noise.standard_normal((8, 8))
        top, left = 1 + i // 5 * 9, 1 + i % 5 * 9
        sheet[top : top + 8, left : left + 8] = (255 * image.clip(0, 1)).astype(np.uint8)[..., None]
    buffer = io.BytesIO()
    Image.fromarray(sheet).save(buffer, format="png")
    return buffer.getvalue()
