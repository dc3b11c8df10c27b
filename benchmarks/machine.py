"""On what a measurement was made, and how much the machine can do at best."""

from __future__ import annotations

import platform
import time
from pathlib import Path
from typing import Any

import numpy as np
import scipy
import torch

from scaledit import __version__


def described() -> dict[str, Any]:
    """What a result's reader needs to know of the machine and the libraries."""
    return {
        "processor": _processor(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "scipy": scipy.__version__,
        "scaledit": __version__,
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def seconds(call, repeats: int = 3) -> float:
    """The fastest of `repeats` calls: what the machine can do when nothing else is in the way."""
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        call()
        times.append(time.perf_counter() - began)
    return min(times)


def roof(side: int = 2048) -> float:
    """Floating-point operations a second of a large float32 matrix product: 2 side^3 of them."""
    a, b = torch.randn(side, side), torch.randn(side, side)
    a @ b
    return 2 * side**3 / seconds(lambda: a @ b, repeats=5)
