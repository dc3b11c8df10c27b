"""log.jsonl: one JSON object per event, and how it is read back.

    {"event": "stepped", "step": 100, "loss": 0.48, "mse": 0.47, "vlb": 0.01, ...}

The terms of a loss have the names that the objective gives them: in the line of a step, every key that is no
field of the event is a term.

A killed run may have logged steps that its last checkpoint does not hold. When it resumes or is rolled back
those lines are dropped, so the log has every step once. So is a change of the config at the step where it
continues: the run reports it again, if it still holds. Corrupt lines (after a crash of the machine, an edit,
a bad disk) are moved to log.jsonl.corrupt, and all others remain valid.
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
from scaledit.training.events import Changed, Evaluated, Event, Remarked, RolledBack, Started, Verifying

LOG = "log.jsonl"
TERMS = "terms"
"""The field of an event whose items become keys of the line."""
CORRUPT = f"{LOG}.corrupt"
CHANGED = Changed.__name__.lower()
LONGEST_LINE = 1 << 24
"""Bytes, far more than any event needs."""
LARGEST_STEP = 1 << 53
LONGEST_NAME = 255
"""Bytes of a file name."""


class JsonLog:
    """Appends each event to out/log.jsonl, with paths relative to `out`. Raises OSError, which names the
    file, if it cannot be written."""

    def __init__(self, out: Path):
        self.out, self._repaired = out, False

    def __call__(self, event: Event) -> None:
        if isinstance(event, Verifying | Remarked):
            return
        path = self.out / LOG
        if not self._repaired:
            self._repair()
        if isinstance(event, Started | RolledBack):
            self._rewind(event.step, keep="spiked" if isinstance(event, RolledBack) else "")
        line = json.dumps(record(event, self.out))
        with naming(path), path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")

    def _repair(self) -> None:
        """Moves corrupt lines out of the log, so that the first new line starts on its own."""
        records, corrupt, cut_short = lines(self.out)
        if corrupt:
            _warn_corrupt(self.out / LOG, len(corrupt), f"set aside in {CORRUPT}")
            with naming(self.out / CORRUPT), (self.out / CORRUPT).open("ab") as file:
                file.writelines(line.rstrip(b"\n") + b"\n" for line in corrupt)
        if corrupt or cut_short:
            self._write(records)
        self._repaired = True

    def _rewind(self, step: int, keep: str) -> None:
        """Drops the events after `step`, except those called `keep`, and the changes from `step` on."""
        if not (self.out / LOG).exists():
            return
        ends = ("exported", "stopped", "finished")  # logged again at each end of the run
        records = [record for record in read(self.out) if record["event"] not in ends]
        records = [record for record in records if record["event"] != CHANGED or record["step"] < step]
        self._write([record for record in records if record["step"] <= step or record["event"] == keep])

    def _write(self, records: list[dict[str, Any]]) -> None:
        with atomic_write(self.out / LOG) as file:
            file.writelines(json.dumps(record).encode() + b"\n" for record in records)


def record(event: Event, out: Path) -> dict[str, Any]:
    """The line of log.jsonl for an event: plain values, with paths relative to `out`."""
    fields: dict[str, Any] = {"event": type(event).__name__.lower()}
    for key, value in event._asdict().items():
        fields |= value if key == TERMS else {key: value}
    if isinstance(event, Evaluated):
        fields |= fields.pop("result").to_json()
    return {key: _plain(value, out) for key, value in fields.items()}


def terms(record: Mapping[str, Any]) -> dict[str, float]:
    """The terms of the loss in the line of a step, without those that are null; {} in other lines."""
    if record["event"] not in _WITH_TERMS:
        return {}
    fields = {"event", *_FIELDS[record["event"]]}
    return {key: float(value) for key, value in record.items() if key not in fields and value is not None}


def _plain(value: Any, out: Path) -> Any:
    if isinstance(value, Path):
        return str(value.relative_to(out))
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)  # JSON has no nan
    return value


def read(out: Path) -> list[dict[str, Any]]:
    """The events of a run folder. Corrupt lines are left out with a warning; a last line that a kill cut
    short is left out without."""
    records, corrupt, _ = lines(out)
    if corrupt:
        _warn_corrupt(out / LOG, len(corrupt), "left out")
    return records


class Lines(NamedTuple):
    """records: the events. corrupt: all other lines, unchanged. cut_short: whether the last has no
    newline."""

    records: list[dict[str, Any]]
    corrupt: list[bytes]
    cut_short: bool


def lines(out: Path) -> Lines:
    """The lines of a run folder's log, parsed."""
    records: list[dict[str, Any]] = []
    corrupt: list[bytes] = []
    line = b"\n"
    try:
        file = (out / LOG).open("rb")
    except FileNotFoundError:
        return Lines([], [], False)
    with file:
        while next_line := file.readline(LONGEST_LINE):
            complete, line = line.endswith(b"\n"), next_line
            record = _parsed(line)
            if record is not None and complete:
                records.append(record)
            elif line.strip():
                corrupt.append(line)
    cut_short = not line.endswith(b"\n")
    if cut_short and corrupt and corrupt[-1] is line and b"\0" not in line:
        corrupt.pop()  # cut short by a kill, not corrupt
    return Lines(records, corrupt, cut_short)


def _parsed(line: bytes) -> dict[str, Any] | None:
    """The event in a line, which may be of a kind that only later versions know; None if there is none."""
    try:
        parsed = json.loads(line.decode())
    except (ValueError, RecursionError):
        return None
    if not isinstance(parsed, dict) or not isinstance(parsed.get("event"), str):
        return None
    value = {KEYS_SINCE_0_1.get(key, key): item for key, item in dict[str, Any](parsed).items()}
    name = str(parsed["event"])
    value["event"] = EVENTS_SINCE_0_1.get(name, name)
    step = value.get("step")
    if not isinstance(step, int) or isinstance(step, bool) or not 0 <= step < LARGEST_STEP:
        return None
    if any(isinstance(number, int) and abs(number) > LARGEST_STEP**3 for number in value.values()):
        return None  # too large for a float
    if value["event"] == "evaluated":
        return value if _is_result(value) else None
    fields = _FIELDS.get(value["event"], {})
    if value["event"] in _WITH_TERMS:
        names = value.keys() - fields.keys() - {"event"}
        if not all(events.is_term(name) and _is(float | None, value[name]) for name in names):
            return None
    if any(key not in value for key in _NEEDED.get(value["event"], ())):  # old logs may lack other fields
        return None
    return value if all(_is(kind, value[key]) for key, kind in fields.items() if key in value) else None


EVENTS_SINCE_0_1 = {"passedover": "corruptcheckpoint"}
KEYS_SINCE_0_1 = {"share_of_roof": "mfu", "passed_over": "skipped_batches"}
"""The names of events and keys in scaledit 0.1, and their names now."""
_HINTS = {kind.__name__.lower(): get_type_hints(kind) for kind in get_args(events.Event)}
_WITH_TERMS = {event for event, hints in _HINTS.items() if TERMS in hints}
_FIELDS = {
    event: {key: kind for key, kind in hints.items() if key != TERMS} for event, hints in _HINTS.items()
}
_NEEDED: Mapping[str, tuple[str, ...]] = {
    "started": ("device",),
    "stepped": ("loss", "seconds"),
    "fitted": ("loss", "seconds"),
    "sampled": ("path",),
    "reconstructed": ("psnr", "ssim", "path"),
    "exported": ("path", "scale", "sha256", "encoder_sha256"),
    "finished": ("seconds", "skipped"),
}
"""The fields that readers of the log rely on, by event."""


def _is(kind: Any, value: Any) -> bool:
    """Whether a JSON value may be a field of the type `kind`."""
    if get_origin(kind) in (Union, types.UnionType):
        return any(_is(option, value) for option in get_args(kind))
    if get_origin(kind) is list:
        return True  # lists are not read back
    if kind is type(None):
        return value is None
    if isinstance(value, bool):
        return kind is bool
    if kind is float:
        return isinstance(value, int | float) or value in ("nan", "inf", "-inf")
    if kind is Path:
        path = PurePosixPath(value) if isinstance(value, str) else PurePosixPath("/")
        short = all(len(part.encode("utf-8", "surrogatepass")) <= LONGEST_NAME for part in path.parts)
        return short and not path.is_absolute() and ".." not in path.parts and "\0" not in str(path)
    return isinstance(value, str | int | float) if kind is str else isinstance(value, kind)


def _is_result(value: Mapping[str, Any]) -> bool:
    if not isinstance(value.get("protocol"), dict) or not isinstance(value.get("warnings", []), list):
        return False
    if not isinstance(value.get("name"), str):
        return False
    metrics = Result.from_json(value).metrics.values()
    return all(_is(float | None, number) for metric in metrics for number in metric)


def _warn_corrupt(path: Path, count: int, action: str) -> None:
    lines = "1 line is" if count == 1 else f"{count} lines are"
    message = "%s is corrupt: %s %s; the other lines are used"
    logging.getLogger(__name__).warning(message, printable(path), lines, action)
