"""From a study's folder of results to its table: rows, losses and pictures are a pure function of the files,
whoever made them, in order; only `About.made` tells of where they were put together.

results/KEY.json  (trainings: evaluations, losses)  +  (measurements: a Result each)  ->  Table
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from typing import Any

from scaledit import assemble, machine
from scaledit.config import RunConfig, old
from scaledit.errors import shown
from scaledit.evaluation.metric import columns
from scaledit.evaluation.result import Result
from scaledit.models import flops
from scaledit.scaling.plan import evaluations
from scaledit.scaling.queue import Job, Queue
from scaledit.scaling.study import Study, StudyRun
from scaledit.scaling.table import FINAL, TRAINING, About, Loss, Row, Table, cell
from scaledit.scaling.work import RUNS, measurement_job, training_job

OF_ONE_RUN = (
    "samples",
    "run",
    "step",
    "sha256",
    "seed",
    "sampler",
    "guidance",
    "decoder",
)
"""What a protocol says that the row's own columns say too, or that holds for one row only."""


def collect(study: Study, queue: Queue, command: str) -> tuple[Table, list[Job]]:
    """The table of all results that are there, and the jobs whose results are not."""
    rows: list[Row] = []
    losses: list[Loss] = []
    pictures: dict[str, bytes] = {}
    protocols: dict[str, Mapping[str, Any]] = {}
    missing: list[Job] = []
    seconds = 0.0
    loss_at: dict[str, Mapping[str, float | None]] = {}
    for run in study.runs:
        job = training_job(run)
        if not queue.done(job.key):
            missing.append(job)
            continue
        found = queue.result(job)
        with queue.using(job):
            seconds += _number(found, "seconds")
            loss_at[run.name] = {
                step: None if loss is None else _number(found["loss_at"], step)
                for step, loss in found["loss_at"].items()
            }
            losses += [Loss(run.name, int(step), float(loss)) for step, loss in found["losses"]]
            if found["pictures"]:
                folder = queue.out / RUNS / run.key
                path = (folder / found["pictures"]).resolve()
                if not path.is_relative_to(folder.resolve()):
                    raise ValueError(f"its picture {shown(found['pictures'])} is outside of {folder}")
                pictures |= {run.name: path.read_bytes()} if path.is_file() else {}
            for evaluation in found["evaluations"]:
                key = _protocol(evaluation, protocols)
                rows.append(_row(run, TRAINING, run.config, evaluation, loss_at[run.name], key))
    for measurement in study.measurements:
        job = measurement_job(measurement)
        if not queue.done(job.key) or measurement.run.name not in loss_at:
            missing.append(job)
            continue
        found = queue.result(job)
        run = measurement.run
        with queue.using(job):
            seconds += _number(found, "seconds")
            key = _protocol(found, protocols)
            rows.append(_row(run, measurement.part, measurement.config, found, loss_at[run.name], key))
    rows.sort(key=lambda row: row.part != FINAL)  # stable: the results proper come first
    every = columns(*protocols.values())
    main = next((key for row in rows for key in every if key in row.metrics), "")
    made = {**machine.described(), "hours": round(seconds / 3600, 2)}
    del made["threads"]  # of this process: every worker has one
    about = About(
        name=study.name,
        title=study.title,
        command=command,
        distance=every[main].title if main else "",
        floor=next((row.metrics[f"{main}_real"] for row in rows if f"{main}_real" in row.metrics), None),
        sizes=study.sizes,
        protocols=protocols,
        configs={run.name: run.config.to_json() for run in study.runs},
        made=made,
        declared=study.declared,
    )
    return Table(about, tuple(rows), tuple(losses), pictures), missing


def _number(table: Mapping[str, Any], key: str) -> float:
    """Raises KeyError, ValueError."""
    value = table[key]
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"{key} is {shown(value)}")
    return value


def _row(
    run: StudyRun,
    part: str,
    config: RunConfig,
    found: Mapping[str, Any],
    loss_at: Mapping[str, float | None],
    protocol: str,
) -> Row:
    result, counts, model = Result.from_json(found), flops.count(config.model), config.model
    main = next(iter(result.columns), None)
    figure = result.metrics[main] if main else None
    step, batch_size = int(found["step"]), config.train.batch_size
    metrics: dict[str, float] = {}
    for key, one in result.metrics.items():
        metrics |= {key: one.value}
        metrics |= {f"{key}_std": one.std} if one.std is not None else {}
        metrics |= {f"{key}_real": one.real} if one.real is not None else {}
    settings, judged = config.sample, config.evaluate
    passes = evaluations(settings.sampler, judged.guidance)
    return Row(
        name=run.name,
        part=part,
        size=run.size,
        patch_size=model.patch_size,
        conditioning=model.block.label(),
        tokens=model.tokens,
        params=counts.params,
        macs=counts.macs,
        batch_size=batch_size,
        steps=step,
        images=step * batch_size,
        train_macs=flops.train_macs(counts.macs, batch_size * step),
        seed=config.train.seed,
        loss=loss_at.get(str(step)),
        fd=figure.value if figure else None,
        fd_std=figure.std if figure else None,
        sampler=cell(assemble.sampler_json(settings.sampler, config.diffusion.schedule)),
        guidance=cell([one.to_json() for one in judged.guidance]),
        decoder=str(found["protocol"].get("decoder") or ""),
        sampling_macs=passes * counts.macs,
        num=judged.num,
        sample_sets=judged.seeds,
        protocol=protocol,
        metrics=metrics,
        settings=run.settings,
    )


def _protocol(found: Mapping[str, Any], protocols: dict[str, Mapping[str, Any]]) -> str:
    """Adds the protocol of a result to `protocols`, unless it is there, and gives its key."""
    said = {key: value for key, value in old.protocol(found["protocol"]).items() if key not in OF_ONE_RUN}
    key = hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()[:8]
    protocols[key] = said
    return key
