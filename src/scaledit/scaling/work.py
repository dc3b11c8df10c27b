"""The jobs of a study: train a run, and evaluate it once it is trained.

    train XL/1      ->  the run folder, its evaluations during training, its loss curve
    measure XL/1    ->  one Result of its final weights, sampled as the measurement declares

Every value depends on the study alone, not on the process that did the job.
"""

from __future__ import annotations

import functools
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch

from scaledit import assemble
from scaledit.config import EvaluateConfig, RunConfig
from scaledit.errors import RunError, UsageError
from scaledit.evaluation.judge import Judge, open_judge, open_run_judge, sample_sets
from scaledit.evaluation.own import HELD_OUT
from scaledit.models import flops
from scaledit.pipeline import load
from scaledit.scaling.plan import evaluations
from scaledit.scaling.queue import Job, Queue
from scaledit.scaling.study import Measurement, Study, StudyRun
from scaledit.training import log
from scaledit.training.dit import train
from scaledit.training.events import Evaluated, Stepped, Stopped
from scaledit.training.loop import RunContext
from scaledit.training.ranks import Ranks
from scaledit.training.signals import Stopping, StopRequest

RUNS = "runs"
CURVE_POINTS = 60
"""Of a loss curve, evenly spaced in the logarithm of the step."""
RECENT = 0.1
"""The loss of a result is the mean over this last share of the steps so far."""
REPORT_EVERY = 1.0
"""Seconds between reports of progress."""
POLL = 0.5


class Ended(NamedTuple):
    job: Job
    seconds: float


class Failed(NamedTuple):
    job: Job
    reason: str


def jobs(study: Study) -> list[Job]:
    return [*map(training_job, study.runs), *map(measurement_job, study.measurements)]


def training_job(run: StudyRun) -> Job:
    train, evaluate = run.config.train, run.config.evaluate
    times = -(-train.steps // evaluate.every) if evaluate.every else 0
    macs = flops.train_macs(flops.count(run.config.model).macs, train.batch_size * train.steps)
    macs += times * sampling_macs(run.config)
    return Job(run.key, {"train": _inputs(run.config)}, macs, upgrade=upgraded)


def measurement_job(measurement: Measurement) -> Job:
    config, run = measurement.config, measurement.run.key
    inputs = {"measure": _inputs(config), "of": run, "part": measurement.part}
    return Job(measurement.key, inputs, sampling_macs(config), needs=(run,), upgrade=upgraded)


def upgraded(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """The inputs of a job of an earlier version as this version writes them; unknown configs stay as they
    are."""
    now = dict(inputs)
    for key in ("train", "measure"):
        if isinstance(now.get(key), Mapping):
            with suppress(UsageError):
                now[key] = _inputs(RunConfig.from_json(now[key]))
    return json.loads(json.dumps(now))


def _inputs(config: RunConfig) -> dict[str, Any]:
    """The config without guidance that changes nothing."""
    values = config.to_json()
    for key, guidance in (("sample", config.sample.guidance), ("evaluate", config.evaluate.guidance)):
        values[key]["guidance"] = [part.to_json() for part in guidance if not part.idle]
    return values


def sampling_macs(config: RunConfig) -> float:
    """Multiply-adds of one evaluation."""
    passes = evaluations(config.sample.sampler, config.evaluate.guidance)
    return float(flops.count(config.model).macs * passes * config.evaluate.num * config.evaluate.seeds)


def work(study: Study, queue: Queue, device: str, stop: StopRequest) -> Iterator[Ended | Failed]:
    """Does jobs until all are done or failed here, or a signal arrives. Raises UsageError for a job that
    cannot be done as declared."""
    runs = {run.key: run for run in study.runs}
    measurements = {measurement.key: measurement for measurement in study.measurements}
    while stop.signal is None:
        with queue.next() as job:
            if job is not None:
                began = time.monotonic()
                try:
                    if job.key in runs:
                        result = train_run(runs[job.key], queue, job, device, stop)
                    else:
                        result = measure(measurements[job.key], queue, job, device, stop)
                except Stopping:
                    return
                except RunError as error:
                    queue.fail(job, str(error))
                    yield Failed(job, str(error))
                    continue
                seconds = time.monotonic() - began
                queue.finish(job, {**result, "seconds": round(seconds, 1)})
                yield Ended(job, seconds)
                continue
        if all(not queue.failed.isdisjoint((job.key, *job.needs)) for job in queue.left):
            return
        time.sleep(POLL)  # other processes hold the remaining jobs or those that they need


def train_run(run: StudyRun, queue: Queue, job: Job, device: str, stop: StopRequest) -> dict[str, Any]:
    """Trains a run, or resumes it, and returns what its log records. Raises Stopping after saving;
    RunError."""
    folder, steps = queue.out / RUNS / run.key, run.config.train.steps
    folder.mkdir(parents=True, exist_ok=True)
    record, reported, event = log.JsonLog(folder), 0.0, None
    context = RunContext(Ranks(assemble.device(device)), stop)
    sample = replace(run.config.sample, early=False)  # nobody watches the runs of a study
    for event in train(replace(run.config, sample=sample), folder, resume="auto", context=context):
        record(event)
        if isinstance(event, Stepped | Evaluated) and time.monotonic() > reported + REPORT_EVERY:
            reported = time.monotonic()
            queue.report_progress(job, event.step / steps)
    if isinstance(event, Stopped):
        raise Stopping
    events = log.read(folder)
    losses = [(event["step"], event["loss"]) for event in events if event["event"] == "stepped"]
    results = [event for event in events if event["event"] == "evaluated"]
    evaluated = {*(result["step"] for result in results), steps}
    pictures = [event["path"] for event in events if event["event"] == "sampled"]
    return {
        "evaluations": [{key: v for key, v in result.items() if key != "event"} for result in results],
        "losses": loss_curve(losses),
        "loss_at": {str(step): recent_loss(losses, step) for step in evaluated},
        "skipped": sum(event["event"] == "skipped" for event in events),
        "pictures": pictures[-1] if pictures else None,  # the sample grid of the last step
    }


def recent_loss(logged: Sequence[tuple[int, float]], step: int) -> float | None:
    """The mean of the logged losses in the last tenth of the steps up to `step`."""
    values = [
        loss for at, loss in logged if (1 - RECENT) * step < at <= step and isinstance(loss, int | float)
    ]
    return float(np.mean(values)) if values else None


def loss_curve(logged: Sequence[tuple[int, float]], points: int = CURVE_POINTS) -> list[list[float]]:
    """(step, loss) of every logged step -> at most `points` of (step, mean loss since the previous point),
    with steps evenly spaced in their logarithm. Every logged step is part of exactly one mean."""
    values = [
        (step, loss) for step, loss in logged if isinstance(loss, int | float)
    ]  # a log has NaN as the string "nan"
    if not values:
        return []
    steps = np.array([step for step, _ in values], dtype=np.float64)
    losses = np.array([loss for _, loss in values])
    edges = np.unique(np.searchsorted(steps, np.geomspace(steps[0], steps[-1], points)))
    ends = np.unique(np.append(edges, len(steps) - 1).clip(max=len(steps) - 1))
    begins = np.concatenate([[0], ends[:-1] + 1])
    return [
        [int(steps[end]), float(losses[begin : end + 1].mean())]
        for begin, end in zip(begins, ends, strict=True)
    ]


def measure(
    measurement: Measurement, queue: Queue, job: Job, device: str, stop: StopRequest
) -> dict[str, Any]:
    """Samples from a trained run and evaluates the samples. Raises Stopping between two batches; RunError for
    a corrupt checkpoint."""
    config = measurement.config
    run = queue.out / RUNS / measurement.run.key
    pipeline = load(run, device, config.autoencoder, allow_import=config.modules())
    evaluate = replace(config.evaluate, num=2, seeds=1, seed=0, every=0)
    judge = (
        open_run_judge(config, pipeline.class_names, pipeline.device, pipeline.decoder)
        if config.evaluate.reference == HELD_OUT
        else _judge(evaluate, str(pipeline.device), tuple(pipeline.class_names))
    )
    reported = 0.0

    def progress(done: int, total: int) -> None:
        nonlocal reported
        stop.check()
        if time.monotonic() > reported + REPORT_EVERY:
            reported = time.monotonic()
            queue.report_progress(job, done / total)

    settings = replace(config.sample, guidance=config.evaluate.guidance)
    result = judge.evaluate(sample_sets(judge, pipeline, config.evaluate, settings), progress)
    return {"step": pipeline.origin["step"], **json.loads(json.dumps(result.to_json()))}


@functools.lru_cache(maxsize=4)
def _judge(config: EvaluateConfig, device: str, class_names: tuple[str, ...]) -> Judge:
    """One judge for all runs that are evaluated alike, however they are sampled."""
    return open_judge(config, torch.device(device), class_names=class_names)
