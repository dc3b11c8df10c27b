"""Training a DiT as a stream of events, in a run folder that survives being killed.

for event in train(config, out, resume="auto"): ...

out/config.json   out/log.jsonl   out/checkpoints/step-XXXXXXXX/   out/samples/step-XXXXXXXX.png
out/averages/step-XXXXXXXX/ with ema.power
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from scaledit import assemble, captions, checkpoint, images, machine
from scaledit.autoencoders.decoder import Decoder
from scaledit.callbacks import Progress
from scaledit.config import RunConfig, check_guidance
from scaledit.config.tables import modules
from scaledit.config.updates import updates
from scaledit.data.datasets import attribution
from scaledit.data.latent_buckets import BucketLatents
from scaledit.data.latents import Latents
from scaledit.data.sets import TrainingSet, check_fits
from scaledit.errors import UsageError, counted
from scaledit.evaluation.judge import Judge, check_reference_fits, open_run_judge, sample_sets
from scaledit.models import flops
from scaledit.pipeline import BYTES_OF_A_NUMBER, Pipeline, open_other
from scaledit.sampling.request import BYTES_OF_A_LABEL
from scaledit.training.events import Evaluated, Event, Remarked, Sampled, Stepped, Verifying
from scaledit.training.folder import CHECKPOINTS, CONFIG, SAMPLES, Changes, with_background
from scaledit.training.loop import Run, RunContext, due, locked
from scaledit.training.power import Snapshots, remark
from scaledit.training.ranks import Ranks
from scaledit.training.same_data import SameData, as_recorded
from scaledit.training.start import Start, opened
from scaledit.training.state import Mixed, TrainState


def train(
    config: RunConfig,
    out: Path,
    *,
    resume: Literal["auto", "never"] = "never",
    device: str = "auto",
    dataset: TrainingSet | None = None,
    context: RunContext | None = None,
    reported: bool = False,
    changes: Changes = "refuse",
) -> Iterator[Event]:
    """Trains `config` in the run folder `out`, yielding events.

    resume: "auto" resumes from the latest intact checkpoint of the same config, or starts if there is none.
    dataset: replaces the one that config.data names. context: needed for several ranks, and to stop a run.
    reported: a report that evaluates the model follows, so that evaluate.reference must fit. changes:
    "accept" lets a resumed run change the keys that may change on the way; a `Changed` event tells of them.
    Raises UsageError before anything is written if the folder holds another run, or if the data or the model
    of train.init does not fit; RunError if no checkpoint is intact or losses are not finite train.max_skips
    times in a row.
    """
    context = context or RunContext(Ranks(assemble.device(device)))
    config = with_background(config, out)
    ranks = context.ranks
    _check_sizes(config, len(ranks.share(config.train.batch_size)), ranks.device)
    updates(config)  # raises, before anything is written
    for key, guidance in (("sample", config.sample.guidance), ("evaluate", config.evaluate.guidance)):
        check_guidance(config.model, config.diffusion.schedule, guidance, f"{key}.guidance")
    if dataset is None:
        encoder = assemble.autoencoder(config.autoencoder, config.data, ranks.device)
        dataset = assemble.dataset(config.data, encoder)
        if resume == "auto":
            dataset = as_recorded(dataset, out)
    resumes = resume == "auto" and (out / CONFIG).exists()
    data = SameData(dataset, config.data.changed)
    try:
        check_fits(
            dataset,
            config.model.shape,
            config.model.num_classes,
            may_have_more=resumes,
            any_size=isinstance(dataset, BucketLatents),
        )
    except UsageError:
        if resume == "auto":
            ranks.on_first(lambda: data.check_newest(out))  # says more if the data has changed
        raise
    mixed = Mixed.of(config, dataset, ranks)
    if mixed is not None:
        share = len(ranks.share(config.train.batch_size))
        _check_sizes(replace(config, model=mixed.largest), share, ranks.device)
    elif isinstance(dataset, BucketLatents):
        dataset.batch(np.arange(1), range(1), 0)  # raises: which sizes to choose
    assemble.check_terms(config, dataset)
    decoder = assemble.decoder(config.autoencoder, dataset, ranks.device)
    _check_decoder(config, decoder)
    _open_others(config, ranks.device, decoder)
    if config.evaluate.every or reported:
        scale = 1 if decoder is None else decoder.autoencoder_info.downsampling
        _, height, width = config.model.shape
        size = scale * height, scale * width
        check_reference_fits(config, size, dataset.class_names, decoder, dataset)
    judge = None
    if config.evaluate.every and ranks.first:

        def on_reference(done: int, total: int) -> None:
            context.heartbeat("reading the reference", 0)

        judge = open_run_judge(config, dataset.class_names, ranks.device, decoder, dataset, on_reference)
    info = None if decoder is None else decoder.autoencoder_info
    start = None
    if config.train.init and not (resumes and checkpoint.find(out / CHECKPOINTS)):
        start = opened(config, dataset.class_names, info)
    if isinstance(dataset, Latents) and config.data.verify:
        yield from context.first_only(0, lambda: _verified(dataset, context))

    def check(latest: checkpoint.Latest) -> None:
        if latest.checkpoint is not None:
            _check_same_latents(latest.checkpoint, decoder)
        data.check(latest)

    with locked(config, out, resume, context, check, changes) as latest:
        context.heartbeat("building the model", 0)
        state = TrainState.create(config, dataset, ranks, start, mixed)
        snapshots = Snapshots(state.power, config, out, ranks)
        hooks = Hooks(state, out, context, dataset.class_names, decoder, judge, snapshots)
        counts = flops.count(config.model)
        manifest = {
            "class_names": dataset.class_names,
            "autoencoder_info": None if info is None else info._asdict(),
            **_origin(start, latest),
        }
        if start is not None and ranks.first:
            yield start.event
        if config.ema.power and ranks.first:
            yield Remarked((remark(config, out),))
        macs = counts.macs if mixed is None else mixed.macs
        run = Run(state, out, context, macs, manifest, hooks.stepped, hooks.due, data)
        yield from run.run(latest, counts.params)


@dataclass
class Hooks:
    """What training a DiT reports, and what it generates with the averaged weights."""

    state: TrainState
    out: Path
    context: RunContext
    class_names: tuple[str, ...]
    decoder: Decoder | None
    judge: Judge | None
    snapshots: Snapshots

    def stepped(self, **fields: Any) -> Stepped:
        return Stepped(**fields, ema_distance=self.state.ema_distance())

    def due(self, last: bool) -> Iterator[Event]:
        step, config = self.state.step, self.state.config
        self.snapshots.keep(step, last)
        sampled = config.sample.due(step, last)
        judged = due(step, config.evaluate.every, last)
        if not (sampled or judged):
            return
        net = self.state.averaged_network()

        def sample_and_judge() -> Iterator[Event]:
            origin = {"run": config.name, "step": step, "weights": "ema"}
            device = self.context.ranks.device
            pipeline = Pipeline(config, net, device, self.class_names, origin, self.decoder)
            if sampled:
                yield Sampled(step, self._sample_grid(pipeline))
            if judged and self.judge is not None:
                sets = sample_sets(self.judge, pipeline, config.evaluate)
                yield Evaluated(step, self.judge.evaluate(sets, self._progress("evaluating samples")))

        yield from self.context.first_only(step, sample_and_judge)

    def _progress(self, activity: str) -> Progress:
        """A progress callback that sends heartbeats and raises Stopping after a signal."""

        def on_progress(_: int, __: int) -> None:
            self.context.heartbeat(activity, self.state.step)
            self.context.stop.check()

        return on_progress

    def _sample_grid(self, pipeline: Pipeline) -> Path:
        """Saves a grid with one row per class and its name, from the same noise at every step."""
        config, step = pipeline.config, self.state.step
        classes = config.sample.grid_classes(config.model.num_classes)
        with torch.no_grad():
            samples = pipeline(classes, seed=config.sample.seed, progress=self._progress("sampling"))
        path = self.out / SAMPLES / f"{checkpoint.folder_name(step)}.png"
        origin = {"run": config.name, "step": step, "sample": config.to_json()["sample"]}
        if credit := attribution(config.data.name, self.class_names):
            origin["attribution"] = credit
        columns = config.sample.per_class
        names = captions.class_labels(classes[::columns], self.class_names, config.model.num_classes)
        drawn = captions.rows(samples, columns, names)
        images.save_png(path, drawn.image, {**origin, captions.BOX: drawn.box})
        return path


def _origin(start: Start | None, latest: checkpoint.Latest) -> dict[str, Any]:
    """What the manifests of a run with train.init record: the model that it started from."""
    if start is not None:
        return {"init": start.event._asdict()}
    saved = {} if latest.checkpoint is None else latest.checkpoint.manifest["state"]
    return {"init": saved["init"]} if "init" in saved else {}


def _verified(dataset: Latents, context: RunContext) -> Iterator[Event]:
    for done, total in dataset.verify():
        context.heartbeat("verifying the latents", 0)
        yield Verifying(done, total)


def _check_sizes(config: RunConfig, share: int, device: torch.device) -> None:
    """Raises UsageError if the model, this rank's share of a batch, the grid of samples or the evaluated
    images exceed the memory, by a low estimate: what is refused can never fit."""
    assemble.check_weights(config.model)
    at_once = -(-share // config.train.accumulate)
    machine.check_memory(
        flops.sampling_bytes(config.model, at_once),
        f"a micro-batch of {counted(at_once, 'image')}",
        "use a smaller train.batch_size, or more train.accumulate",
        device,
    )
    size = BYTES_OF_A_NUMBER * math.prod(config.model.shape)
    machine.check_memory(
        size * share, f"a batch of {counted(share, 'image')}", "use a smaller train.batch_size"
    )
    sample = config.sample
    n = sample.per_class * min(sample.classes, config.model.num_classes) if sample.every else 0
    machine.check_memory(size * n, f"a grid of {counted(n, 'image')}", "use a smaller sample.per_class")
    n = config.evaluate.num if config.evaluate.every else 0
    machine.check_memory(
        BYTES_OF_A_LABEL * n, f"the labels of {counted(n, 'image')}", "use a smaller evaluate.num"
    )


def _check_decoder(config: RunConfig, decoder: Decoder | None) -> None:
    """Raises UsageError if images are to be decoded and the autoencoder is missing."""
    if decoder is None or not (config.sample.every or config.evaluate.every):
        return
    try:
        _ = decoder.autoencoder
    except UsageError as error:
        raise UsageError(f"{error}; or train without sampling: sample.every=0 evaluate.every=0") from None


def _open_others(config: RunConfig, device: torch.device, decoder: Decoder | None) -> None:
    """Raises UsageError or RunError now if guidance names a model that cannot be used later."""
    info = None if decoder is None else decoder.autoencoder_info
    for part in (*config.sample.guidance, *config.evaluate.guidance):
        part.opened(lambda path: open_other(path, config, device, info, modules(config)))


def _check_same_latents(saved: checkpoint.Checkpoint, decoder: Decoder | None) -> None:
    """Raises UsageError if the run would resume with the latents of another autoencoder."""
    before = saved.manifest["state"].get("autoencoder_info") or {}
    now = {} if decoder is None else decoder.autoencoder_info._asdict()
    if any(before.get(key) != now.get(key) for key in ("encoder_sha256", "scale")):
        names = [info.get("name", "no autoencoder") for info in (before, now)]
        raise UsageError(
            f"{saved.folder} was trained on the latents of {names[0]}, but these are latents of {names[1]}, "
            "which has a different encoder; choose another --out"
        )
