"""What log.jsonl is told, told to TensorBoard and Weights & Biases as well: numbers as curves, pictures too.

    stepped {"step": 100, "loss": 0.48}  ->  train/loss at 100
    sampled {"step": 100, "path": ...png}  ->  samples/picture at 100

Any event with a step is understood, without being named here. log.jsonl is the truth about a run: a tracker
that is turned on later, or lost its last points in a kill, is told from there what it has not got, and steps
that are done twice are told once.
"""

from __future__ import annotations

from pathlib import Path

from scaledit.config import Config
from scaledit.training.trackers.base import Tracker
from scaledit.training.trackers.kinds import asked_for

__all__ = ["Tracker", "trackers"]


def trackers(config: Config, out: Path) -> list[Tracker]:
    """Those that config.log asks for, to be entered and then called with every event after JsonLog was.

    Nothing is written before the run starts. Raises UsageError where a package is not installed or W&B has
    nobody logged in.
    """
    return [kind.open(config, out) for kind in asked_for(config.log)]
