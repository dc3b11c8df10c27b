"""report.html of a run under way: its newest grid of samples and its curves, written during training.

    Sampled, Stopped  ->  log.jsonl, samples/step-XXXXXXXX.png  ->  report.html (reloads itself)

Nothing is evaluated or sampled for it, and it never ends a run: the first failure is a warning and the last
attempt. The full report replaces it at the end.
"""

from __future__ import annotations

import json
import logging
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Self

from scaledit.captions import images_in
from scaledit.config import RunConfig
from scaledit.data.datasets import attribution
from scaledit.errors import reason
from scaledit.evaluation.result import Result
from scaledit.files.atomic import atomic_bytes
from scaledit.files.reading import picture_in
from scaledit.report import page
from scaledit.report.page import Card
from scaledit.report.run import REPORT, Events, duration, loss_curve, read_events
from scaledit.training.events import Event, Sampled, Saved, Started, Stopped

RELOADED = 20
"""Seconds after which a browser reloads the page."""
WIDEST = 720
"""CSS pixels of the grid."""
MOST_ROWS = 20
"""Evaluations that the page shows."""
State = Literal["running", "stopped", "failed"]


@dataclass
class LivePage:
    """Writes the page with each grid of samples, or with each checkpoint of a run without grids. A listener
    to the events of a run, which are in its log already, and a context manager around its loop."""

    config: RunConfig
    out: Path
    failed: bool = False
    step: int | None = None

    def __call__(self, event: Event) -> None:
        if isinstance(event, Started):
            self.step = event.step if event.step < event.steps else None  # a finished run keeps its report
        if isinstance(event, Sampled) or (isinstance(event, Saved) and not self.config.sample.every):
            self._write(event.step, "running")
        elif isinstance(event, Stopped):
            self._write(event.step, "stopped")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None and self.step is not None and (self.out / REPORT).exists():
            self._write(self.step, "failed")

    def _write(self, step: int, state: State) -> None:
        if self.failed:
            return
        self.step = step
        try:
            atomic_bytes(self.out / REPORT, render(self.config, self.out, step, state).encode())
        except Exception as error:  # a report must not end a run
            self.failed = True
            message = "%s is not written until the end (%s); the run continues"
            logging.getLogger(__name__).warning(message, self.out / REPORT, reason(error))


def render(config: RunConfig, run: Path, step: int, state: State) -> str:
    """The page of a run that has reached `step`. Raises OSError if its log cannot be read."""
    events, foreign = read_events(run)
    return page.render(
        "running.html",
        title=config.name,
        state=state,
        step=step,
        steps=config.train.steps,
        written=time.strftime("%Y-%m-%d %H:%M:%S %Z"),
        reloaded=RELOADED if state == "running" else None,
        headline=_headline(config, events, step),
        foreign=foreign,
        newest=_newest(run, events),
        attribution=attribution(config.data.name),
        loss=loss_curve(events),  # drawing is most of the page's cost: the other charts wait for the end
        evaluated=_evaluated(events),
        config=json.dumps(config.to_json(), indent=1),
    )


def _headline(config: RunConfig, events: Events, step: int) -> list[Card]:
    steps = config.train.steps
    cards = [Card("Step", f"{step:,}", f"of {steps:,}, {step / steps:.0%}")]
    stepped = [event for event in events if event["event"] == "stepped"]
    if stepped:
        last, seconds = stepped[-1], float(stepped[-1]["seconds"])
        cards += [
            Card("Loss", f"{float(last['loss']):.4g}", f"of the batch of step {last['step']:,}"),
            Card("Training time", duration(seconds), "without sampling and saving"),
        ]
        if step < steps and last["step"]:
            left = duration(seconds / last["step"] * (steps - step))
            cards.append(Card("Time left", f"about {left}", "at the mean speed so far"))
    started = [event for event in events if event["event"] == "started"]
    if started and "params" in started[-1]:
        cards.append(
            Card("Parameters", f"{started[-1]['params'] / 1e6:.2f} M", f"on {started[-1]['device']}")
        )
    return cards


def _evaluated(events: Events) -> page.Results | None:
    """The metrics of the newest evaluations, one row per step; None if there are none."""
    results = [
        replace(Result.from_json(event), name=f"step {event['step']:,}")
        for event in events
        if event["event"] == "evaluated"
    ]
    return page.results(results[-MOST_ROWS:]) if results else None


def _newest(run: Path, events: Events) -> dict[str, Any] | None:
    """The newest grid, with the names that are drawn beside its rows; None if there is none yet."""
    sampled = [event for event in events if event["event"] == "sampled"]
    if not sampled:
        return None
    step, caption = sampled[-1]["step"], f"Step {sampled[-1]['step']:,}, EMA weights"
    try:
        png = picture_in(run, sampled[-1]["path"])
        images_in(png)  # raises for a damaged file
        return {"sheets": {caption: page.sheet(png, f"samples at step {step}", WIDEST, False)}, "missing": []}
    except ValueError as error:
        return {"sheets": {}, "missing": [f"step {step}: {error}"]}
