"""Of an event, what can be drawn; and what all trackers do: catch up, go back, and never end a run.

record["step"] <= known  ->  not told again        record["event"] == "rolledback"  ->  known is less
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
"""The first part of a curve's name; the event's own name where it is not here."""
ROLLED_BACK = "rolledback"
NO_CURVES = ("started", "datachanged", "datarecorded", "exported", "finished")
NOT_FINITE = ("nan", "inf", "-inf")


def scalars(record: Mapping[str, Any]) -> dict[str, float]:
    """{"train/loss": 0.48, ...}: the numbers of a line of log.jsonl, under the names of their curves."""
    if record["event"] in NO_CURVES:
        return {}
    return {_name(record, key): float(value) for key, value in record.items() if _is_number(key, value)}


def pictures(record: Mapping[str, Any], out: Path) -> dict[str, Path]:
    """{"samples/picture": out/samples/step-00000100.png}: the pictures of a line that are still there."""
    found = {
        _name(record, "picture" if key == "path" else key): out / value
        for key, value in record.items()
        if isinstance(value, str) and value.endswith(".png")
    }
    return {name: path for name, path in found.items() if path.is_file()}


def _name(record: Mapping[str, Any], key: str) -> str:
    return f"{GROUPS.get(record['event'], record['event'])}/{key}"


def _is_number(key: str, value: object) -> bool:
    if key == "step" or isinstance(value, bool):
        return False
    return isinstance(value, int | float) or value in NOT_FINITE


class Tracker(ABC):
    """A listener of one run's events; a context manager around its loop.

    A subclass says what it already holds, takes lines of log.jsonl, and closes. What goes wrong in it after
    the start is said once, and the run goes on without it.
    """

    name: str

    def __init__(self, config: Config, out: Path):
        self.config, self.out = config, out
        self.known: int | None = None  # the last step it holds; None while closed

    @abstractmethod
    def _open(self, step: int) -> int:
        """Opens at the start of a run at `step`; the last step it has already got, -1 for none."""

    @abstractmethod
    def _go_back(self, step: int) -> int:
        """The run is rolled back to `step`; the last step whose lines are not to be told any more."""

    @abstractmethod
    def _take(self, record: Mapping[str, Any]) -> None: ...

    @abstractmethod
    def _close(self, failed: bool) -> None: ...

    def __call__(self, event: Event) -> None:
        if isinstance(event, Verifying):
            return
        if isinstance(event, Started):
            if event.step < event.steps:  # of a run that is done there is nothing to tell
                self.known = self._open(event.step)
                for record in log.read(self.out):
                    self._tell(record)
        else:
            self._tell(log.record(event, self.out), live=True)

    def _tell(self, record: Mapping[str, Any], live: bool = False) -> None:
        if self.known is None:
            return
        try:
            if live and record["event"] == ROLLED_BACK:
                self.known = self._go_back(record["step"])
            if record["step"] > self.known:
                self._take(record)
        except Exception as error:  # whatever it is, it must not end a run
            self.known = None
            logging.getLogger(__name__).warning(
                "%s is told nothing more (%s); the run goes on, %s has it all",
                self.name,
                first_line(error),
                log.LOG,
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self.known is None:
            return
        self.known = None
        try:
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
