"""log.jsonl: one JSON object an event, and reading it back.

    {"event": "stepped", "step": 100, "loss": 0.48, "mse": 0.47, "vlb": 0.01, ...}

The terms of a loss stand under the names that the objective gives them: in a line of a step, what is none of
the event's own keys is a term.

A run that was killed had logged steps that its last checkpoint does not hold; when it resumes, or is rolled
back, those are dropped, so that the log tells of every step once. A line that is none of ours (after a crash
of the machine, an edit, a bad disk) is set aside, in log.jsonl.corrupt, and the others count.
"""

from __future__ import annotations

import json
import logging
import math
import types
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple, Union, get_args, get_origin, get_type_hints

from scaledit.errors import printable
from scaledit.evaluation.result import Result
from scaledit.files.atomic import atomic_write, naming
from scaledit.training import events
from scaledit.training.events import Evaluated, Event, Remarked, RolledBack, Started, Verifying

LOG = "log.jsonl"
TERMS = "terms"
"""The field of an event whose items are keys of the line themselves."""
CORRUPT = f"{LOG}.corrupt"
LONGEST_LINE = 1 << 24
"""Bytes; no event comes near it."""
LARGEST_STEP = 1 << 53
LONGEST_NAME = 255
"""Bytes of a file's name."""


class JsonLog:
    """Appends each event to out/log.jsonl. Files under `out` are named relative to it. Raises OSError, which
    names the file, where that cannot be written."""

    def __init__(self, out: Path):
        self.out = out
        self._repaired = False

    def __call__(self, event: Event) -> None:
        if isinstance(event, Verifying | Remarked):
            return
        path = self.out / LOG
        if not self._repaired:
            self._repair()
        if isinstance(event, Started | RolledBack):
            self._rewind(event.step, but="spiked" if isinstance(event, RolledBack) else "")
        line = json.dumps(record(event, self.out))
        with naming(path), path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")

    def _repair(self) -> None:
        """Once, before the first line of this life: what a kill cut short would spoil it."""
        found = lines(self.out)
        if found.corrupt:
            _warn_corrupt(self.out / LOG, len(found.corrupt), f"set aside in {CORRUPT}")
            with naming(self.out / CORRUPT), (self.out / CORRUPT).open("ab") as file:
                file.writelines(line.rstrip(b"\n") + b"\n" for line in found.corrupt)
        if found.corrupt or found.cut_short:
            self._write(found.records)
        self._repaired = True

    def _rewind(self, step: int, but: str) -> None:
        """Drops what was logged after `step`, but events of one name."""
        if not (self.out / LOG).exists():
            return
        ends = ("exported", "stopped", "finished")  # these come again when a run is called again
        self._write(
            [
                line
                for line in read(self.out)
                if (line["step"] <= step or line["event"] == but) and line["event"] not in ends
            ]
        )

    def _write(self, records: list[dict[str, Any]]) -> None:
        with atomic_write(self.out / LOG) as file:
            file.writelines(json.dumps(line).encode() + b"\n" for line in records)


def record(event: Event, out: Path) -> dict[str, Any]:
    """An event as its line of log.jsonl says it: plain values, paths relative to `out`."""
    found: dict[str, Any] = {"event": type(event).__name__.lower()}
    for key, value in event._asdict().items():
        found |= value if key == TERMS else {key: value}
    if isinstance(event, Evaluated):
        found |= found.pop("result").to_json()
    return {key: _plain(value, out) for key, value in found.items()}


def terms(record: Mapping[str, Any]) -> dict[str, float]:
    """The named terms of the loss in a line of a step, without those that it leaves open; {} in others."""
    if record["event"] not in _WITH_TERMS:
        return {}
    own = {"event", *_FIELDS[record["event"]]}
    named = {key: value for key, value in record.items() if key not in own and value is not None}
    return {key: float(value) for key, value in named.items()}


def _plain(value: Any, out: Path) -> Any:
    if isinstance(value, Path):
        return str(value.relative_to(out))
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)  # JSON has no nan
    return value


def read(out: Path) -> list[dict[str, Any]]:
    """The events of a run folder, without corrupt lines, which are said; a last line cut short by a kill is
    left out."""
    found = lines(out)
    if found.corrupt:
        _warn_corrupt(out / LOG, len(found.corrupt), "left out")
    return found.records


class Lines(NamedTuple):
    """records: the events. corrupt: other lines, as they stand. cut_short: whether the last has no end."""

    records: list[dict[str, Any]]
    corrupt: list[bytes]
    cut_short: bool


def lines(out: Path) -> Lines:
    """Of a run folder's log, told apart."""
    path = out / LOG
    records: list[dict[str, Any]] = []
    corrupt: list[bytes] = []
    line = b"\n"
    try:
        file = path.open("rb")
    except FileNotFoundError:
        return Lines([], [], False)
    with file:
        while piece := file.readline(LONGEST_LINE):
            before, line = line, piece
            found = _event(line)
            if found is not None and before.endswith(b"\n"):
                records.append(found)
            elif line.strip():
                corrupt.append(line)
    cut_short = not line.endswith(b"\n")
    if cut_short and corrupt and corrupt[-1] is line and b"\0" not in line:
        corrupt.pop()  # the last one, by a kill
    return Lines(records, corrupt, cut_short)


def _event(line: bytes) -> dict[str, Any] | None:
    """What a line says, if it is an event; one of a later version too, of whose kind nothing is known."""
    try:
        value = json.loads(line.decode())
    except (ValueError, RecursionError):
        return None
    if not isinstance(value, dict) or not isinstance(value.get("event"), str):
        return None
    value = _modern(value)
    step = value.get("step")
    if not isinstance(step, int) or isinstance(step, bool) or not 0 <= step < LARGEST_STEP:
        return None
    if any(isinstance(number, int) and abs(number) > LARGEST_STEP**3 for number in value.values()):
        return None  # not a float any more
    if value["event"] == "evaluated":
        return value if _is_result(value) else None
    fields = _FIELDS.get(value["event"], {})
    if value["event"] in _WITH_TERMS:
        named = value.keys() - fields.keys() - {"event"}
        if not all(events.is_term(key) and _is(float | None, value[key]) for key in named):
            return None
    for key, wanted in fields.items():
        # Older logs lack what came later.
        if key not in value and key in _NEEDED.get(value["event"], ()):
            return None
        if key in value and not _is(wanted, value[key]):
            return None
    return value


EVENTS_SINCE_0_1 = {"passedover": "corruptcheckpoint"}
KEYS_SINCE_0_1 = {"share_of_roof": "mfu", "passed_over": "skipped_batches"}
"""Events and keys as scaledit 0.1 called them, and as they are called now."""


def _modern(line: dict[str, Any]) -> dict[str, Any]:
    renamed = {KEYS_SINCE_0_1.get(key, key): value for key, value in line.items()}
    return renamed | {"event": EVENTS_SINCE_0_1.get(line["event"], line["event"])}


_HINTS = {kind.__name__.lower(): get_type_hints(kind) for kind in get_args(events.Event)}
_WITH_TERMS = {event for event, hints in _HINTS.items() if TERMS in hints}
_FIELDS = {
    event: {key: kind for key, kind in hints.items() if key != TERMS} for event, hints in _HINTS.items()
}
_NEEDED: Mapping[str, tuple[str, ...]] = {
    "started": ("device",),
    "stepped": ("loss", "seconds"),
    "fitted": ("loss", "seconds", "l1", "kl", "gradient"),
    "sampled": ("path",),
    "reconstructed": ("psnr", "ssim", "path"),
    "exported": ("path", "scale", "sha256", "encoder_sha256"),
    "finished": ("seconds", "skipped"),
}
"""What readers of the log ask of every event of a kind."""


def _is(wanted: Any, value: Any) -> bool:
    """Whether a JSON value can be one of an event's fields."""
    if get_origin(wanted) in (Union, types.UnionType):
        return any(_is(one, value) for one in get_args(wanted))
    if get_origin(wanted) is list:
        return True  # of lists nothing is read back
    if wanted is type(None):
        return value is None
    if isinstance(value, bool):
        return wanted is bool
    if wanted is float:
        return isinstance(value, int | float) or value in ("nan", "inf", "-inf")
    if wanted is Path:
        path = PurePosixPath(value) if isinstance(value, str) else PurePosixPath("/")
        short = all(len(part.encode("utf-8", "surrogatepass")) <= LONGEST_NAME for part in path.parts)
        return short and not path.is_absolute() and ".." not in path.parts and "\0" not in str(path)
    return isinstance(value, str | int | float) if wanted is str else isinstance(value, wanted)


def _is_result(value: Mapping[str, Any]) -> bool:
    if not isinstance(value.get("protocol"), dict) or not isinstance(value.get("warnings", []), list):
        return False
    if not isinstance(value.get("name"), str):
        return False
    figures = Result.from_json(value).metrics.values()
    return all(number is None or _is(float, number) for figure in figures for number in figure)


def _warn_corrupt(path: Path, count: int, what: str) -> None:
    some = "1 line is" if count == 1 else f"{count} lines are"
    logging.getLogger(__name__).warning("%s is corrupt: %s %s; the others count", printable(path), some, what)
