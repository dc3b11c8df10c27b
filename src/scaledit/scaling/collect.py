"""Collects a study's folder of results into its table: rows, losses and pictures, and their order, are a pure
function of the files; only `About.made` depends on the machine.

results/KEY.json  (training runs: evaluations, losses)  +  (measurements: one Result each)  ->  Table
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from scaledit import assemble, machine
from scaledit.config import RunConfig, old
from scaledit.errors import RunError, shown
from scaledit.evaluation.metric import columns
from scaledit.evaluation.protocol import is_conclusive
from scaledit.evaluation.result import Result
from scaledit.models import flops
from scaledit.sampling.request import EVALUATIONS, is_stated
from scaledit.scaling.ablated_runs import RATE_KEY
from scaledit.scaling.ablation import BAR, RATE, REFERENCE
from scaledit.scaling.compute import train_macs_of
from scaledit.scaling.plan import evaluations
from scaledit.scaling.queue import Job, Queue
from scaledit.scaling.study import AblationStudy, Study, StudyRun
from scaledit.scaling.table import FINAL, TRAINING, About, Loss, Row, Table, cell
from scaledit.scaling.work import RUNS, measurement_job, training_job, trial_results, with_rate

OF_ONE_RUN = ("samples", "run", "step", "sha256", "seed", "sampler", "guidance", "decoder")
"""Keys of a protocol that the row's own columns repeat, or that hold for one row only."""


def collect(study: Study, queue: Queue, command: str) -> tuple[Table, list[Job]]:
    """The table of all finished jobs, and the jobs without a result. command: reproduces the study.

    Raises RunError for a corrupt result, UsageError for a result of another study.
    """
    rows: list[Row] = []
    losses: list[Loss] = []
    pictures: dict[str, bytes] = {}
    protocols: dict[str, Mapping[str, Any]] = {}
    missing: list[Job] = []
    seconds = 0.0
    loss_at: dict[str, Mapping[str, float | None]] = {}
    configs: dict[str, RunConfig] = {run.name: run.config for run in study.runs}
    for run in study.runs:
        job = training_job(run)
        if not queue.done(job.key):
            missing.append(job)
            continue
        result = queue.result(job)
        with queue.parsing(job):
            seconds += _number(result, "seconds")
            if run.may_diverge and "diverged" in result:
                continue
            if study.ablation is not None:
                configs[run.name] = with_rate(run, queue)
            loss_at[run.name] = {
                step: None if loss is None else _number(result["loss_at"], step)
                for step, loss in result["loss_at"].items()
            }
            losses += [Loss(run.name, int(step), float(loss)) for step, loss in result["losses"]]
            pictured = study.ablation is None or run.settings["role"] != RATE  # no trial is shown
            if result["pictures"] and pictured:
                folder = queue.out / RUNS / run.key
                path = (folder / result["pictures"]).resolve()
                if not path.is_relative_to(folder.resolve()):
                    raise ValueError(f"its image {shown(result['pictures'])} is outside of {folder}")
                pictures |= {run.name: path.read_bytes()} if path.is_file() else {}
            for evaluation in result["evaluations"]:
                key = _protocol(evaluation, protocols)
                rows.append(_row(run, TRAINING, configs[run.name], evaluation, loss_at[run.name], key))
    for measurement in study.measurements:
        run, job = measurement.run, measurement_job(measurement)
        if not queue.done(job.key) or run.name not in loss_at:
            missing.append(job)
            continue
        result = queue.result(job)
        with queue.parsing(job):
            seconds += _number(result, "seconds")
            key = _protocol(result, protocols)
            config = replace(measurement.config, optimizer=configs[run.name].optimizer)
            row = _row(run, measurement.part, config, result, loss_at[run.name], key)
            if measurement.name:
                more = {**row.settings, **(measurement.settings or {})}
                row = replace(row, name=measurement.name, settings=more)
                configs.setdefault(row.name, config)
            rows.append(row)
    if study.ablation is not None:
        check_budgets(study, study.ablation, rows)
    measured = {measurement.run.name for measurement in study.measurements}
    for run in study.runs if study.varied else ():
        if run.name in loss_at and run.name not in measured:  # only its loss is known
            end = {"name": run.name, "step": run.config.train.steps, "protocol": {}}
            rows.append(_row(run, FINAL, run.config, end, loss_at[run.name], ""))
    rows.sort(key=lambda row: row.part != FINAL)  # stable: final results come first
    metrics = columns(*protocols.values())
    conclusive = any(is_conclusive(protocol) for protocol in protocols.values())
    main = next((key for row in rows for key in metrics if key in row.metrics), "") if conclusive else ""
    made = {**machine.described(), "hours": round(seconds / 3600, 2)}
    del made["threads"]  # of this process; every worker has one
    about = About(
        name=study.name,
        title=study.title,
        command=command,
        distance=metrics[main].title if main else "",
        floor=next((row.metrics[f"{main}_real"] for row in rows if f"{main}_real" in row.metrics), None),
        sizes=study.sizes,
        protocols=protocols,
        configs={name: config.to_json() for name, config in configs.items()},
        made=made,
        declared=study.declared,
        varied=study.varied,
        failed=_failures(study, queue, missing) if study.varied or study.ablation else {},
        ablation={} if study.ablation is None else _ablation(study.ablation, queue),
    )
    return Table(about, tuple(rows), tuple(losses), pictures), missing


def check_budgets(study: Study, ablation: AblationStudy, rows: Sequence[Row]) -> None:
    """Raises RunError if a result at the end of training does not have the training compute that its role
    declares, up to one step."""
    budgets = {bar["name"]: bar["train_macs"] for bar in ablation.bars}
    budgets |= {one["name"]: one["train_macs"] for one in ablation.references}
    for row in rows:
        budget = budgets.get(row.settings["switch"]) if row.settings["role"] in (REFERENCE, BAR) else None
        budget = ablation.budget if budget is None else budget
        if row.part == FINAL and row.steps * abs(row.train_macs - budget) > row.train_macs:
            raise RunError(
                f"{study.name}: {row.name} has {row.train_macs} multiply-adds of training, but its budget is "
                f"{budget}; report this error"
            )


def _ablation(ablation: AblationStudy, queue: Queue) -> dict[str, Any]:
    """What verdicts need besides the rows. The learning rates are those of trials that are done."""
    rates = {
        owner: {f"{rate:g}": fd for rate, fd in trial_results(trials, queue).items()}
        for owner, trials in ablation.trials.items()
        if all(queue.done(trial.key) for trial in trials)
    }
    return {
        **ablation.switches.to_json(),
        "seeds": list(ablation.seeds),
        "budget": ablation.budget,
        "references": [dict(one) for one in ablation.references],
        "bars": [dict(one) for one in ablation.bars],
        "rates": rates,
    }


def _failures(study: Study, queue: Queue, missing: Sequence[Job]) -> dict[str, str]:
    """Why runs without a result have failed, by their names."""
    reasons, left = queue.failures(), {job.key for job in missing}
    failed = {run.name: reasons[run.key] for run in study.runs if run.key in left & reasons.keys()}
    for measurement in study.measurements:
        if measurement.key in left & reasons.keys():
            failed.setdefault(measurement.run.name, reasons[measurement.key])
    return failed


def _number(table: Mapping[str, Any], key: str) -> float:
    """Raises KeyError if the number is missing, ValueError if it is none."""
    value = table[key]
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"{key} is {shown(value)}")
    return value


def _row(
    run: StudyRun,
    part: str,
    config: RunConfig,
    values: Mapping[str, Any],
    loss_at: Mapping[str, float | None],
    protocol: str,
) -> Row:
    result, counts, model = Result.from_json(values), flops.count(config.model), config.model
    # No verdict of a study is based on an extractor with random weights.
    main = next((result.metrics[key] for key in result.columns if is_conclusive(result.protocol)), None)
    step, batch_size = int(values["step"]), config.train.batch_size
    metrics: dict[str, float] = {}
    for key, metric in result.metrics.items():
        metrics |= {key: metric.value}
        metrics |= {f"{key}_std": metric.std} if metric.std is not None else {}
        metrics |= {f"{key}_real": metric.real} if metric.real is not None else {}
    sampler, evaluate = config.sample.sampler, config.evaluate
    is_ablation = "role" in run.settings
    passes = evaluations(sampler, evaluate.guidance, config.diffusion.schedule)
    if is_stated(spent := values["protocol"].get(EVALUATIONS)):  # the images', not the most that it may spend
        passes = round(passes * spent["mean"] / sampler.total_evaluations())
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
        train_macs=train_macs_of(config, step),
        seed=config.train.seed,
        loss=loss_at.get(str(step)),
        fd=main.value if main else None,
        fd_std=main.std if main else None,
        sampler=cell(assemble.sampler_json(sampler, config.diffusion.schedule, config.model.shape)),
        guidance=cell([part.to_json() for part in evaluate.guidance]),
        decoder=str(values["protocol"].get("decoder") or ""),
        sampling_macs=passes * counts.macs,
        num=evaluate.num,
        sample_sets=evaluate.seeds,
        protocol=protocol,
        metrics=metrics,
        settings={**run.settings, **({RATE_KEY: config.optimizer.learning_rate} if is_ablation else {})},
    )


def _protocol(values: Mapping[str, Any], protocols: dict[str, Mapping[str, Any]]) -> str:
    """Adds the protocol of a result to `protocols` and returns its key."""
    shared = {key: value for key, value in old.protocol(values["protocol"]).items() if key not in OF_ONE_RUN}
    key = hashlib.sha256(json.dumps(shared, sort_keys=True).encode()).hexdigest()[:8]
    protocols[key] = shared
    return key
