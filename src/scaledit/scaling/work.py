"""The jobs of a study: train a run, and evaluate it once it is trained.

    train XL/1      ->  the run folder, its evaluations during training, its loss curve
    measure XL/1    ->  one Result of its final weights, sampled as the measurement declares

Every value depends on the study alone, not on the process that did the job.
"""

from __future__ import annotations

import functools
import json
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch

from scaledit import assemble
from scaledit.config import EvaluateConfig, RunConfig
from scaledit.diffusion.guidance import active
from scaledit.errors import Diverged, RunError, UsageError
from scaledit.evaluation.judge import Judge, open_judge, open_run_judge, sample_sets
from scaledit.evaluation.own import HELD_OUT
from scaledit.evaluation.result import Result
from scaledit.models import flops
from scaledit.pipeline import load
from scaledit.scaling.compute import train_macs_of
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
    macs = train_macs_of(run.config) + times * sampling_macs(run.config)
    inputs: dict[str, Any] = {"train": _inputs(run.config)}
    if run.trials:
        inputs["trials"] = {trial.key: trial.config.optimizer.learning_rate for trial in run.trials}
    return Job(run.key, inputs, macs, needs=tuple(trial.key for trial in run.trials), upgrade=upgraded)


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
        values[key]["guidance"] = [part.to_json() for part in active(guidance)]
    return values


def sampling_macs(config: RunConfig) -> float:
    """Multiply-adds of one evaluation."""
    passes = evaluations(config.sample.sampler, config.evaluate.guidance, config.diffusion.schedule)
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
        if not _possible(queue):
            return
        time.sleep(POLL)  # other processes hold the remaining jobs or those that they need


def _possible(queue: Queue) -> bool:
    """Whether a job is left that neither failed here nor needs, through others, one that did."""
    left, blocked = queue.left, set(queue.failed)
    while more := [job.key for job in left if job.key not in blocked and not blocked.isdisjoint(job.needs)]:
        blocked.update(more)
    return any(job.key not in blocked for job in left)


def with_rate(run: StudyRun, queue: Queue) -> RunConfig:
    """The config of a run whose trials are done, with the learning rate of the best of them. Raises RunError
    if all of them diverged."""
    if not run.trials:
        return run.config
    found = trial_results(run.trials, queue)
    distances = {rate: distance for rate, distance in found.items() if distance is not None}
    if not distances:
        raise RunError(
            f"{run.name} has no learning rate: all of {', '.join(f'{rate:g}' for rate in found)} diverged; "
            "declare lower ones in [rates]"
        )
    best = min(distances, key=lambda rate: (distances[rate], rate))
    return replace(run.config, optimizer=replace(run.config.optimizer, learning_rate=best))


def trial_results(trials: Sequence[StudyRun], queue: Queue) -> dict[float, float | None]:
    """The distance at the end of each trial, by its learning rate; None if it diverged. Without a reference,
    the training loss takes the place of the distance."""
    found: dict[float, float | None] = {}
    for trial in trials:
        job = training_job(trial)
        result, steps = queue.result(job), trial.config.train.steps
        with queue.parsing(job):
            value: Any = None
            if "diverged" not in result:
                last = [e for e in result["evaluations"] if e["step"] == steps]
                measured = Result.from_json(last[-1]) if last else None
                value = result["loss_at"][str(steps)]
                if measured is not None and measured.columns:
                    value = measured.metrics[next(iter(measured.columns))].value
                if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
                    raise ValueError(f"its result at the end is {value!r}")
            found[trial.config.optimizer.learning_rate] = value
    return found


def train_run(run: StudyRun, queue: Queue, job: Job, device: str, stop: StopRequest) -> dict[str, Any]:
    """Trains a run, or resumes it, and returns what its log records. Raises Stopping after saving; RunError,
    but of a run that may diverge returns why it did."""
    try:
        return _train_run(run, queue, job, device, stop)
    except Diverged as error:
        if not run.may_diverge:
            raise
        return {"diverged": str(error)}


def _train_run(run: StudyRun, queue: Queue, job: Job, device: str, stop: StopRequest) -> dict[str, Any]:
    folder, steps = queue.out / RUNS / run.key, run.config.train.steps
    folder.mkdir(parents=True, exist_ok=True)
    record, reported, event = log.JsonLog(folder), 0.0, None
    context = RunContext(Ranks(assemble.device(device)), stop)
    config = with_rate(run, queue)
    sample = replace(config.sample, early=False)  # nobody watches the runs of a study
    for event in train(replace(config, sample=sample), folder, resume="auto", context=context):
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
    average = config.sample.average
    pipeline = load(run, device, config.autoencoder, allow_import=config.modules(), average=average)
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
