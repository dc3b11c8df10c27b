"""log.jsonl: one JSON object an event, and reading it back.

    {"event": "stepped", "step": 100, "loss": 0.48, ...}

A run that was killed had logged steps that its last checkpoint does not hold; when it resumes, or is rolled
back, those are dropped, so that the log tells of every step once.
"""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

from scaledit.training.events import Evaluated, Event, RolledBack, Started, Verifying

LOG = "log.jsonl"


class JsonLog:
    """Appends each event to out/log.jsonl. Files under `out` are named relative to it."""

    def __init__(self, out: Path):
        self.out = out

    def __call__(self, event: Event) -> None:
        if isinstance(event, Verifying):
            return
        if isinstance(event, Started | RolledBack):
            self._rewind(event.step, but="spiked" if isinstance(event, RolledBack) else "")
        record = {"event": type(event).__name__.lower(), **event._asdict()}
        if isinstance(event, Evaluated):
            record |= record.pop("result").to_json()
        line = json.dumps({key: self._plain(value) for key, value in record.items()})
        with (self.out / LOG).open("a", encoding="utf-8") as file:
            file.write(line + "\n")

    def _plain(self, value: Any) -> Any:
        if isinstance(value, Path):
            return str(value.relative_to(self.out))
        if isinstance(value, float) and not math.isfinite(value):
            return str(value)  # JSON has no nan
        return value

    def _rewind(self, step: int, but: str) -> None:
        """Drops what was logged after `step`, but events of one name."""
        path = self.out / LOG
        if not path.exists():
            return
        ends = ("exported", "stopped", "finished")  # these come again when a run is called again
        kept = [
            record
            for record in read(self.out)
            if (record["step"] <= step or record["event"] == but) and record["event"] not in ends
        ]
        partial = path.with_suffix(".partial")
        partial.write_text("".join(json.dumps(record) + "\n" for record in kept), encoding="utf-8")
        os.replace(partial, path)


def read(out: Path) -> list[dict[str, Any]]:
    """The events of a run folder; a last line cut short by a kill is left out."""
    path, records = out / LOG, []
    if not path.exists():
        return []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            records.append(json.loads(line))
        except ValueError:
            continue
    return records
