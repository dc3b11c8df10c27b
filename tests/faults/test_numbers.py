"""Non-finite numbers, exhausted memory, and a changing number of ranks."""

from __future__ import annotations

import resource
from pathlib import Path

import jobs
import pytest
from jobs import start, start_ranks

from saved import identical, weights

pytestmark = pytest.mark.faults
KEY_BIASES = "qkv.bias"


def test_nan_gradient_on_one_rank(tmp_path: Path, happened):
    """The gradient is NaN on one rank only"""
    out = tmp_path / "run"
    job = jobs.start_script_ranks(Path(__file__).with_name("poisoned.py"), out, 2, "train.steps=30")
    code, said = job.wait(), job.said()
    assert code == 0, said
    (skipped,) = jobs.events(out, "skipped")
    assert (skipped["step"], skipped["skipped"], skipped["culprits"]) == (12, 1, [])
    assert len(skipped["samples"]) == 16
    left_out = tmp_path / "left-out"
    other = jobs.start_script_ranks(Path(__file__).with_name("poisoned.py"), left_out, 2, "train.steps=30")
    assert other.wait() == 0
    assert identical(weights(out, 30), weights(left_out, 30))
    happened(
        "a backward pass that gives NaN on rank 1 of 2 at step 12",
        "Step 12 is skipped on both ranks and counted, and its 16 samples are logged. Training continues; a "
        "second run of the same command is bit-identical.",
    )


def test_world_changes(tmp_path: Path, happened):
    """A run resumes with another number of ranks"""
    alone, out = tmp_path / "alone", tmp_path / "run"
    steps, paper = (f"train.steps={n}" for n in (60, 60)), "optimizer.learning_rate=1e-4"
    assert start(alone, next(steps), paper).wait() == 0
    for nproc, until_step in ((1, 20), (2, 40), (1, 60)):
        job = (
            start(out, f"train.steps={until_step}", paper)
            if nproc == 1
            else start_ranks(out, nproc, f"train.steps={until_step}", paper)
        )
        assert job.wait() == 0, job.said()
    a, b = weights(alone, 60), weights(out, 60)
    worst = max(float((a[key] - b[key]).abs().max()) for key in a if key.startswith("model"))
    assert worst < 1e-5
    losses = [[event["loss"] for event in jobs.events(where, "stepped")] for where in (alone, out)]
    apart = max(abs(x - y) for x, y in zip(*losses, strict=True))
    assert apart < 1e-6
    happened(
        "20 steps with one process, 20 with two ranks, 20 with one process",
        f"Losses are within {apart:.0e} and weights within {worst:.0e} of those of a run with one process.",
    )


def test_out_of_memory(tmp_path: Path, happened):
    """Memory runs out"""
    out = tmp_path / "run"
    large = ("train.batch_size=8192", "model.hidden_size=64", "train.steps=3", "checkpoint.every=3")
    job = start(out, *large, before=little_memory)
    code, said = job.wait(), " ".join(job.said().split())
    assert code == 0, said
    halved = jobs.events(out, "halved")
    assert halved, said
    assert "out of memory" in said
    roomy = start(tmp_path / "roomy", *large)
    assert roomy.wait() == 0, roomy.said()
    losses = [
        [event["loss"] for event in jobs.events(where, "stepped")] for where in (out, tmp_path / "roomy")
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    happened(
        "a limit on the address space (RLIMIT_AS) of 600 MB above the initial use; batch size 8,192",
        f"The run switches to micro-batches of {halved[-1]['micro_batch']} and reports it. The batch is the "
        "same, and the losses agree within 1e-5.",
    )


def little_memory() -> None:
    """Limits the address space to 600 MB more than this process uses now."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + 600 * (1 << 20)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
