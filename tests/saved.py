"""Reads and compares what a run has saved, tensor by tensor."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from scaledit import checkpoint


def weights(out: Path, step: int | None = None) -> dict[str, Tensor]:
    """All that the checkpoint of `step` holds, or the newest, every byte verified: weights, average,
    optimizer, times, of all shards."""
    found = checkpoint.find(out / "checkpoints")
    folder = found[-1] if step is None else out / "checkpoints" / checkpoint.folder_name(step)
    checkpoint.open_checkpoint(folder).verify()
    return {
        f"{file.relative_to(folder).with_suffix('')}/{key}": value
        for file in sorted(folder.rglob("*.safetensors"))
        for key, value in load_file(file).items()
    }


def identical(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    """Bit for bit, and neither has more."""
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)
