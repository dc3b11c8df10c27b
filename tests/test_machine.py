"""The machine's own rate, which speeds are shares of."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import types
from pathlib import Path

import pytest
import torch

from scaledit import machine


@pytest.fixture(autouse=True)
def nothing_measured():
    machine._measured_peak.cache_clear()
    yield
    machine._measured_peak.cache_clear()


class Imagined:
    """A machine with a clock of its own: a product takes what it must at the rate of its precision, and a
    third more each time that something else runs, and a tenth of a millisecond to begin with."""

    RATES = {  # noqa: RUF012
        (torch.float32, "highest"): 40e9,
        (torch.float32, "high"): 70e9,
        (torch.bfloat16, "highest"): 160e9,
        (torch.float16, "highest"): 80e9,
    }
    BUSY, OVERHEAD = 1 / 3, 1e-4

    def __init__(self, monkeypatch: pytest.MonkeyPatch):
        self.now, self.sides, real = 0.0, [], torch.mm
        monkeypatch.setattr(machine, "time", types.SimpleNamespace(perf_counter=lambda: self.now))

        def mm(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
            self.sides.append(side := len(a))
            rate = self.RATES[a.dtype, torch.get_float32_matmul_precision()]
            busy = self.BUSY if len(self.sides) % 3 else 0
            self.now += self.OVERHEAD + (1 + busy) * 2 * side**3 / rate
            return real(a[:2], b[:, :2])

        monkeypatch.setattr(torch, "mm", mm)


@pytest.mark.parametrize(
    ("precision", "rate", "side"),
    [("fp32", 40e9, 512), ("tf32", 70e9, 512), ("bf16", 160e9, 1024), ("fp16", 80e9, 512)],
)
def test_the_roof_is_the_rate_of_the_best_product_in_its_own_precision(
    precision: str, rate: float, side: int, monkeypatch: pytest.MonkeyPatch
):
    """side: the first whose product takes LONG."""
    before, imagined = torch.get_float32_matmul_precision(), Imagined(monkeypatch)
    roof = machine.measured_peak("cpu", precision)
    least = 2 * side**3 / rate
    assert least > machine.LONG > 2 * (side / 2) ** 3 / rate + imagined.OVERHEAD
    assert roof == pytest.approx(2 * side**3 / (least + imagined.OVERHEAD), rel=1e-9)
    assert set(imagined.sides) == {256, 512, side}
    assert imagined.sides.count(side) >= machine.BUDGET / least  # the best of many
    assert imagined.now < 5 * machine.BUDGET
    assert torch.get_float32_matmul_precision() == before


def test_the_roof_is_measured_once_a_process():
    roof = machine.measured_peak("cpu", "fp32")
    assert math.isfinite(roof) and roof > 0
    assert machine.measured_peak(torch.device("cpu")) == roof  # two measurements differ
    assert machine.measured_peak("cpu", "bf16") != roof


def test_measuring_draws_nothing_from_the_global_generator():
    before = torch.get_rng_state()
    machine.measured_peak()
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process's own peak of memory")
def test_memory_is_that_of_the_process_and_not_of_the_one_that_started_it():
    code = (
        "from scaledit.machine import peak_memory; before = peak_memory()\n"
        "held = b'1' * 2**27; del held; print(before, peak_memory())"
    )
    held = torch.ones(2**27)  # 512 MiB
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    before, after = map(int, done.stdout.split())
    assert machine.peak_memory() > 4 * len(held)
    assert before < 2**27
    assert abs(after - before - 2**27) < 2**24


def test_results_say_the_same_of_a_machine_as_they_did():
    results = Path(__file__).parents[1] / "benchmarks" / "results" / "latents.json"
    assert machine.described().keys() == json.loads(results.read_text())["machine"].keys()
