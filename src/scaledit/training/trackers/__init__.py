"""Trackers: services that get the lines of log.jsonl, numbers as curves and images too.

    stepped {"step": 100, "loss": 0.48}  ->  train/loss at 100
    sampled {"step": 100, "path": ...png}  ->  samples/picture at 100

Any event with a step is understood. log.jsonl is the complete record of a run: a tracker that is turned on
later, or lost its last points in a kill, gets what it lacks from there, and repeated steps are sent once.
"""

from __future__ import annotations

from pathlib import Path

from scaledit.config import Config
from scaledit.training.trackers.base import Tracker
from scaledit.training.trackers.kinds import tracker_kinds

__all__ = ["Tracker", "trackers"]


def trackers(config: Config, out: Path) -> list[Tracker]:
    """The trackers that config.log chooses; enter them, and call them with every event after JsonLog. Raises
    as `TrackerKind.open` does."""
    return [kind.open(config, out) for kind in tracker_kinds(config.log)]
