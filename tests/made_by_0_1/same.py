"""What is compared to the bit, and where it can be."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor


def machine() -> dict[str, str]:
    """The processor and the libraries whose sums are rounded otherwise elsewhere."""
    about = {"architecture": platform.machine()}
    cpuinfo = Path("/proc/cpuinfo")
    for line in cpuinfo.read_text().splitlines() if cpuinfo.is_file() else ():
        key, _, value = line.partition(":")
        if key.strip() in ("model name", "cpu family", "model", "stepping"):
            about.setdefault(key.strip(), value.strip())
    return {
        **about,
        "capability": torch.backends.cpu.get_cpu_capability(),
        "torch": torch.__version__,
        "numpy": np.__version__,
    }


def digests(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """SHA-256 of all tensors of each part of a checkpoint ("model/...", "ema/..."), whatever their names."""
    parts: dict[str, list[str]] = {}
    for name, value in tensors.items():
        one = hashlib.sha256(value.contiguous().numpy().tobytes()).hexdigest()
        parts.setdefault(name.partition("/")[0], []).append(one)
    return {part: hashlib.sha256("".join(sorted(ones)).encode()).hexdigest() for part, ones in parts.items()}
