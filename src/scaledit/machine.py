"""On what something was measured, how much the machine can do at best, and how much memory a process took.

    peak = 2 n^3 / the shortest time of a product of two n x n matrices        (a multiply-add counts two)

Speed as a share of the measured peak (MFU) says how much of the machine is used, whatever machine it is.
"""

from __future__ import annotations

import functools
import math
import os
import platform
import resource
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scaledit import __version__, checks

if TYPE_CHECKING:
    import torch

SMALLEST, LARGEST, LONG = 256, 8192, 0.003
"""n doubles from SMALLEST until a product takes LONG seconds, enough for the device's best rate."""
CGROUP_BOUNDS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
"""Where Linux says how much memory this container may take (versions 2 and 1)."""
BUDGET, AT_LEAST, AT_MOST = 0.05, 3, 50
"""Seconds of products of the last n; how many of any n at least, and of the last at most."""


def measured_peak(device: str | torch.device = "cpu", precision: str = "fp32") -> float:
    """FLOP/s of the best of a few large matrix products on `device`, a multiply-add counting two; measured
    once a process, with the threads of that moment, in about
    0.1 seconds.

    precision: a run's: "fp32", "tf32" (on CUDA; fp32 elsewhere), "bf16" or "fp16".
    """
    import torch

    return _measured_peak(str(torch.device(device)), precision)


@functools.cache
def _measured_peak(device: str, precision: str) -> float:
    import torch

    where = torch.device(device)
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision, torch.float32)
    # Not zeros: a device draws less power on those, and clocks higher.
    draw = torch.Generator(where).manual_seed(0)

    def product_of(side: int) -> Callable[[], None]:
        a, b = (torch.randn(side, side, generator=draw, device=where).to(dtype) for _ in range(2))

        def product() -> None:
            torch.mm(a, b)
            wait(where)

        product()  # the first one sets things up
        return product

    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
    try:
        side, product = SMALLEST, product_of(SMALLEST)
        best = 0.0
        while (took := seconds(product, repeats=AT_LEAST)) < LONG and side < LARGEST:
            best = max(best, 2 * side**3 / took)
            side *= 2
            product = product_of(side)
        repeats = min(AT_MOST, math.ceil(BUDGET / took))
        return max(best, 2 * side**3 / min(took, seconds(product, repeats)))
    finally:
        torch.set_float32_matmul_precision(before)


def wait(device: torch.device) -> None:
    """Until `device` has done what it was given; a CPU always has."""
    import torch

    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def seconds(call: Callable[[], object], repeats: int = 3) -> float:
    """The fastest of `repeats` calls: what the machine can do when nothing else is in the way."""
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        call()
        times.append(time.perf_counter() - began)
    return min(times)


def peak_memory() -> int:
    """Bytes of memory that this process has held at once, at most."""
    try:
        status = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        status = []
    for line in status:
        # Not ru_maxrss, which in Linux starts at the peak of the process that started this one.
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


def memory(device: str | torch.device = "cpu") -> int:
    """Bytes of memory that `device` has in all; of a CPU, what this process may use of the machine's, if a
    container or a job bounds it."""
    if str(device).startswith("cuda"):
        import torch

        return torch.cuda.mem_get_info(torch.device(device))[1]
    bounds = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for path in CGROUP_BOUNDS:
        try:
            bounds.append(int(Path(path).read_text()))
        except (OSError, ValueError):  # none there, or "max"
            continue
    return min(bounds)


def check_memory(need: int, what: str, fix: str, device: str | torch.device = "cpu") -> None:
    """Raises UsageError where `need` bytes are more than `device` has at all. What fits in principle may
    still run out of memory: the bound is there to refuse what cannot be meant."""
    whose = "GPU" if str(device).startswith("cuda") else "machine"
    checks.fits(need, memory(device), what, f"of memory that this {whose} has", fix)


def described() -> dict[str, Any]:
    """What a result's reader needs to know of the machine and the libraries."""
    import torch

    return {
        "processor": _processor(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": version("numpy"),
        "scipy": version("scipy"),
        "scaledit": __version__,
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
