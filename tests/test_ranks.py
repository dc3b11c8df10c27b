"""Several processes train what one process trains: DDP, FSDP2, hybrid shards, recomputing, compiling.

Real processes over gloo (tests/among.py). "Equal" is to rounding: sums over ranks are made in another order.
"""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from among import Job, Trained, across, alone
from networks import EVERY_SWITCH, overrides
from saved import identical, weights
from scaledit import checkpoint, load
from scaledit.data.order import samples_at
from scaledit.data.sets import digits
from scaledit.errors import UsageError
from scaledit.training import log
from scaledit.training.dit import train
from scaledit.training.events import Event, Skipped, Started
from scaledit.training.loop import RunContext
from scaledit.training.ranks import Ranks
from tiny import TINY, tiny

FSDP = "engine.parallel=fsdp"
MUON = "optimizer.algorithm=muon"
EVERY_PART = ("model.conditioning=adaln_single", *overrides(EVERY_SWITCH))
"""Of the network, that is not the paper's."""
PAPER_RATE = ("optimizer.learning_rate=1e-4", "optimizer.warmup_steps=0")
TIMES = -1
"""The column of a table that holds the drawn times."""


def off(a: list[float], b: list[float]) -> float:
    assert len(a) == len(b)
    return max(abs(x - y) for x, y in zip(a, b, strict=True))


def furthest(a: Trained, b: Trained) -> dict[str, float]:
    """The largest difference of each parameter and of its average; the key part of qkv.bias apart, whose
    gradient is zero but for rounding, which Adam scales up to the learning rate."""
    found = {}
    for name, value in a.weights.items():
        apart = (value - b.weights[name]).abs()
        if name.endswith("qkv.bias"):
            query, key, of_value = apart.chunk(3)
            found[name] = max(float(query.max()), float(of_value.max()))
            found[f"{name} (keys)"] = float(key.max())
        else:
            found[name] = float(apart.max())
    return found


def test_two_ranks_train_as_one_process(tmp_path: Path):
    """The same samples, times and noise in the same places of each batch; losses to 1e-6 over 50 steps."""
    wrong = 3 * 16 + 11  # step 3, in rank 1's half
    jobs = {
        "ddp": Job(),
        "fsdp": Job((FSDP, *PAPER_RATE)),
        "uneven shards": Job(("train.batch_size=15", "train.accumulate=15", FSDP), steps=10),
        "learned times": Job(
            ("diffusion.times=loss_second_moment", "optimizer.clip=0.2", "train.accumulate=2"), steps=12
        ),
        "learned times, shards": Job(
            ("diffusion.times=loss_second_moment", "optimizer.clip=0.2", FSDP), steps=12
        ),
        "poisoned": Job(steps=8, poisoned=(wrong,)),
        "muon": Job((MUON, *PAPER_RATE, "optimizer.algorithm.weight_decay=0.1"), steps=15),
        "muon, shards": Job((MUON, *PAPER_RATE, "optimizer.base_width=4", FSDP), steps=15),
        "every part": Job((*EVERY_PART, "engine.recompute=blocks", *PAPER_RATE), steps=8),
        "every part, shards": Job((*EVERY_PART, "engine.recompute=blocks", FSDP, *PAPER_RATE), steps=8),
    }
    bf16 = ("train.precision=bf16", *PAPER_RATE)
    rough = {"copies": Job(bf16, steps=10), "shards": Job((*bf16, FSDP), steps=10)}
    two = across(2, jobs | rough, tmp_path)
    one = {name: alone(job) for name, job in jobs.items()}
    for name in jobs:
        a, b = one[name], two[name]
        times = a.tables[..., TIMES] - b.tables[..., TIMES]
        assert float(times.abs().max()) < 1e-15, name  # uniform draws are equal; a logit is rounded
        assert a.skipped == b.skipped, name
        assert all(skipped == a.skipped for skipped in b.elsewhere), name
        finite = a.tables.isfinite()
        assert torch.equal(finite, b.tables.isfinite()), name
        assert float((a.tables - b.tables)[finite].abs().max()) < 2e-6, name  # sample by sample
        steps = [step for step, skipped in enumerate(a.skipped) if not skipped]
        assert off([a.losses[s] for s in steps], [b.losses[s] for s in steps]) < 1e-6, name
        assert off([a.norms[s] for s in steps], [b.norms[s] for s in steps]) < 2e-6, name
    # Every parameter, at the paper's rate.
    for name in ("fsdp", "muon", "muon, shards", "every part", "every part, shards"):
        assert max(furthest(one[name], two[name]).values()) < 2e-7, name
    apart = furthest(one["ddp"], two["ddp"])
    keys = {name: apart.pop(name) for name in list(apart) if name.endswith("(keys)")}
    assert max(apart.values()) < 1e-5  # at 50 times that rate
    assert 1e-5 < max(keys.values()) < 50 * 5e-3
    assert [step for step, skipped in enumerate(one["poisoned"].skipped) if skipped] == [3]
    # bf16: FSDP2 casts the weights, autocast the operands; averages and moments stay in float32.
    fp32 = one["fsdp"].losses[:10]
    assert 0 < off(two["copies"].losses, fp32) < 5e-3
    assert 0 < off(two["shards"].losses, fp32) < 5e-3
    assert all(value.dtype == torch.float32 for value in two["shards"].weights.values())


def losses(out: Path) -> list[float]:
    return [line["loss"] for line in log.read(out) if line["event"] == "stepped"]


def test_a_run_goes_on_with_other_ranks(tmp_path: Path):
    """World 1 -> 2 -> 1, and DDP -> FSDP2 -> one process, which reads the shards; the same ranks: bits.
    And of a sample that is not finite all ranks hear."""
    power = ("ema.power=[0.05,0.1]", "ema.snapshots=1", "ema.snapshot_precision=fp32")
    common = ("checkpoint.every=10", *PAPER_RATE, *power)
    odd = ("checkpoint.every=10", "checkpoint.keep=3", "train.batch_size=15", *power)

    def job(name: str, steps: int, *more: str, settings: tuple[str, ...] = common) -> Job:
        return Job((*settings, f"train.steps={steps}", *more), out=str(tmp_path / name))

    alone(job("whole", 30))
    alone(job("worlds", 10))
    jobs = {
        "worlds": job("worlds", 20),
        "copies": job("kinds", 10),
        "shards": job("kinds", 20, FSDP),
        "copies, muon": job("muon-kinds", 10, MUON),
        "shards, muon": job("muon-kinds", 20, MUON, FSDP),
    }
    alone(job("muon-whole", 30, MUON))
    kinds = {"ddp": (), "fsdp": (FSDP,), "muon": (MUON, FSDP)}
    for kind, how in kinds.items():
        jobs |= {
            f"{kind}, whole": job(f"{kind}-odd-whole", 20, *how, settings=odd),
            f"{kind}, begun": job(f"{kind}-odd-parts", 10, *how, settings=odd),
            f"{kind}, ended": job(f"{kind}-odd-parts", 20, *how, settings=odd),
        }
        smaller = (*odd, "train.batch_size=10")
        longer = {
            f"{kind}, whole, longer": job(f"{kind}-odd-whole", 30, *how, settings=smaller),
            f"{kind}, a little longer": job(f"{kind}-odd-parts", 24, *how, settings=smaller),
            f"{kind}, longer": job(f"{kind}-odd-parts", 30, *how, settings=smaller),
        }
        jobs |= {name: dataclasses.replace(one, changes="accept") for name, one in longer.items()}
    bad = [2 * 16 + 3, 5 * 16 + 12]  # in rank 0's half of a batch, in rank 1's
    jobs["poisoned"] = Job(("train.steps=8",), out=str(tmp_path / "poisoned"), poisoned=tuple(bad))
    found = across(2, jobs, tmp_path)
    check_culprits(found["poisoned"].events, bad)
    assert not [trained.error for trained in found.values() if trained.error]
    for kind in kinds:
        for step in (20, 30):
            whole, parts = (weights(tmp_path / f"{kind}-odd-{name}", step) for name in ("whole", "parts"))
            assert identical(whole, parts), (kind, step)
            whole, parts = (averages(tmp_path / f"{kind}-odd-{name}", step) for name in ("whole", "parts"))
            assert identical(whole, parts), (kind, step)

    sharded = tmp_path / "kinds" / "checkpoints" / checkpoint.folder_name(20)
    names = {str(file.relative_to(sharded)) for file in sharded.rglob("*") if file.is_file()}
    assert len([name for name in names if name.startswith("sharded/")]) == 2
    assert all(name == "manifest.json" or name.endswith(".safetensors") for name in names)  # no pickle
    images = {name: load(tmp_path / name)([3, 5], seed=1, steps=4) for name in ("kinds", "worlds")}
    apart = images["kinds"].astype(int) - images["worlds"]
    assert abs(apart).max() <= 1  # a pixel may round to its neighbor

    others = {"worlds": ("whole", ()), "kinds": ("whole", ()), "muon-kinds": ("muon-whole", (MUON,))}
    for name, (whole, how) in others.items():
        last = alone(job(name, 30, *how))
        started = next(event for event in last.events if isinstance(event, Started))
        assert (started.step, last.error) == (20, "")
        assert off(losses(tmp_path / name), losses(tmp_path / whole)) < 1e-6
        a, b = weights(tmp_path / name, 30), weights(tmp_path / whole, 30)
        assert a.keys() == b.keys()
        assert max(float((a[key] - b[key]).abs().max()) for key in a) < 1e-6, name
        a, b = averages(tmp_path / name, 30), averages(tmp_path / whole, 30)
        assert a.keys() == b.keys()
        assert max(float((a[key] - b[key]).abs().max()) for key in a) < 1e-6, name
    # What ran out of memory may go on in smaller parts.
    assert alone(job("worlds", 32, "train.accumulate=4")).error == ""


def averages(out: Path, step: int) -> dict[str, torch.Tensor]:
    """The snapshot of the power-function averages after a step."""
    return checkpoint.open_checkpoint(out / "averages" / checkpoint.folder_name(step)).tensors("power")


def check_culprits(events: list[Event], bad: list[int]) -> None:
    """That the steps with these positions of the stream were skipped, and their samples named."""
    config, size = tiny(), len(digits())
    batch, seed = config.train.batch_size, config.train.seed
    skipped = [event for event in events if isinstance(event, Skipped)]
    assert [event.step - 1 for event in skipped] == [position // batch for position in bad]
    for event, position in zip(skipped, bad, strict=True):
        first = position // batch * batch
        assert event.samples == samples_at(range(first, first + batch), size, seed).tolist()
        assert event.culprits == samples_at(range(position, position + 1), size, seed).tolist()


def command(*words: str) -> list[str]:
    return ["scaledit.cli", "train", "digits", "--device", "cpu", *TINY, *words]


@pytest.mark.parametrize("starter", ["torchrun", pytest.param("nproc", marks=pytest.mark.slow)])
def test_the_command_line_with_two_ranks(starter: str, tmp_path: Path):
    words = command("--out", str(tmp_path / "run"), "train.steps=6", "checkpoint.every=3", "--json")
    words += ["evaluate.num=10", "evaluate.seeds=1"]
    if starter == "torchrun":
        torchrun = ["torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m"]
        words = [*torchrun, *words]
    else:
        words += ["--nproc", "2"]
    done = subprocess.run(
        [sys.executable, "-m", *words],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    printed = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert [line["step"] for line in printed] == [6]  # one rank tells
    started = next(line for line in log.read(tmp_path / "run") if line["event"] == "started")
    assert started["ranks"] == 2
    assert losses(tmp_path / "run") == pytest.approx(alone(Job(steps=6)).losses, abs=1e-6)
    assert json.loads((tmp_path / "run" / "status.json").read_text())["state"] == "finished"
    assert (tmp_path / "run" / "report.html").is_file()


def test_fewer_samples_than_ranks_are_refused(tmp_path: Path):
    around = RunContext(Ranks(torch.device("cpu"), rank=1, world=4))
    with pytest.raises(
        UsageError, match=r"train.batch_size 3 is less than one image for each of the 4 ranks"
    ):
        next(train(tiny("train.batch_size=3"), tmp_path / "run", context=around))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("how", ["blocks", "selective"])
@pytest.mark.parametrize("family", ["in_context", "cross_attention", "adaln", "adaln_zero"])
def test_recomputing_changes_no_bit(family: str, how: str):
    model = f"model.conditioning={family}"
    plain = alone(Job((model,), steps=3))
    again = alone(Job((model, f"engine.recompute={how}"), steps=3))
    assert again.losses == plain.losses
    assert all(torch.equal(again.weights[key], value) for key, value in plain.weights.items())


@pytest.mark.slow
def test_four_ranks_and_hybrid_shards(tmp_path: Path):
    """Two machines of two ranks: shards within, copies between. Recomputing changes no bit there either."""
    hybrid = "engine.parallel=hybrid"
    jobs = {
        "copies": Job(),
        "shards": Job((FSDP,)),
        "hybrid": Job((hybrid,)),
        "hybrid, blocks": Job((hybrid, "engine.recompute=blocks")),
        "hybrid, selective": Job((hybrid, "engine.recompute=selective")),
    }
    rate = (MUON, *PAPER_RATE, "model.hidden_size=20")
    muon = {
        "muon, copies": Job(rate),
        "muon, shards": Job((*rate, FSDP)),
        "muon, hybrid": Job((*rate, hybrid)),
    }

    def copied(name: str, steps: int) -> Job:
        return Job((*PAPER_RATE, "checkpoint.every=4", f"train.steps={steps}"), out=str(tmp_path / name))

    resumed = {"whole": copied("whole", 8), "begun": copied("parts", 4), "ended": copied("parts", 8)}
    four, one = across(4, jobs | muon | resumed, tmp_path, per_machine=2), alone(Job())
    # From three ranks on, the order of a sum matters: a resumed run must sum as an uninterrupted one.
    assert identical(weights(tmp_path / "whole", 8), weights(tmp_path / "parts", 8))
    for name in jobs:
        assert off(four[name].losses, one.losses) < 1e-6, name
    one = alone(muon["muon, copies"])
    for name in muon:
        assert off(four[name].losses, one.losses) < 1e-6, name
        assert max(furthest(one, four[name]).values()) < 2e-7, name
    for name in ("hybrid, blocks", "hybrid, selective"):
        assert four[name].losses == four["hybrid"].losses
        assert all(
            torch.equal(four[name].weights[key], value) for key, value in four["hybrid"].weights.items()
        )


@pytest.mark.slow
def test_compiled_blocks_stay_within_1e_4(tmp_path: Path):
    compiled = "engine.compile=true"
    jobs = {
        "copies": Job((compiled,)),
        "shards": Job((compiled, FSDP)),
        "recomputed": Job((compiled, "engine.recompute=selective"), steps=20),
    }
    two, plain = across(2, jobs, tmp_path), alone(Job())
    for name, trained in {**two, "alone": alone(jobs["copies"])}.items():
        assert off(trained.losses, plain.losses[: len(trained.losses)]) < 1e-4, name
