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
from scaledit.autoencoders.decoder import Decoder
from scaledit.config import Config, RunConfig, differences
from scaledit.data.latents import Latents
from scaledit.data.sets import TrainingSet, check_fits
from scaledit.errors import RunError, UsageError
from scaledit.evaluation.judge import drawn, open_judge
from scaledit.models import flops
from scaledit.pipeline import Pipeline
from scaledit.training.events import (
    Evaluated,
    Event,
    Finished,
    Sampled,
    Saved,
    Skipped,
    Started,
    Stepped,
    Verifying,
)
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
    if dataset is None:
        encoder = assemble.autoencoder(config.autoencoder, config.data, where)
        dataset = assemble.dataset(config.data, encoder)
    check_fits(dataset, config.model.shape, config.model.num_classes)
    decoder = assemble.decoder(config.autoencoder, dataset, where)
    _check_pictures(config, decoder)
    judge = open_judge(config.evaluate, where) if config.evaluate.every else None
    if isinstance(dataset, Latents) and config.data.verify:
        yield from (Verifying(done, total) for done, total in dataset.verify())
    saved = claim(config, out, resume)
    if saved is not None:
        _check_same_latents(saved, decoder)
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
            made_by=None if decoder is None else decoder.made_by._asdict(),
            **state.counters(),
        )
        checkpoint.prune(checkpoints, config.checkpoint.keep)
        return Saved(state.step, folder)

    def pipeline() -> Pipeline:
        """The averaged weights as they are now, ready to sample."""
        origin = {"run": config.name, "step": state.step, "weights": "ema"}
        return Pipeline(config, state.ema, where, dataset.class_names, origin, decoder)

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
            yield Sampled(state.step, _draw_samples(pipeline(), state.step, out))
        if judge is not None and (due(state.step, config.evaluate.every) or last):
            yield Evaluated(state.step, judge.score(drawn(judge, pipeline(), config.evaluate)))
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


def _check_pictures(config: RunConfig, decoder: Decoder | None) -> None:
    """Raises UsageError where pictures are wanted of latents whose autoencoder is not here."""
    if decoder is None or not (config.sample.every or config.evaluate.every):
        return
    try:
        _ = decoder.autoencoder
    except UsageError as error:
        raise UsageError(f"{error}; or train without pictures: sample.every=0 evaluate.every=0") from None


def _check_same_latents(saved: checkpoint.Checkpoint, decoder: Decoder | None) -> None:
    """Raises UsageError where a run would go on with another autoencoder's latents."""
    before = saved.manifest["state"].get("made_by") or {}
    now = {} if decoder is None else decoder.made_by._asdict()
    if any(before.get(key) != now.get(key) for key in ("encoder_sha256", "scale")):
        names = [maker.get("name", "no autoencoder") for maker in (before, now)]
        raise UsageError(
            f"{saved.folder} was trained on the latents of {names[0]}, these are of {names[1]}, which has "
            "another encoder; choose another --out"
        )


def _draw_samples(pipeline: Pipeline, step: int, out: Path) -> Path:
    """A grid of the EMA weights: one row a class, the same noise at every step."""
    config = pipeline.config
    with torch.no_grad():
        classes = config.sample.grid_classes(config.model.num_classes)
        sheet = images.grid(pipeline(classes, seed=config.sample.seed), config.sample.per_class)
    path = out / SAMPLES / f"{checkpoint.folder_name(step)}.png"
    origin = {"run": config.name, "step": step, "sample": config.to_json()["sample"]}
    images.save_png(path, sheet, origin)
    return path


def gone_wrong(what: str, step: int, checkpoints: Path) -> str:
    """Why a run stopped after `step`, and what to go on from."""
    found = checkpoint.find(checkpoints)
    good = f"the last good checkpoint is {found[-1]}" if found else "no checkpoint had been saved yet"
    return (
        f"{what}; stopped after step {step}; {good}. Try a lower optimizer.learning_rate, or optimizer.clip=1"
    )
