"""Breaks: steps from which a run continued with other settings, as its log records them.

{"event": "changed", "step": 480, "changes": ["optimizer.learning_rate: 0.005 -> 0.001"], "batch_size": 32}
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from scaledit.config import changes_training
from scaledit.training.log import CHANGED


class Break(NamedTuple):
    """From `step` on a run had other settings. changes: "section.key: old -> new". batch_size: of the steps
    before, up to the break before."""

    step: int
    changes: list[str]
    batch_size: int

    @property
    def is_of_training(self) -> bool:
        """Whether the training changed, and not only how it is computed, evaluated or saved."""
        return any(map(changes_training, self.changes))


def breaks_of(events: Iterable[Mapping[str, Any]]) -> list[Break]:
    """The breaks that a log records, in order; events that are no such records are left out."""
    found = [
        Break(event["step"], changes, size)
        for event in events
        if event["event"] == CHANGED
        and isinstance(changes := event.get("changes"), list)
        and all(isinstance(change, str) for change in changes)
        and isinstance(size := event.get("batch_size"), int)
        and size > 0
    ]
    return sorted(found, key=lambda one: one.step)


def as_text(breaks: Iterable[Break]) -> dict[str, str]:
    """{step: its changes}."""
    return {f"{one.step:,}": "; ".join(one.changes) for one in breaks}


def images_seen(breaks: Sequence[Break], step: int, batch_size: int) -> int:
    """The images that `step` steps were trained on. batch_size: since the last break."""
    seen, before = 0, 0
    for one in breaks:
        seen += (one.step - before) * one.batch_size
        before = one.step
    return seen + (step - before) * batch_size


def batches(breaks: Sequence[Break], batch_size: int) -> str:
    """The batch sizes of a run in words: "16, then 32"."""
    sizes = [one.batch_size for one in breaks] + [batch_size]
    return ", then ".join(str(b) for a, b in zip([0, *sizes], sizes, strict=False) if a != b)
