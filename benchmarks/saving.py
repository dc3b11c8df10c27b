"""What saving costs the training loop: the recipe digits with a checkpoint every 100 steps, and without any.

    python benchmarks/saving.py            prints the figures and writes results/saving.json (5 minutes)

Three runs in one process take turns, 100 steps each, so that what else the machine does meets all alike: one
that saves in the background, one that waits for its saves, one that does not save. A turn begins right before
a save and holds all of it. cost = 1 - turn without / turn with, the median over turns of the same round.
"""

from __future__ import annotations

import json
import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from scaledit.checkpoint import find
from scaledit.config import load
from scaledit.machine import described
from scaledit.training.dit import train
from scaledit.training.events import Event, Stepped

EVERY, ROUNDS = 100, 12
KINDS = {
    "nothing": ["checkpoint.every=1000000"],
    "background": ["checkpoint.background=true"],
    "waiting": ["checkpoint.background=false"],
}


class Turn(NamedTuple):
    """Seconds of the clock, and of all the process's threads."""

    clock: float
    processor: float


def begun(kind: str, out: Path) -> Iterator[Event]:
    overrides = [
        f"train.steps={EVERY * (ROUNDS + 2)}",
        f"train.log_every={EVERY}",
        "sample.every=0",
        "evaluate.every=0",
        "optimizer.decay=constant",
        f"checkpoint.every={EVERY}",
    ]
    events = train(load("digits", [*overrides, *KINDS[kind]]), out, device="cpu")
    turn(events)  # the first one sets things up
    return events


def turn(events: Iterator[Event]) -> Turn:
    """To the next report, EVERY steps on: its save comes after it."""
    began = time.perf_counter(), time.process_time()
    while not isinstance(next(events), Stepped):
        pass
    return Turn(time.perf_counter() - began[0], time.process_time() - began[1])


def measure() -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        runs = {kind: begun(kind, Path(folder) / kind) for kind in KINDS}
        turns: dict[str, list[Turn]] = {kind: [] for kind in KINDS}
        for number in range(ROUNDS):
            order = list(KINDS)[number % 3 :] + list(KINDS)[: number % 3]
            for kind in order:
                turns[kind].append(turn(runs[kind]))
        saved = find(Path(folder) / "background" / "checkpoints")[-1]
        size = sum(file.stat().st_size for file in saved.rglob("*"))
        for run in runs.values():
            run.close()  # pyright: ignore[reportAttributeAccessIssue]

    def cost(kind: str, of: str) -> list[float]:
        pairs = zip(turns["nothing"], turns[kind], strict=True)
        return sorted(1 - getattr(a, of) / getattr(b, of) for a, b in pairs)

    found: dict[str, Any] = {"checkpoint_bytes": size, "steps_a_checkpoint": EVERY, "rounds": ROUNDS}
    for kind in ("background", "waiting"):
        clock = cost(kind, "clock")
        found[kind] = {
            "cost": statistics.median(clock),
            "cost_quartiles": statistics.quantiles(clock, n=4)[::2],
            "cost_in_processor_time": statistics.median(cost(kind, "processor")),
            "seconds_a_turn": statistics.median(turn.clock for turn in turns[kind]),
        }
    found["nothing"] = {"seconds_a_turn": statistics.median(turn.clock for turn in turns["nothing"])}
    return found


def main() -> None:
    load_before = os.getloadavg()[0]
    found: dict[str, Any] = {"machine": {**described(), "cores": os.cpu_count(), "load_before": load_before}}
    found |= measure()
    print(json.dumps(found, indent=1))
    (Path(__file__).parent / "results" / "saving.json").write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
