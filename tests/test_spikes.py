"""Losses out of line: the detector's formula, how often it is wrong, and going back to leave batches out."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from among import ALONE, Job, across, alone
from saved import identical, weights
from scaledit import checkpoint
from scaledit.config import TrainConfig
from scaledit.data.order import samples_at
from scaledit.data.sets import digits
from scaledit.training import log
from scaledit.training.dit import train
from scaledit.training.events import Event, Finished, RolledBack, Spiked, Started, Stepped
from scaledit.training.loop import MOST_ROLLBACKS
from scaledit.training.spikes import FEWEST, WINDOW, SpikeDetector
from scaledit.training.state import TrainState
from tiny import tiny


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=WINDOW + 60),
    st.floats(0, 30) | st.just(0.0),
)
def test_detector_against_its_formula(losses: list[float], factor: float):
    detector = SpikeDetector(factor)
    for i, loss in enumerate(losses):
        before = np.array(losses[max(0, i - WINDOW) : i])
        threshold = math.inf
        if len(before) >= FEWEST and factor > 0:
            middle = np.median(before)
            threshold = float(middle + factor * 1.4826 * np.median(np.abs(before - middle)))
        assert detector.threshold() == pytest.approx(threshold, rel=1e-12, abs=1e-9)
        exact = detector.threshold()
        assert detector.see(loss) == (exact if loss > exact else None)


@pytest.mark.parametrize("kind", ["normal", "lognormal", "exponential", "student5"])
def test_stationary_losses_are_almost_never_flagged(kind: str):
    """At the default factor, in 20,000 steps; Student's t with 5 degrees of freedom has no sixth moment."""
    rng = np.random.default_rng(0)
    losses = {
        "normal": lambda n: rng.normal(1, 0.2, n),
        "lognormal": lambda n: rng.lognormal(0, 0.4, n),
        "exponential": lambda n: rng.exponential(1, n),
        "student5": lambda n: rng.standard_t(5, n),
    }[kind](20_000)
    detector = SpikeDetector(TrainConfig().spike)
    flagged = sum(detector.see(float(loss)) is not None for loss in losses)
    assert flagged < 20
    assert detector.see(100.0) is not None


EVERY, SPIKE, STEPS, BATCH = 10, 60, 78, 16
POISON = (SPIKE * BATCH + 3, (SPIKE + 1) * BATCH + 12)
"""Two batches in a row have an image that is finite and huge."""
OVERRIDES = ("train.rollback=true", f"checkpoint.every={EVERY}", f"train.steps={STEPS}")


def poisoned(out: Path, *overrides: str, positions: tuple[int, ...] = POISON) -> Job:
    return Job((*OVERRIDES, *overrides), out=str(out), poisoned=positions, factor=1e4)


def events_of(job: Job) -> list[Event]:
    trained = alone(job)
    assert trained.error == ""
    return trained.events


@pytest.mark.parametrize("workers", [0, 2])
def test_a_run_goes_back_and_leaves_the_batches_out(workers: int, tmp_path: Path):
    """What it trains then is what a run would that never saw those two batches."""
    loading = ("data.name=images", f"data.workers={workers}")
    events = events_of(poisoned(tmp_path / "run", *loading))
    spiked = [event for event in events if isinstance(event, Spiked)]
    assert [event.step for event in spiked] == [SPIKE + 1, SPIKE + 1]
    for event, position in zip(spiked, POISON, strict=True):
        worst = samples_at(range(position, position + 1), len(digits()), tiny().train.seed)[0]
        assert event.samples[0] == worst
        assert len(event.samples) == BATCH
        assert event.loss > event.threshold
    back = [event for event in events if isinstance(event, RolledBack)]
    assert back == [RolledBack(SPIKE, SPIKE + 1, 1), RolledBack(SPIKE, SPIKE + 1, 2)]
    assert isinstance(events[-1], Finished)

    never = TrainState.create(tiny(*OVERRIDES), digits(), ALONE)
    for _ in range(SPIKE):
        never.train_step()
    never.position += 2 * BATCH
    for _ in range(STEPS - SPIKE):
        never.train_step()
    expected = {
        f"{part}/{key}": value for part, held in never.state_dict().items() for key, value in held.items()
    }
    assert identical(weights(tmp_path / "run"), expected)

    lines = log.read(tmp_path / "run")
    assert [line["step"] for line in lines if line["event"] == "stepped"] == list(range(1, STEPS + 1))
    assert [line["event"] for line in lines if line["event"] in ("spiked", "rolledback")] == [
        "spiked",
        "rolledback",
    ] * 2


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tensor]:
    """How the poisoned run ends that nobody stops."""
    out = tmp_path_factory.mktemp("undisturbed") / "run"
    assert sum(isinstance(event, RolledBack) for event in events_of(poisoned(out))) == 2
    return weights(out)


@pytest.mark.parametrize(
    ("moment", "resumed"),
    [("spiked", SPIKE), ("back once", SPIKE), ("back twice", SPIKE), ("saved after", 70)],
)
def test_killed_around_a_roll_back_it_ends_in_the_same_bits(
    moment: str, resumed: int, undisturbed: dict[str, Tensor], tmp_path: Path
):
    """resumed: from where, so that what was left out must be known, or be left out again."""
    job = poisoned(tmp_path / "parts")
    events, back = train(tiny(*job.overrides), tmp_path / "parts", device="cpu", dataset=job.dataset()), 0
    for event in events:  # abandoned, as a kill would
        back += isinstance(event, RolledBack)
        now = {
            "spiked": isinstance(event, Spiked),
            "back once": back == 1,
            "back twice": back == 2,
            # Not when `Saved` is told: that may be late. What is being saved is written to its end.
            "saved after": isinstance(event, Stepped) and event.step == resumed + 1 and back == 2,
        }
        if now[moment]:
            break
    else:
        pytest.fail(f"the run ended before it had {moment}")
    events.close()  # pyright: ignore[reportAttributeAccessIssue]
    rest = events_of(job)
    assert next(event.step for event in rest if isinstance(event, Started)) == resumed
    assert sum(isinstance(event, RolledBack) for event in rest) == (0 if moment == "saved after" else 2)
    assert identical(weights(tmp_path / "parts"), undisturbed)
    manifest = json.loads(
        (checkpoint.find(tmp_path / "parts" / "checkpoints")[-1] / "manifest.json").read_text()
    )
    assert manifest["state"]["skipped_batches"] == 2


def test_it_gives_up_where_going_back_does_not_help(tmp_path: Path):
    bad = tuple((SPIKE + i) * BATCH for i in range(MOST_ROLLBACKS + 2))
    trained = alone(poisoned(tmp_path / "run", positions=bad))
    assert sum(isinstance(event, RolledBack) for event in trained.events) == MOST_ROLLBACKS
    assert f"spiked again after {MOST_ROLLBACKS} rollbacks to step {SPIKE}" in trained.error
    assert str(checkpoint.find(tmp_path / "run" / "checkpoints")[-1]) in trained.error


def test_a_spike_is_only_told_of_without_rollback_or_a_checkpoint(tmp_path: Path):
    for name, change in (("off", "train.rollback=false"), ("none", "checkpoint.every=1000")):
        events = events_of(poisoned(tmp_path / name, change))
        assert next(event.step for event in events if isinstance(event, Spiked)) == SPIKE + 1
        assert not [event for event in events if isinstance(event, RolledBack)]
        assert isinstance(events[-1], Finished)


@pytest.mark.slow
def test_two_ranks_go_back_together(tmp_path: Path):
    jobs = {
        "copies": poisoned(tmp_path / "copies"),
        "shards": poisoned(tmp_path / "shards", "engine.parallel=fsdp"),
    }
    one = events_of(poisoned(tmp_path / "alone"))
    for name, trained in across(2, jobs, tmp_path).items():
        assert trained.error == ""
        assert [event for event in trained.events if isinstance(event, RolledBack)] == [
            event for event in one if isinstance(event, RolledBack)
        ]
        ours, theirs = (
            [line["loss"] for line in log.read(tmp_path / out) if line["event"] == "stepped"]
            for out in (name, "alone")
        )
        assert ours == pytest.approx(theirs, abs=1e-6)
