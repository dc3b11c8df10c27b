"""What a study's jobs do: train a run, and judge it once it is trained.

    train XL/1      ->  the run folder, its evaluations on the way, its loss curve
    measure XL/1    ->  one Result of its final weights, drawn as the measurement says

Every number depends on the study alone: not on which process did a job, nor on what else it did.
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
from scaledit.evaluation.judge import Judge, open_judge, sample_sets
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
"""The share of the steps so far over which a result's loss is a mean."""
NOTED = 1.0
"""Seconds between two notes of how far a job is."""
POLL = 0.5


class Ended(NamedTuple):
    job: Job
    seconds: float


class Failed(NamedTuple):
    job: Job
    why: str


def jobs(study: Study) -> list[Job]:
    return [*map(training_job, study.runs), *map(measurement_job, study.measurements)]


def training_job(run: StudyRun) -> Job:
    config = run.config
    images = config.train.batch_size * config.train.steps
    looks = -(-config.train.steps // config.evaluate.every) if config.evaluate.every else 0
    macs = flops.train_macs(flops.count(config.model).macs, images)
    return Job(run.key, {"train": _said(config)}, macs + looks * sampling_macs(run.config), as_now=as_now)


def measurement_job(measurement: Measurement) -> Job:
    what = {"measure": _said(measurement.config), "of": measurement.run.key, "part": measurement.part}
    return Job(
        measurement.key, what, sampling_macs(measurement.config), needs=(measurement.run.key,), as_now=as_now
    )


def as_now(what: Mapping[str, Any]) -> dict[str, Any]:
    """What a job of an earlier version depends on, in today's words; what it is not stays as it is."""
    now = dict(what)
    for key in ("train", "measure"):
        if isinstance(now.get(key), Mapping):
            with suppress(UsageError):
                now[key] = _said(RunConfig.from_json(now[key]))
    return json.loads(json.dumps(now))


def _said(config: RunConfig) -> dict[str, Any]:
    """What a job depends on of a config: guidance that changes nothing is none."""
    said = config.to_json()
    for key, guidance in (("sample", config.sample.guidance), ("evaluate", config.evaluate.guidance)):
        said[key]["guidance"] = [part.to_json() for part in guidance if not part.idle]
    return said


def sampling_macs(config: RunConfig) -> float:
    """Multiply-adds of one evaluation."""
    passes = evaluations(config.sample.sampler, config.evaluate.guidance)
    return float(flops.count(config.model).macs * passes * config.evaluate.num * config.evaluate.seeds)


def work(study: Study, queue: Queue, device: str, stop: StopRequest) -> Iterator[Ended | Failed]:
    """Does jobs until all are done or failed here, or a signal has come. Raises UsageError for a job that
    cannot be done as it was asked for."""
    runs = {run.key: run for run in study.runs}
    measurements = {measurement.key: measurement for measurement in study.measurements}
    while stop.signal is None:
        with queue.next() as job:
            if job is not None:
                began = time.monotonic()
                try:
                    if job.key in runs:
                        found = trained(runs[job.key], queue, job, device, stop)
                    else:
                        found = measured(measurements[job.key], queue, job, device, stop)
                except Stopping:
                    return
                except RunError as error:
                    queue.fail(job, str(error))
                    yield Failed(job, str(error))
                    continue
                seconds = time.monotonic() - began
                queue.finish(job, {**found, "seconds": round(seconds, 1)})
                yield Ended(job, seconds)
                continue
        left = queue.left
        if not left or all(_blocked(one, queue) for one in left):
            return
        time.sleep(POLL)  # what is left is in other processes' hands, or waits for such


def _blocked(job: Job, queue: Queue) -> bool:
    """Whether a job will not be done by anybody that this process knows of."""
    return job.key in queue.failed or any(key in queue.failed for key in job.needs)


def trained(run: StudyRun, queue: Queue, job: Job, device: str, stop: StopRequest) -> dict[str, Any]:
    """Trains a run, or goes on with it, and gives what its log says. Raises Stopping, with everything saved;
    RunError."""
    folder, steps = queue.out / RUNS / run.key, run.config.train.steps
    folder.mkdir(parents=True, exist_ok=True)
    tell, noted, last = log.JsonLog(folder), 0.0, None
    context = RunContext(Ranks(assemble.device(device)), stop)
    for event in train(run.config, folder, resume="auto", context=context):  # to its end: it holds the folder
        tell(event)
        last = event
        if isinstance(event, Stepped | Evaluated) and time.monotonic() > noted + NOTED:
            noted = time.monotonic()
            queue.moved(job, event.step / steps)
    if isinstance(last, Stopped):
        raise Stopping
    logged = log.read(folder)
    losses = [(event["step"], event["loss"]) for event in logged if event["event"] == "stepped"]
    looks = [_evaluation(event) for event in logged if event["event"] == "evaluated"]
    return {
        "evaluations": looks,
        "losses": curve(losses),
        "loss_at": {str(step): recent(losses, step) for step in {*(look["step"] for look in looks), steps}},
        "skipped": sum(event["event"] == "skipped" for event in logged),
        "pictures": _last_pictures(logged),
    }


def _evaluation(event: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in event.items() if key != "event"}


def _last_pictures(events: Sequence[Mapping[str, Any]]) -> str | None:
    """The sample grid of the last step, relative to the run folder."""
    paths = [event["path"] for event in events if event["event"] == "sampled"]
    return paths[-1] if paths else None


def recent(logged: Sequence[tuple[int, float]], step: int) -> float | None:
    """The mean of the logged losses of the last tenth of the steps up to `step`."""
    values = [
        loss for at, loss in logged if (1 - RECENT) * step < at <= step and isinstance(loss, int | float)
    ]
    return float(np.mean(values)) if values else None


def curve(logged: Sequence[tuple[int, float]], points: int = CURVE_POINTS) -> list[list[float]]:
    """(step, loss) of every logged step -> at most `points` of (step, mean loss since the point before), with
    steps evenly spaced in their logarithm. The means of all points together hold every logged step once."""
    values = [(step, loss) for step, loss in logged if isinstance(loss, int | float)]  # "nan" is a string
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


def measured(
    measurement: Measurement, queue: Queue, job: Job, device: str, stop: StopRequest
) -> dict[str, Any]:
    """Draws from a trained run and judges. Raises Stopping between two batches; RunError for a corrupt
    checkpoint."""
    config = measurement.config
    run = queue.out / RUNS / measurement.run.key
    pipeline = load(run, device, config.autoencoder, allow_import=config.modules())
    judge = _judge(replace(config.evaluate, num=2, seeds=1, seed=0, every=0), str(pipeline.device))
    noted = 0.0

    def progress(done: int, total: int) -> None:
        nonlocal noted
        stop.check()
        if time.monotonic() > noted + NOTED:
            noted = time.monotonic()
            queue.moved(job, done / total)

    settings = replace(config.sample, guidance=config.evaluate.guidance)
    result = judge.evaluate(sample_sets(judge, pipeline, config.evaluate, settings), progress)
    return {"step": pipeline.origin["step"], **json.loads(json.dumps(result.to_json()))}


@functools.lru_cache(maxsize=4)
def _judge(config: EvaluateConfig, device: str) -> Judge:
    """One judge for all runs that are judged alike: what is drawn plays no part in it."""
    return open_judge(config, torch.device(device))
