"""The cost of saving during training: the recipe digits with a checkpoint every 100 steps, and without any.

    python benchmarks/saving.py            prints the numbers and writes results/saving.json (8 minutes)

Three runs in one process take turns, so that other load on the machine affects all of them equally. One saves
in the background, one waits for its saves, and one does not save. A turn has 20 steps. It begins right before
a save and contains all of it, so the difference between two turns of a round is the cost of one save.

    cost = median of (turn with a save - turn without)  /  (5 median turn without)
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

import torch

from scaledit.checkpoint import find
from scaledit.config import load
from scaledit.machine import described
from scaledit.training.dit import train
from scaledit.training.events import Event, Stepped

EVERY, TURN, ROUNDS = 100, 20, 40
KINDS = {
    "nothing": ["checkpoint.every=1000000"],
    "background": ["checkpoint.background=true"],
    "waiting": ["checkpoint.background=false"],
}


class Turn(NamedTuple):
    """Seconds of wall time, and of processor time of all threads."""

    clock: float
    processor: float


def begun(kind: str, out: Path) -> Iterator[Event]:
    overrides = [
        f"train.steps={TURN * (ROUNDS + 2)}",
        f"train.log_every={TURN}",
        "sample.every=0",
        "evaluate.every=0",
        "optimizer.decay=constant",
        f"checkpoint.every={TURN}",
    ]
    events = train(load("digits", [*overrides, *KINDS[kind]]), out, device="cpu")
    turn(events)  # the first turn includes the setup
    return events


def turn(events: Iterator[Event]) -> Turn:
    """Runs to the next report, TURN steps later; its save follows."""
    began = time.perf_counter(), time.process_time()
    while not isinstance(next(events), Stepped):
        pass
    return Turn(time.perf_counter() - began[0], time.process_time() - began[1])


def measure(threads: int) -> dict[str, Any]:
    torch.set_num_threads(threads)
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

    def seconds(kind: str, of: str) -> list[float]:
        return [getattr(one, of) for one in turns[kind]]

    without = statistics.median(seconds("nothing", "clock")) * EVERY / TURN
    found: dict[str, Any] = {"seconds_of_100_steps": without, "checkpoint_bytes": size}
    for kind in ("background", "waiting"):
        clock, processor = (
            [b - a for a, b in zip(seconds("nothing", of), seconds(kind, of), strict=True)]
            for of in Turn._fields
        )
        found[kind] = {
            "cost": statistics.median(clock) / without,
            "cost_quartiles": [quartile / without for quartile in statistics.quantiles(clock, n=4)[::2]],
            "seconds_a_save": statistics.median(clock),
            "processor_seconds_a_save": statistics.median(processor),
        }
    return found


def main() -> None:
    found: dict[str, Any] = {"machine": {**described(), "cores": os.cpu_count(), "load": os.getloadavg()[0]}}
    for threads in sorted({1, os.cpu_count() or 1}):
        found[f"threads={threads}"] = measure(threads)
    print(json.dumps(found, indent=1))
    (Path(__file__).parent / "results" / "saving.json").write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
