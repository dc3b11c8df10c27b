"""The training loop as a stream of events, over a run folder that survives being killed.

for event in train(config, out, resume="auto"): ...

out/config.json   out/log.jsonl   out/checkpoints/step-XXXXXXXX/   out/samples/step-XXXXXXXX.png
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import torch

from scaledit import assemble, checkpoint, images
from scaledit.config import Config, RunConfig, differences
from scaledit.data.sets import TrainingSet, check_fits
from scaledit.errors import RunError, UsageError
from scaledit.evaluation.judge import Judge, drawn, open_judge
from scaledit.models import flops
from scaledit.pipeline import Pipeline
from scaledit.training.events import Evaluated, Event, Finished, Sampled, Saved, Skipped, Started, Stepped
from scaledit.training.state import TrainState

CONFIG, CHECKPOINTS, SAMPLES = "config.json", "checkpoints", "samples"


def train(
    config: RunConfig,
    out: Path,
    *,
    resume: Literal["auto", "never"] = "never",
    device: str = "auto",
    dataset: TrainingSet | None = None,
) -> Iterator[Event]:
    """Trains `config` in the run folder `out`, yielding what happens.

    resume="auto" goes on from the latest checkpoint of the same config, or starts if there is none.
    `dataset` replaces the one that config.data names. Raises UsageError before anything is written if the
    folder holds another run or the data does not fit; RunError if a checkpoint is damaged or the numbers
    go wrong train.max_skips times in a row.
    """
    where = assemble.device(device)
    dataset = assemble.dataset(config.data) if dataset is None else dataset
    check_fits(dataset, config.model.shape, config.model.num_classes)
    judge = _judge(config, where)
    saved = claim(config, out, resume)
    state = TrainState.create(config, where)
    checkpoints = out / CHECKPOINTS
    if saved is not None:
        state.restore(saved)
    checkpoint.clean(checkpoints)
    counts = flops.count(config.model)
    steps = config.train.steps
    yield Started(config.name, state.step, steps, str(where), counts.params, counts.macs, len(dataset))

    def save() -> Saved:
        if not state.is_finite():
            raise RunError(gone_wrong("the weights are not finite", state.step, checkpoints))
        folder = checkpoint.save(
            checkpoints,
            state.step,
            state.parts(),
            config.to_json(),
            class_names=dataset.class_names,
            **state.counters(),
        )
        checkpoint.prune(checkpoints, config.checkpoint.keep)
        return Saved(state.step, folder)

    in_a_row, logged_step, logged_seconds = 0, state.step, state.seconds
    while state.step < steps:
        began = time.perf_counter()
        result = state.advance(dataset)
        state.seconds += time.perf_counter() - began
        if result.skipped:
            in_a_row += 1
            yield Skipped(state.step, result.loss, result.grad_norm, in_a_row, state.skipped)
            if in_a_row >= config.train.max_skips:
                what = f"{in_a_row} steps in a row were not finite (loss {result.loss})"
                raise RunError(gone_wrong(what, state.step, checkpoints))
        else:
            in_a_row = 0
            if state.step % config.train.log_every == 0 or state.step == steps:
                images_done = (state.step - logged_step) * config.train.batch_size
                rate = images_done / max(state.seconds - logged_seconds, 1e-9)
                logged_step, logged_seconds = state.step, state.seconds
                yield Stepped(
                    step=state.step,
                    loss=result.loss,
                    mse=result.mse,
                    vlb=result.vlb,
                    grad_norm=result.grad_norm,
                    learning_rate=state.optimizer.param_groups[0]["lr"],
                    seconds=state.seconds,
                    images_per_second=rate,
                )
        last = state.step == steps
        if due(state.step, config.sample.every) or (last and config.sample.every):
            yield from _draw_samples(state, dataset, out)
        if judge is not None and (due(state.step, config.evaluate.every) or last):
            yield Evaluated(state.step, judge.score(drawn(judge, _pipeline(state, dataset), config.evaluate)))
        if due(state.step, config.checkpoint.every) or last:
            yield save()
    yield Finished(state.step, state.seconds, state.skipped)


def due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


def claim(config: Config, out: Path, resume: str) -> checkpoint.Checkpoint | None:
    """Makes `out` this run's folder, or finds the checkpoint to go on from; writes nothing if it refuses."""
    path = out / CONFIG
    if path.exists():
        try:
            existing = type(config).from_json(json.loads(path.read_bytes()))
        except (ValueError, TypeError) as error:
            raise UsageError(
                f"{path} cannot be read as a run's config ({error}); choose another --out"
            ) from None
        changed = differences(existing, config)
        if changed:
            raise UsageError(
                f"{out} holds a run of another config ({'; '.join(changed[:3])}"
                + (f"; and {len(changed) - 3} more" if len(changed) > 3 else "")
                + "); choose another --out, or give that run's config"
            )
        if resume != "auto":
            raise UsageError(
                f"{out} already holds this run; add --resume auto to go on, or choose another --out"
            )
    elif out.exists() and any(out.iterdir()):
        raise UsageError(f"{out} is not empty and holds no run; choose another --out")
    found = checkpoint.find(out / CHECKPOINTS)
    latest = checkpoint.open_checkpoint(found[-1]) if found else None
    if latest is not None:
        latest.verify()
    try:
        out.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial")
        partial.write_text(json.dumps(config.to_json(), indent=1) + "\n")
        os.replace(partial, path)
    except OSError as error:
        raise RunError(f"could not write {path}: {error.strerror}") from error
    return latest


def _judge(config: RunConfig, device: torch.device) -> Judge | None:
    """What judges the run as it goes on; opened before the first step, so that what it lacks is said then."""
    if not config.evaluate.every:
        return None
    if config.data.name == "latents":
        raise UsageError(
            "evaluate.every needs pictures, and decoding latents into pictures is not built yet; "
            "set evaluate.every=0"
        )
    return open_judge(config.evaluate, device)


def _pipeline(state: TrainState, dataset: TrainingSet) -> Pipeline:
    """The averaged weights as they are now, ready to sample."""
    origin = {"run": state.config.name, "step": state.step, "weights": "ema"}
    return Pipeline(state.config, state.ema, state.device, dataset.class_names, origin)


def _draw_samples(state: TrainState, dataset: TrainingSet, out: Path) -> Iterator[Sampled]:
    """A grid of the EMA weights: one row a class, the same noise at every step. Latents have no picture."""
    config = state.config
    if config.data.name == "latents":
        return
    with torch.no_grad():
        pipeline = _pipeline(state, dataset)
        classes = config.sample.grid_classes(config.model.num_classes)
        sheet = images.grid(pipeline(classes, seed=config.sample.seed), config.sample.per_class)
    path = out / SAMPLES / f"{checkpoint.folder_name(state.step)}.png"
    origin = {"run": config.name, "step": state.step, "sample": config.to_json()["sample"]}
    images.save_png(path, sheet, origin)
    yield Sampled(state.step, path)


def gone_wrong(what: str, step: int, checkpoints: Path) -> str:
    """Why a run stopped after `step`, and what to go on from."""
    found = checkpoint.find(checkpoints)
    good = f"the last good checkpoint is {found[-1]}" if found else "no checkpoint had been saved yet"
    return (
        f"{what}; stopped after step {step}; {good}. Try a lower optimizer.learning_rate, or optimizer.clip=1"
    )
