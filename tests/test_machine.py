"""The machine's own rate, which speeds are shares of."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from scaledit import machine


@pytest.fixture(autouse=True)
def one_thread():
    """Products of several threads slow down tenfold while other programs run."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    machine._roof.cache_clear()
    yield
    torch.set_num_threads(before)
    machine._roof.cache_clear()


def test_the_roof_is_the_rate_of_a_matrix_product_in_its_own_precision():
    before = torch.get_float32_matmul_precision()
    a, b = torch.randn(768, 768), torch.randn(768, 768)
    for _ in range(5):  # other people's programs come and go
        machine._roof.cache_clear()
        roof = machine.roof("cpu", "fp32")
        measured = 2 * 768**3 / machine.seconds(lambda: a @ b, repeats=10)
        if 0.4 < roof / measured < 2.5:
            break
    else:
        pytest.fail(f"{roof / measured:.2g} times the rate of a product, five times over")
    assert machine.roof(torch.device("cpu")) == roof  # measured once a process: two measurements differ
    assert machine.roof("cpu", "bf16") != roof
    assert torch.get_float32_matmul_precision() == before


def test_measuring_draws_nothing_from_the_global_generator():
    before = torch.get_rng_state()
    machine.roof()
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
