"""Checks that involve several keys of a config; the bounds of single keys are in `sections`."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from scaledit import averages, checks
from scaledit.config.sections import DiffusionConfig, EMAConfig, SampleConfig
from scaledit.diffusion.guidance import CFGZeroStar, ClassifierFree, Guidance, Target, active
from scaledit.diffusion.parameterization import network_times
from scaledit.diffusion.schedule import Schedule
from scaledit.errors import UsageError, shown
from scaledit.models.config import DiTConfig
from scaledit.values import check_bounds

if TYPE_CHECKING:
    from scaledit.config.runs import Config, RunConfig


def check(config: Config) -> None:
    """The checks for all kinds of runs. Raises UsageError if a key is out of its bounds, a number is not
    finite, or keys contradict each other."""
    for item in dataclasses.fields(config):  # pyright: ignore[reportArgumentType]
        section: Any = getattr(config, item.name)
        if dataclasses.is_dataclass(section):
            check_bounds(section, f"{item.name}.")
    if config.data.background and config.data.name != "images":
        raise UsageError(
            f'data.background is for data.name="images"; {config.data.name} has no transparent images'
        )


def check_run(config: RunConfig) -> None:
    """The checks for the run of a diffusion model. Raises as `check` does."""
    check(config)
    if config.train.batch_size % config.train.accumulate:
        raise UsageError(
            f"train.accumulate {config.train.accumulate} must divide train.batch_size "
            f"{config.train.batch_size}"
        )
    checks.seed(config.train.seed, "train.seed")
    checks.seed(config.evaluate.seed, "evaluate.seed")
    checks.seed(config.evaluate.seed + config.evaluate.seeds - 1, "evaluate.seed + evaluate.seeds - 1")
    for item in () if isinstance(config.evaluate.metrics, str) else config.evaluate.metrics:
        if not isinstance(item.get("name") if isinstance(item, Mapping) else item, str):
            raise UsageError(
                "evaluate.metrics must be names separated by commas, or a list of names and of tables with a "
                f"name; got {shown(item)}"
            )
    check_buckets(config)
    check_averages(config)
    check_learned(config.model, config.diffusion)
    low, high = network_times(config.diffusion.parameterization) or (None, None)
    config.model.time_embedding_part.fits_times(low, high)
    check_objective(config.model, config.diffusion)
    check_lora(config)
    if config.optimizer.base_width and config.lora.rank:
        raise UsageError(
            "optimizer.base_width scales the rates of a network that starts from random weights, and "
            "lora.rank adapts a trained one; leave optimizer.base_width out"
        )
    check_sampling(config.sample, config.diffusion, "sample.")


def check_buckets(config: RunConfig) -> None:
    """Raises UsageError if data.buckets are no sizes, or, for a model of pixels, sizes that do not suit
    it."""
    sizes = checks.image_sizes(config.data.buckets, "data.buckets")
    if not config.autoencoder.path and config.data.name != "latents":
        models_at(config.model, sizes)


def models_at(model: DiTConfig, sizes: Sequence[tuple[int, int]], downsampling: int = 1) -> list[DiTConfig]:
    """The model at each of data.buckets. downsampling: pixels per side of an input. Raises UsageError if the
    patches do not divide a size, or the position encoding cannot be trained at it."""
    unit = model.patch_size * downsampling
    for height, width in sizes:
        if height % unit or width % unit:
            raise UsageError(
                f"data.buckets has {height}x{width}, but both sides must be multiples of {unit}, the model's "
                f"patch size{'' if downsampling == 1 else ' times the downsampling of the autoencoder'}; use "
                f"{max(1, round(height / unit)) * unit}x{max(1, round(width / unit)) * unit}"
            )
    models = [model.at(height // downsampling, width // downsampling) for height, width in sizes]
    for one in models:
        model.position_part.check_trained_at(model, one.grid)
    return models


def check_averages(config: RunConfig) -> None:
    """Raises UsageError for lengths of averages that do not exist or come twice, for keys of their snapshots
    without them, and if the run's samples need an average that it does not keep."""
    ema = config.ema
    for length in ema.power:
        averages.check_length(length, "a length in ema.power")
    if len(set(map("{:g}".format, ema.power))) < len(ema.power):
        raise UsageError(f"ema.power has a length twice: {list(ema.power)}; leave one out")
    if not ema.power and (ema.snapshots, ema.snapshot_precision) != (
        EMAConfig.snapshots,
        EMAConfig.snapshot_precision,
    ):
        raise UsageError(
            "ema.power is empty, so the keys of its snapshots have no effect; set ema.power=[0.05,0.1]"
        )
    if config.sample.average:
        averages.check_length(config.sample.average, "sample.average")
        if not ema.power:
            raise UsageError(
                f"sample.average={config.sample.average:g} needs the snapshots of power-function averages; "
                "train with ema.power=[0.05,0.1], or leave sample.average out"
            )


def check_lora(config: RunConfig) -> None:
    """Raises UsageError for keys of [lora] that would have no effect, for LoRA without a model to adapt, and
    for train.freeze beside it."""
    lora = config.lora
    if not lora.rank:
        if lora != type(lora)():
            raise UsageError("lora.rank is 0, so the other keys of [lora] have no effect; set lora.rank=8")
        return
    if not config.train.init:
        raise UsageError(
            "lora.rank adapts a trained model; name it with train.init=MODEL, or leave lora.rank out"
        )
    if config.train.freeze:
        raise UsageError(
            "with lora.rank every weight but A, B and those of lora.also is frozen; leave train.freeze out"
        )


def check_learned(model: DiTConfig, diffusion: DiffusionConfig) -> None:
    """Raises UsageError if the network has channels for a variance that the objective does not train, or
    lacks them."""
    if model.learn_sigma != diffusion.learns_variance:
        does = "trains" if diffusion.learns_variance else "does not train"
        raise UsageError(
            f"model.learn_sigma={str(model.learn_sigma).lower()} does not fit "
            f'diffusion.objective="{diffusion.objective.part_name()}", which {does} a variance; change one '
            f"of them"
        )


def check_objective(model: DiTConfig, diffusion: DiffusionConfig) -> None:
    """Raises UsageError if the objective or a term of the loss makes no sense for this model, on this
    schedule or for what the network predicts."""
    known = diffusion.schedule, diffusion.parameterization
    diffusion.objective.fits(*known)
    for term in diffusion.terms:
        term.fits(model, *known)
        for block in term.hidden:
            if not 0 <= block < model.depth:
                raise UsageError(
                    f"diffusion.terms: {term.part_name()} reads block {block}, but model.depth is "
                    f"{model.depth}: its blocks are 0 to {model.depth - 1}"
                )
        if term.early and not model.early_output:
            raise UsageError(
                f"diffusion.terms: {term.part_name()} reads an early head; set model.early_output to the "
                "number of blocks before it"
            )


def check_sampling(sample: SampleConfig, diffusion: DiffusionConfig, where: str = "") -> None:
    """Raises UsageError if [sample] cannot be used, for recipes, the command line and pipelines alike. where:
    prefix of the key in messages."""
    for key, lowest in (("every", 0), ("per_class", 1), ("classes", 1)):
        checks.integer(getattr(sample, key), where + key, lowest)
    checks.seed(sample.seed, where + "seed")
    steps, schedule = sample.sampler.steps, diffusion.schedule
    if schedule.discrete and steps > schedule.steps:
        raise UsageError(f"{where}sampler.steps {steps} exceeds diffusion.schedule.steps {schedule.steps}")


def check_guidance(
    model: DiTConfig, schedule: Schedule, guidance: Sequence[Guidance], name: str = "guidance"
) -> None:
    """Raises UsageError if guidance would use a null label that was never trained, does not fit the model, or
    changes guidance that is not there, and warns if it has no effect. name: the key, for messages."""
    kinds = {type(part) for part in active(guidance)}
    if kinds >= {ClassifierFree, CFGZeroStar}:
        raise UsageError(
            f"{name} has classifier_free and cfg_zero_star, which both guide by the class; leave one of them "
            "out"
        )
    for i, part in enumerate(guidance):
        if part.idle:
            continue
        before = guidance[:i]
        if part.modifies and all(other.modifies for other in before):
            raise UsageError(
                f"{name} is {part.label()}, which changes the guidance before it in the list, and there is "
                "none; put another part before it (--cfg-scale adds classifier_free)"
            )
        target = Target(schedule, bool(active(before)), model.learn_sigma, model.early_output)
        if obstacle := part.obstacle(target):
            raise UsageError(f"{name} is {part.label()}: {obstacle}")
        if not part.uses_null:
            continue
        if not model.has_null_label:
            raise UsageError(
                f"{name} is {part.label()}, but this model cannot be guided: it was trained with "
                "model.class_dropout=0, so it never saw the null label that guidance needs; use no guidance "
                "(scale 1)"
            )
        if model.num_classes == 1:
            warnings.warn(
                f"{name} is {part.label()}, but this model has only one class, so guidance can only "
                "enlarge its errors; use no guidance",
                stacklevel=1,  # always the same place, so that Python warns once
            )
