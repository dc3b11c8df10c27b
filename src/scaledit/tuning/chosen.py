"""Writes the best setting of a map into the run's config, as what the run is sampled with by default.

config.json, [sample]: sampler.steps, guidance, average        log.jsonl: a change, as of a resumed run
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from scaledit import averages, checkpoint
from scaledit.config import RunConfig, SampleConfig, all_changes
from scaledit.errors import UsageError
from scaledit.files.atomic import atomic_bytes
from scaledit.files.reading import read_json
from scaledit.part import Allowed
from scaledit.training import folder
from scaledit.training.events import Changed
from scaledit.training.log import JsonLog


def write_best(run: Path, section: SampleConfig, average: str | None, allowed: Allowed) -> list[str]:
    """Puts the sampler and the guidance of `section` and the average into the config of `run`, and returns
    what changed, in words; nothing is written if nothing did.

    Raises UsageError if another job is training in the folder, or for an average of an earlier step, which
    sample.average cannot name.
    """
    asked = averages.asked(average)
    if asked is not None and asked.step is not None:
        raise UsageError(f"the average {asked} is of an earlier step, which sample.average cannot name")
    lock = folder.locked(run)
    try:
        path = run / folder.CONFIG
        config = RunConfig.from_json(read_json(path, "a run's config", error=UsageError), allowed)
        sample = replace(config.sample, sampler=section.sampler, guidance=section.guidance)
        if average is not None:
            sample = replace(sample, average=0.0 if asked is None else asked.length)
        chosen = replace(config, sample=sample)
        changes = list(map(str, all_changes(config, chosen)))
        if changes:
            step = int(checkpoint.find(run / folder.CHECKPOINTS)[-1].name.removeprefix("step-"))
            atomic_bytes(path, (json.dumps(chosen.to_json(), indent=1) + "\n").encode())
            JsonLog(run)(Changed(step, changes, config.train.batch_size))
    finally:
        lock.release()
    return changes
