"""What trackers show of an event, and what all trackers do: catch up, roll back, and never end a run.

record["step"] <= known  ->  not sent again        record["event"] == "rolledback"  ->  known decreases
"""

from __future__ import annotations

import importlib
import logging
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, Self

from scaledit.config import Config
from scaledit.errors import UsageError
from scaledit.training import log
from scaledit.training.events import Event, Started, Verifying

GROUPS = {
    "stepped": "train",
    "fitted": "train",
    "evaluated": "evaluate",
    "sampled": "samples",
    "reconstructed": "reconstruction",
}
"""The first part of the names of an event's curves; by default the name of the event."""
ROLLED_BACK = "rolledback"
NO_CURVES = (
    "started",
    "initialized",
    "changed",
    "datachanged",
    "datarecorded",
    "exported",
    "finished",
)
NOT_FINITE = ("nan", "inf", "-inf")


def scalars(record: Mapping[str, Any]) -> dict[str, float]:
    """{"train/loss": 0.48, ...}: the numbers of a line of log.jsonl, by the names of their curves."""
    if record["event"] in NO_CURVES:
        return {}
    return {_name(record, key): float(value) for key, value in record.items() if _is_number(key, value)}


def image_paths(record: Mapping[str, Any], out: Path) -> dict[str, Path]:
    """{"samples/picture": out/samples/step-00000100.png}: the images of a line that still exist."""
    paths = {
        _name(record, "picture" if key == "path" else key): out / value
        for key, value in record.items()
        if isinstance(value, str) and value.endswith(".png")
    }
    return {name: path for name, path in paths.items() if path.is_file()}


def _name(record: Mapping[str, Any], key: str) -> str:
    return f"{GROUPS.get(record['event'], record['event'])}/{key}"


def _is_number(key: str, value: object) -> bool:
    if key == "step" or isinstance(value, bool):
        return False
    return isinstance(value, int | float) or value in NOT_FINITE


class Tracker(ABC):
    """Sends the events of one run to a service; a context manager around its loop.

    A subclass reports which steps it already has, takes lines of log.jsonl, and closes. If it fails after the
    start, it warns once and the run continues without it.
    """

    name: str

    def __init__(self, config: Config, out: Path):
        self.config, self.out = config, out
        self.known: int | None = None  # the last step that it has; None while closed

    @abstractmethod
    def _open(self, step: int) -> int:
        """Opens at the start of a run at `step`; returns the last step that it already has, -1 for none."""

    @abstractmethod
    def _go_back(self, step: int) -> int:
        """Rolls back to `step`; returns the last step whose lines must not be sent again."""

    @abstractmethod
    def _take(self, record: Mapping[str, Any]) -> None: ...

    @abstractmethod
    def _close(self, failed: bool) -> None: ...

    def __call__(self, event: Event) -> None:
        if isinstance(event, Verifying):
            return
        if isinstance(event, Started):
            if event.step < event.steps:  # a finished run has nothing to send
                self.known = self._open(event.step)
                for record in log.read(self.out):
                    self._send_record(record)
        else:
            self._send_record(log.record(event, self.out), live=True)

    def _send_record(self, record: Mapping[str, Any], live: bool = False) -> None:
        if self.known is None:
            return
        try:
            if live and record["event"] == ROLLED_BACK:
                self.known = self._go_back(record["step"])
            if record["step"] > self.known:
                self._take(record)
        except Exception as error:  # a failing tracker must not end the run
            self.known = None
            message = "%s gets no more events (%s); the run continues, and %s has everything"
            logging.getLogger(__name__).warning(message, self.name, first_line(error), log.LOG)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        known, self.known = self.known, None
        try:
            if known is not None:
                self._close(failed=kind is not None)
        except Exception as error:
            logging.getLogger(__name__).warning("%s did not close: %s", self.name, first_line(error))


def imported(module: str, extra: str) -> ModuleType:
    try:
        return importlib.import_module(module)
    except ImportError:
        raise UsageError(f'log.{extra} needs the package {extra}: pip install "scaledit[{extra}]"') from None


def first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
