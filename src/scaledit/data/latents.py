"""Encoded images: posterior moments of an autoencoder, drawn anew each time they are seen.

    x_0 = scale (mean + exp(clamp(logvar, -30, 20) / 2) eps)          (paper, section 4: drawn, not the mode)

A folder of index.json and safetensors shards (docs/data.md):

    index.json         {"scale": 0.18215, "class_names": [...], "shards": ["00000.safetensors", ...]}
    00000.safetensors  moments (N, 2C, H, W), labels (N,) int64, and moments_flipped for horizontal flips
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from scaledit.data.sets import Batch
from scaledit.diffusion.noise import Stream, normal, uniform
from scaledit.errors import UsageError

INDEX = "index.json"
LOG_VARIANCE_RANGE = (-30.0, 20.0)
"""As latent diffusion's autoencoders clamp it."""


@dataclass(frozen=True)
class Latents:
    """Shards opened for reading, memory-mapped: a batch touches its own samples only."""

    shards: tuple[Any, ...]  # safetensors' safe_open handles
    ends: np.ndarray  # ends[k]: samples in shards 0..k
    labels: Tensor
    shape: tuple[int, int, int]
    scale: float
    class_names: tuple[str, ...]
    flip: bool

    @classmethod
    def open(cls, path: str, *, flip: bool) -> Latents:
        """Raises UsageError naming what is missing or does not fit."""
        from safetensors import SafetensorError, safe_open

        folder = Path(path)
        try:
            index = json.loads((folder / INDEX).read_bytes())
            scale, names = float(index["scale"]), tuple(map(str, index["class_names"]))
            files = [folder / str(name) for name in index["shards"]]
        except FileNotFoundError:
            raise UsageError(f"{folder} holds no encoded images: there is no {INDEX}") from None
        except (ValueError, KeyError, TypeError) as error:
            raise UsageError(f"{folder / INDEX} is not an index of encoded images ({error})") from None
        needed = {"moments", "labels"} | ({"moments_flipped"} if flip else set())
        shards, labels, counts, shapes = [], [], [], set()
        for file in files:
            try:
                shard = safe_open(file, framework="pt")
            except (OSError, SafetensorError) as error:
                raise UsageError(f"{file} cannot be read as safetensors ({error})") from None
            missing = sorted(needed - set(shard.keys()))
            if missing:
                hint = "; encode both flips or set data.flip=false" if missing == ["moments_flipped"] else ""
                raise UsageError(f"{file} has no {missing[0]}{hint}")
            n, *shape = shard.get_slice("moments").get_shape()
            part = shard.get_tensor("labels").long()
            if len(shape) != 3 or shape[0] % 2 or part.shape != (n,):
                raise UsageError(f"{file}: moments must be (N, 2C, H, W) and labels (N,)")
            if n and not 0 <= int(part.min()) <= int(part.max()) < len(names):
                raise UsageError(f"{file} has labels outside 0..{len(names) - 1}, the classes of {INDEX}")
            shards.append(shard)
            labels.append(part)
            counts.append(n)
            shapes.add(tuple(shape))
        if len(shapes) != 1 or not sum(counts):
            raise UsageError(
                f"{folder}: shards must hold samples of one shape, found {sorted(shapes) or 'none'}"
            )
        two_c, h, w = shapes.pop()
        return cls(
            tuple(shards), np.cumsum(counts), torch.cat(labels), (two_c // 2, h, w), scale, names, flip
        )

    def __len__(self) -> int:
        return int(self.ends[-1])

    def batch(self, indices: np.ndarray, positions: range, seed: int) -> Batch:
        flipped = uniform(seed, positions, Stream.TRAIN_FLIP) < 0.5 if self.flip else [False] * len(indices)
        moments = torch.stack([self._read(int(i), bool(f)) for i, f in zip(indices, flipped, strict=True)])
        mean, log_variance = moments.float().chunk(2, dim=1)
        eps = normal(seed, positions, self.shape, Stream.TRAIN_LATENT)
        x0 = self.scale * (mean + torch.exp(0.5 * log_variance.clamp(*LOG_VARIANCE_RANGE)) * eps)
        return Batch(x0, self.labels[torch.from_numpy(indices)])

    def _read(self, index: int, flipped: bool) -> Tensor:
        k = int(np.searchsorted(self.ends, index, side="right"))
        row = index - (int(self.ends[k - 1]) if k else 0)
        return self.shards[k].get_slice("moments_flipped" if flipped else "moments")[row]
