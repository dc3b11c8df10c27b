"""Sends a run's events to listeners, as `scaledit train` does."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from rich.console import Console

from scaledit.commands.rank import listening
from scaledit.training.events import Event
from scaledit.training.trackers import Tracker


def shown_training(events: Iterable[Event], out: Path, trackers: Iterable[Tracker] = ()) -> dict[type, Event]:
    """Goes through a run's events; gives the last of every type."""
    last: dict[type, Event] = {}
    with listening(out, trackers, Console(stderr=True)) as listen:
        for event in events:
            listen(event)
            last[type(event)] = event
    return last
