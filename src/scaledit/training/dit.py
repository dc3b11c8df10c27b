"""Training a DiT as a stream of events, over a run folder that survives being killed.

for event in train(config, out, resume="auto"): ...

out/config.json   out/log.jsonl   out/checkpoints/step-XXXXXXXX/   out/samples/step-XXXXXXXX.png
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import torch

from scaledit import assemble, checkpoint, images, machine
from scaledit.autoencoders.decoder import Decoder
from scaledit.callbacks import Progress
from scaledit.config import RunConfig, check_guidance
from scaledit.data.latents import Latents
from scaledit.data.sets import TrainingSet, check_fits
from scaledit.errors import UsageError
from scaledit.evaluation.judge import Judge, open_judge, sample_sets
from scaledit.models import flops
from scaledit.pipeline import BYTES_OF_A_NUMBER, Pipeline
from scaledit.sampling.request import BYTES_OF_A_LABEL
from scaledit.training.class_order import as_recorded, remarks
from scaledit.training.events import Evaluated, Event, Sampled, Stepped, Verifying
from scaledit.training.folder import CONFIG, SAMPLES, with_background
from scaledit.training.learner import StepResult
from scaledit.training.loop import Run, RunContext, Speed, due, locked
from scaledit.training.ranks import Ranks
from scaledit.training.same_data import SameData
from scaledit.training.state import TrainState


def train(
    config: RunConfig,
    out: Path,
    *,
    resume: Literal["auto", "never"] = "never",
    device: str = "auto",
    dataset: TrainingSet | None = None,
    context: RunContext | None = None,
) -> Iterator[Event]:
    """Trains `config` in the run folder `out`, yielding what happens.

    resume="auto" goes on from the latest whole checkpoint of the same config, or starts if there is none.
    `dataset` replaces the one that config.data names; `around` is needed for several ranks, and to be
    stopped. Raises UsageError before anything is written if the folder holds another run or the data does not
    fit; RunError if no checkpoint is whole or the numbers go wrong train.max_skips times in a row.
    """
    context = context or RunContext(Ranks(assemble.device(device)))
    config = with_background(config, out)
    ranks, where = context.ranks, context.ranks.device
    _check_sizes(config, len(ranks.share(config.train.batch_size)), where)
    check_guidance(config.model, config.sample.guidance, "sample.guidance")
    check_guidance(config.model, config.evaluate.guidance, "evaluate.guidance")
    if dataset is None:
        encoder = assemble.autoencoder(config.autoencoder, config.data, where)
        dataset = assemble.dataset(config.data, encoder)
        if resume == "auto":
            dataset = as_recorded(dataset, out)
    begun = resume == "auto" and (out / CONFIG).exists()
    data = SameData(dataset, config.data.changed)
    try:
        check_fits(dataset, config.model.shape, config.model.num_classes, may_have_more=begun)
    except UsageError:
        if resume == "auto":
            ranks.on_first(lambda: data.check_newest(out))  # says it better where it is the data that changed
        raise
    decoder = assemble.decoder(config.autoencoder, dataset, where)
    _check_pictures(config, decoder)
    judge = open_judge(config.evaluate, where) if config.evaluate.every and ranks.first else None
    if isinstance(dataset, Latents) and config.data.verify:
        yield from context.first_only(0, lambda: _verified(dataset, context))

    def check(found: checkpoint.Latest) -> None:
        if found.checkpoint is not None:
            _check_same_latents(found.checkpoint, decoder)
        data.check(found)

    with locked(config, out, resume, context, check) as found:
        context.heartbeat("building the model", 0)
        state = TrainState.create(config, dataset, ranks)
        hooks = Hooks(state, out, context, dataset.class_names, decoder, judge)
        counts = flops.count(config.model)
        manifest = {
            "class_names": dataset.class_names,
            "autoencoder_info": None if decoder is None else decoder.autoencoder_info._asdict(),
        }
        run = Run(state, out, context, counts.macs, manifest, hooks.stepped, hooks.due, data)
        yield from remarks(dataset, context)
        yield from run.run(found, counts.params)


class Hooks:
    """What is reported of the training of a DiT, and what is drawn from its average."""

    def __init__(
        self,
        state: TrainState,
        out: Path,
        context: RunContext,
        class_names: tuple[str, ...],
        decoder: Decoder | None,
        judge: Judge | None,
    ):
        self.state, self.out, self.context = state, out, context
        self.class_names, self.decoder, self.judge = class_names, decoder, judge

    def stepped(self, result: StepResult, speed: Speed) -> Stepped:
        state = self.state
        return Stepped(
            step=state.step,
            loss=result.loss,
            terms=result.terms,
            grad_norm=result.grad_norm,
            learning_rate=state.optimizer.param_groups[0]["lr"],
            seconds=state.seconds,
            **speed._asdict(),
            ema_distance=state.ema_distance(),
        )

    def due(self, last: bool) -> Iterator[Event]:
        step, config = self.state.step, self.state.config
        sampled = due(step, config.sample.every) or (last and config.sample.every > 0)
        judged = due(step, config.evaluate.every) or (last and config.evaluate.every > 0)
        if not (sampled or judged):
            return
        net = self.state.averaged_network()

        def look() -> Iterator[Event]:
            origin = {"run": config.name, "step": step, "weights": "ema"}
            where = self.context.ranks.device
            pipeline = Pipeline(config, net, where, self.class_names, origin, self.decoder)
            if sampled:
                yield Sampled(step, self._sample_grid(pipeline))
            if judged and self.judge is not None:
                sets = sample_sets(self.judge, pipeline, config.evaluate)
                yield Evaluated(step, self.judge.evaluate(sets, self._moving("judging samples")))

        yield from self.context.first_only(step, look)

    def _moving(self, what: str) -> Progress:
        """A progress callback for long work: tells the watch, and stops where a signal asks for it."""

        def on_progress(_: int, __: int) -> None:
            self.context.heartbeat(what, self.state.step)
            self.context.stop.check()

        return on_progress

    def _sample_grid(self, pipeline: Pipeline) -> Path:
        """A grid of the EMA weights: one row a class, the same noise at every step."""
        config, step = pipeline.config, self.state.step
        classes = config.sample.grid_classes(config.model.num_classes)
        with torch.no_grad():
            drawing = self._moving("drawing samples")
            sheet = pipeline(classes, seed=config.sample.seed, progress=drawing)
        path = self.out / SAMPLES / f"{checkpoint.folder_name(step)}.png"
        origin = {"run": config.name, "step": step, "sample": config.to_json()["sample"]}
        images.save_png(path, images.grid(sheet, config.sample.per_class), origin)
        return path


def _verified(dataset: Latents, context: RunContext) -> Iterator[Event]:
    for done, total in dataset.verify():
        context.heartbeat("verifying the latents", 0)
        yield Verifying(done, total)


def _check_sizes(config: RunConfig, share: int, device: torch.device) -> None:
    """Raises UsageError where the model, this rank's share of a batch, the pictures or the images to judge
    are more than there is memory: counted low, so that what is refused cannot be meant."""
    assemble.check_weights(config.model)
    at_once = -(-share // config.train.accumulate)
    machine.check_memory(
        flops.sampling_bytes(config.model, at_once),
        f"a micro-batch of {at_once:,} images",
        "use a smaller train.batch_size, or more train.accumulate",
        device,
    )
    size = BYTES_OF_A_NUMBER * math.prod(config.model.shape)
    machine.check_memory(size * share, f"a batch of {share:,} images", "use a smaller train.batch_size")
    sample = config.sample
    n = sample.per_class * min(sample.classes, config.model.num_classes) if sample.every else 0
    machine.check_memory(size * n, f"a grid of {n:,} images", "use a smaller sample.per_class")
    n = config.evaluate.num if config.evaluate.every else 0
    machine.check_memory(BYTES_OF_A_LABEL * n, f"the labels of {n:,} images", "use a smaller evaluate.num")


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
    before = saved.manifest["state"].get("autoencoder_info") or {}
    now = {} if decoder is None else decoder.autoencoder_info._asdict()
    if any(before.get(key) != now.get(key) for key in ("encoder_sha256", "scale")):
        names = [maker.get("name", "no autoencoder") for maker in (before, now)]
        raise UsageError(
            f"{saved.folder} was trained on the latents of {names[0]}, these are of {names[1]}, which has "
            "another encoder; choose another --out"
        )
