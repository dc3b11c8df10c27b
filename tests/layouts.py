"""Small models with no zero weight, in the layouts of other programs."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from scaledit import DiT, DiTConfig, load
from scaledit.cli import main
from scaledit.interop import official

HEADS = 2
OPTIONS = ["--heads", str(HEADS), "--num-classes", "5"]
"""For `config`, whose size is not one of the paper's and whose six rows of labels are ambiguous."""
TOLERANCE = 1e-6
"""Largest difference of outputs over the largest output."""


def config(depth: int = 2, width: int = 16, **changes: object) -> DiTConfig:
    base = DiTConfig(
        input_size=8,
        patch_size=2,
        in_channels=4,
        hidden_size=width,
        depth=depth,
        num_heads=HEADS,
        num_classes=5,
    )
    return replace(base, **changes)  # type: ignore[arg-type]


def random_dit(shape: DiTConfig, seed: int = 0) -> DiT:
    """A network without zero weights, so that every layer contributes to the output."""
    generator, dit = torch.Generator().manual_seed(seed), DiT(shape).eval()
    with torch.no_grad():
        for parameter in dit.parameters():
            spread = 0.3 / math.sqrt(shape.hidden_size / 16)
            parameter.copy_(spread * torch.randn(parameter.shape, generator=generator))
    return dit


def official_state(dit: DiT) -> dict[str, Tensor]:
    """The official state dict, with the position table computed in numpy as that program does."""
    shape = dit.config
    rows, columns, quarter = (
        shape.height // shape.patch_size,
        shape.width // shape.patch_size,
        shape.hidden_size // 4,
    )
    omega = 1.0 / 10000 ** (np.arange(quarter, dtype=np.float64) / quarter)
    column, row = np.meshgrid(np.arange(columns, dtype=np.float32), np.arange(rows, dtype=np.float32))
    angles = [np.einsum("m,d->md", grid.reshape(-1), omega) for grid in (column, row)]
    table = np.concatenate([part for angle in angles for part in (np.sin(angle), np.cos(angle))], axis=1)
    state = {key: value.clone() for key, value in official.export(dit).items()}
    return {**state, "pos_embed": torch.from_numpy(table).float().unsqueeze(0)}


def inputs(shape: DiTConfig) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(4, *shape.shape, generator=generator)
    return x, torch.tensor([0, 37, 500, 999]), torch.tensor([0, 1, 2, shape.num_classes])


def distance(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max() / b.abs().max())


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    """Bit for bit."""
    return a.keys() == b.keys() and all(
        a[key].dtype == b[key].dtype and a[key].shape == b[key].shape and bool((a[key] == b[key]).all())
        for key in a
    )


def convert(*arguments: object) -> None:
    assert main(["convert", *map(str, arguments)]) == 0


@torch.no_grad()
def outputs(path: Path, shape: DiTConfig) -> Tensor:
    pipeline = load(path, device="cpu")
    assert replace(pipeline.config.model, class_dropout=0.1) == shape
    return pipeline.net(*inputs(shape))
