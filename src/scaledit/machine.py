"""The machine: its description, its measured peak speed, its memory.

    peak = 2 n^3 / the shortest time of a product of two n x n matrices        (a multiply-add counts two)

Speed as a share of the measured peak (MFU) says how much of the machine is used, whatever machine it is.
"""

from __future__ import annotations

import functools
import math
import os
import platform
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scaledit import __version__, checks
from scaledit.posix import POSIX

if TYPE_CHECKING:
    import torch

SMALLEST, LARGEST, LONG = 256, 8192, 0.003
"""n doubles from SMALLEST until a product takes LONG seconds, long enough to reach the device's best rate."""
CGROUP_BOUNDS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
"""Linux's files with the memory limit of a container (cgroups version 2 and 1)."""
BUDGET, AT_LEAST, AT_MOST = 0.05, 3, 50
"""BUDGET: seconds of products of the last n. AT_LEAST: products of each n. AT_MOST: products of the last
n."""


def measured_peak(device: str | torch.device = "cpu", precision: str = "fp32") -> float:
    """FLOP/s of the best of a few large matrix products on `device`, where a multiply-add counts two. It is
    measured once per process, with the threads of that moment, in about 0.1 seconds.

    precision: that of a run: "fp32", "tf32" (on CUDA; fp32 elsewhere), "bf16" or "fp16".
    """
    import torch

    return _measured_peak(str(torch.device(device)), precision)


@functools.cache
def _measured_peak(device: str, precision: str) -> float:
    import torch

    target = torch.device(device)
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision, torch.float32)
    # Not zeros: a device draws less power on zeros and clocks higher.
    generator = torch.Generator(target).manual_seed(0)

    def product_of(side: int) -> Callable[[], None]:
        a, b = (torch.randn(side, side, generator=generator, device=target).to(dtype) for _ in range(2))

        def product() -> None:
            torch.mm(a, b)
            wait(target)

        product()  # warm-up
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
    """Waits until `device` has finished its queued work; a CPU has none."""
    import torch

    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def seconds(call: Callable[[], object], repeats: int = 3) -> float:
    """The time of the fastest of `repeats` calls, the one that other programs disturbed least."""
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        call()
        times.append(time.perf_counter() - began)
    return min(times)


def peak_memory() -> int:
    """The peak resident memory of this process in bytes; 0 on Windows."""
    if not POSIX:
        return 0
    import resource

    try:
        status = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        status = []
    for line in status:
        # Not ru_maxrss, which on Linux starts at the peak of the parent process.
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


def memory(device: str | torch.device = "cpu") -> int:
    """The total memory of `device` in bytes; for a CPU, the limit of the container or job if there is one.
    On Windows that of a CPU is unknown: sys.maxsize."""
    if str(device).startswith("cuda"):
        import torch

        return torch.cuda.mem_get_info(torch.device(device))[1]
    bounds = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")] if POSIX else [sys.maxsize]
    for path in CGROUP_BOUNDS:
        try:
            bounds.append(int(Path(path).read_text()))
        except (OSError, ValueError):  # no such file, or "max"
            continue
    return min(bounds)


def check_memory(need: int, what: str, fix: str, device: str | torch.device = "cpu") -> None:
    """Raises UsageError if `need` bytes exceed the total memory of `device`. This refuses only what cannot
    work; what passes may still run out of memory."""
    whose = "GPU" if str(device).startswith("cuda") else "machine"
    checks.fits(need, memory(device), what, f"of memory that this {whose} has", fix)


def described() -> dict[str, Any]:
    """The processor, threads and library versions, for results."""
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
