"""How a run of your own images is chosen: one small function for each decision, with its reason.

    Facts, Machine, Wish --draft--> Draft          what does not depend on measured times
    Draft, Speed, seconds --pace--> choices        steps, and how often to sample, save, log and evaluate

A `Choice` is a key of a recipe, its value and the reason, which is printed and written into the recipe as its
comment. Numbers that come from experience say where from; docs/log.md has the measurements.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, NamedTuple

from scaledit.autoencoders.config import AutoencoderRun
from scaledit.config import RunConfig, load
from scaledit.errors import UsageError, counted
from scaledit.models import flops
from scaledit.models.config import DiTConfig
from scaledit.newrun.facts import Facts
from scaledit.scaling.plan import FLOPS_PER_MAC, activation_bytes


class Machine(NamedTuple):
    """device: "cpu", "cuda" or "mps". memory: bytes of the device. flops: FLOP/s of large matrix products,
    measured in `precision`. has_autoencoders: whether diffusers is installed, which autoencoders need."""

    device: str
    memory: int
    flops: float
    precision: str = "fp32"
    has_autoencoders: bool = True


class Wish(NamedTuple):
    """What the user asked for. latents: "auto", "none", "f4", "f8" or "f16". largest: size that was not found
    to be too slow; not asked for."""

    minutes: float = 30.0
    image_size: int | None = None
    latents: str = "auto"
    largest: int = 1 << 30


class Choice(NamedTuple):
    """key: "train.batch_size". why: the end of a sentence about the value."""

    key: str
    value: Any
    why: str


class Shape(NamedTuple):
    """The sizes of a transformer; the last ones are the paper's S, B and L."""

    width: int
    depth: int
    heads: int


SIZES = (32, 64, 128, 256)
"""Sides of images that are chosen without a wish."""
ENLARGED = 1.1
"""A size is not chosen if the median image would be enlarged by more than this."""
SHAPES = (
    Shape(96, 6, 3),
    Shape(128, 8, 4),
    Shape(192, 10, 6),
    Shape(256, 12, 8),
    Shape(384, 12, 6),
    Shape(768, 12, 12),
    Shape(1024, 24, 16),
)
GRIDS = (16, 8)
"""Patches per side of an image: 256 or 64 tokens, whatever its size."""
LARGEST_PATCH = 2
"""Of latents, where another grid allows it: larger patches lose what the autoencoder keeps."""
SEEN, SEEN_PARAMS, SEEN_TOKENS = 64_000, 1e6, 64
"""Training images that the recipe `photos`, a model of SEEN_PARAMS parameters on SEEN_TOKENS tokens, needed
to show its classes. It is assumed that more parameters and tokens need more, with their square roots."""
UTILIZATION = 0.4
"""Of the measured peak, before the model's own speed is measured."""
TRAINING_SHARE = {True: 0.5, False: 0.8}
"""Of the minutes, for training the model: with an autoencoder to train before, and without."""
LARGEST_PIXELS = 48
"""Above this side the model learns latents of an autoencoder: after a few minutes on patches of pixels,
samples are still mosaics of tiles (docs/log.md)."""
FACTORS = ((64, 4), (512, 8))
"""(largest side, downsampling of its autoencoder); f16 above."""
SMALL = "images of this size are small enough to be learned as they are"
AUTOENCODER_PIXELS = {4: 2e7, 8: 6e7, 16: 1.2e8}
"""Pixels of training crops in which an autoencoder of image files learns enough. f4: those of the recipe
photos-ae, 2,600 steps of 8 crops of 32x32. At half of that, f4 reached 24.0 dB, and f8 20.1 dB with samples
of dull colors (docs/log.md). It is assumed that f8 and f16 need three and six times as many."""
AUTOENCODER_WORK = 1.8e6
"""FLOP, of the measured peak, for each of these pixels: photos-ae took 240 s on 2 CPU cores of 150 GFLOP/s.
A pixel costs f8 and f16 about as much as f4 (benchmarks/results/autoencoder-speed.json)."""
AUTOENCODER_SHARE = 0.3
"""Of the minutes, for training the autoencoder."""
PROMISING, ENOUGH = 0.75, 0.5
"""Shares of what is needed: a size is tried from the first on, and kept from the second on, once its speed is
measured."""
LEAST_GIVEN_UP = 128
"""Smaller sizes are kept: 64 pixels in latents cost a model no more than 32 pixels, and look better."""
FEW_IMAGES = 10_000
"""With fewer images than this, models larger than DiT-S only memorize faster."""
BATCH = {"cpu": 32, "mps": 64, "cuda": 128}
MEMORY_SHARE = 0.25
"""Of the device's memory, for the activations of a batch: their estimate leaves out temporaries."""
LEARNING_RATE, AT_WIDTH = 4e-3, 96
HOLDOUT, ENOUGH_TO_HOLD_OUT, MOST_HELD_OUT = 0.1, 20, 5_000
REPEATS, VARIES = 20, 100
"""Images per class below which a model repeats them, and from which on its images vary."""
ROWS = 10
GUIDANCE = 1.5
CHARACTERS = """
digit number numeral letter char character text font glyph word alphabet handwriting sign page plate mnist
emnist kmnist qmnist svhn omniglot left right clockwise
"""
NOT_MIRRORED = frozenset(CHARACTERS.split())
"""Words in the names of a set and its classes, without a plural's s."""


@dataclass(frozen=True)
class Draft:
    """choices: every key of the recipe whose value does not depend on measured times. factor: the
    downsampling of the autoencoder, 1 for pixels. why_space: why pixels or latents. seconds: for training."""

    choices: tuple[Choice, ...]
    factor: int
    why_space: str
    seconds: float

    def __getitem__(self, key: str) -> Choice:
        return next(choice for choice in self.choices if choice.key == key)

    def given(self, pinned: Mapping[str, Choice]) -> Draft:
        """With the values that the user gave, by key."""
        return replace(self, choices=tuple(pinned.get(choice.key, choice) for choice in self.choices))


FOLLOWS = {
    "data.split": "--split",
    "data.image_key": "--image-key",
    "data.name": "--latents",
    "data.path": "the images that you pass",
    "data.image_size": "--image-size",
    "model.input_size": "--image-size and --latents",
    "model.in_channels": "--latents",
    "model.num_classes": "the classes of the images",
}
"""Keys that cannot be given alone, because others depend on what they follow from."""


def check_given(pinned: Iterable[str]) -> None:
    """Raises UsageError for a key that cannot be given alone."""
    for key in pinned:
        if key in FOLLOWS:
            raise UsageError(f"{key} follows from {FOLLOWS[key]}; change that instead")


def draft(facts: Facts, machine: Machine, wish: Wish) -> Draft:
    """All choices but the times of training. Raises UsageError if the wish cannot be met."""
    side = image_size(facts, machine, wish)
    factor, why_space = space(side.value, machine, wish)
    seconds = training_seconds(factor, wish)
    model = network(facts, side.value, factor, macs_within(machine, seconds))
    config = DiTConfig(**{choice.key.removeprefix("model."): choice.value for choice in model})
    choices = (
        side,
        flip(facts),
        holdout(facts),
        *model,
        *diffusion(),
        batch_size(config, machine),
        *precision(machine),
        *optimizer(config),
        Choice("ema.warmup", True, "so that the averaged weights follow from the first steps"),
        *sampling(facts),
    )
    return Draft(choices, factor, why_space, seconds)


def macs_within(machine: Machine, seconds: float) -> float:
    """Multiply-adds of the forward passes for which training has that time."""
    return machine.flops * UTILIZATION * seconds / (FLOPS_PER_MAC * flops.TRAIN_FORWARDS)


def training_seconds(factor: int, wish: Wish) -> float:
    return 60 * wish.minutes * TRAINING_SHARE[factor > 1]


def image_size(facts: Facts, machine: Machine, wish: Wish) -> Choice:
    """The largest size that the images have and for which there is time."""
    key = "data.image_size"
    if wish.image_size is not None:
        return Choice(key, wish.image_size, "as you asked")
    fits = [size for size in SIZES if size <= ENLARGED * facts.side] or [SIZES[0]]
    timely = [size for size in fits if size <= wish.largest and _has_time(size, machine, wish)]
    if not timely:
        return Choice(key, fits[0], f"the smallest size: {wish.minutes:g} minutes are little on this machine")
    if timely[-1] < fits[-1]:
        why = f"larger ones need more than {wish.minutes:g} minutes on this machine"
    else:
        why = f"the largest of {_words(SIZES)} that the images have without being enlarged much"
    return Choice(key, timely[-1], why)


def _has_time(side: int, machine: Machine, wish: Wish) -> bool:
    """Whether the smallest model sees enough images of that size, and its autoencoder learns enough."""
    factor = space(side, machine, wish)[0]
    if side > LARGEST_PIXELS and factor == 1 and wish.latents == "auto":
        return False
    work = machine.flops * AUTOENCODER_SHARE * 60 * wish.minutes
    macs = macs_within(machine, training_seconds(factor, wish))
    config = _config(SHAPES[0], _grids(side, factor)[-1], side, factor, 1)
    needed = AUTOENCODER_WORK * AUTOENCODER_PIXELS.get(factor, 0)
    return work >= PROMISING * needed and _sees_enough(config, macs / PROMISING)


def space(side: int, machine: Machine, wish: Wish) -> tuple[int, str]:
    """The downsampling of the autoencoder, 1 for none, and why."""
    if wish.latents == "none":
        return 1, "as you asked"
    if not machine.has_autoencoders:
        missing = 'diffusers is not installed (pip install "scaledit[diffusers]")'
        if wish.latents != "auto":
            raise UsageError(f"--latents {wish.latents} needs an autoencoder, and {missing}")
        return 1, f"latents need an autoencoder, and {missing}" if side > LARGEST_PIXELS else SMALL
    if wish.latents != "auto":
        return int(wish.latents[1:]), "as you asked"
    if side <= LARGEST_PIXELS:
        return 1, SMALL
    factor = next((factor for largest, factor in FACTORS if side <= largest), 16)
    return factor, f"an autoencoder of 1/{factor} of the side learns the details, the model what they show"


def network(facts: Facts, side: int, factor: int, macs: float) -> tuple[Choice, ...]:
    """The finest patches, then the largest model, that see enough images. macs: multiply-adds of forward
    passes that training can afford."""
    classes = len(facts.classes)
    shapes = [shape for shape in SHAPES if shape.width <= 384 or facts.images >= FEW_IMAGES]
    grids = _grids(side, factor)
    grid, shape = next(
        (
            (grid, shape)
            for grid in grids
            for shape in reversed(shapes)
            if _sees_enough(_config(shape, grid, side, factor, classes), macs)
        ),
        (grids[-1], shapes[0]),
    )
    config = _config(shape, grid, side, factor, classes)
    params = flops.count(config).params
    seen = macs / flops.count(config).macs
    if shape == shapes[0] and not _sees_enough(config, macs):
        why = "the smallest one; more minutes would help"
    elif shape == shapes[-1] and shape.width < SHAPES[-1].width:
        why = f"larger ones only memorize {facts.images:,} images faster"
    else:
        why = f"the largest one that sees enough images (about {rounded(seen):,}) in the time"
    one = "one class: an unconditional model, without guidance"
    return (
        Choice("model.input_size", side // factor, "pixels" if factor == 1 else f"latents of f{factor}"),
        Choice("model.in_channels", channels(factor), "colors" if factor == 1 else "of the latents"),
        Choice("model.patch_size", config.patch_size, f"{grid}x{grid} patches, {grid**2} tokens per image"),
        Choice("model.hidden_size", shape.width, f"{params / 1e6:.3g} M parameters: {why}"),
        Choice("model.depth", shape.depth, "blocks"),
        Choice("model.num_heads", shape.heads, f"{shape.width // shape.heads} channels per head"),
        Choice("model.num_classes", classes, _class_names(facts)),
        Choice("model.learn_sigma", False, "flow matching learns no variance"),
        Choice(
            "model.class_dropout",
            0.1 if classes > 1 else 0.0,
            "of the labels are left out, which guidance needs" if classes > 1 else one,
        ),
    )


def autoencoder_recipe(factor: int) -> str:
    """The recipe of the autoencoder with that downsampling."""
    return f"images-ae-f{factor}"


@lru_cache
def channels(factor: int) -> int:
    """Of the model's input: colors, or the latents of the autoencoder's recipe."""
    return 3 if factor == 1 else load(autoencoder_recipe(factor), kind=AutoencoderRun).model.channels


def _grids(side: int, factor: int) -> list[int]:
    """The numbers of patches per side that are possible, finest first. Raises UsageError if none is."""
    grids = [grid for grid in GRIDS if side % (grid * factor) == 0]
    if not grids:
        unit = min(GRIDS) * factor
        low = max(unit, side // unit * unit)
        raise UsageError(
            f"the image size {side} must be a multiple of {unit}, so that {min(GRIDS)} patches fit into each "
            f"side; choose {low} or {low + unit}"
        )
    fine = [grid for grid in grids if factor > 1 and side // (grid * factor) <= LARGEST_PATCH]
    return fine or grids


def _sees_enough(config: DiTConfig, macs: float) -> bool:
    return macs / flops.count(config).macs >= enough_images(config)


def enough_images(config: DiTConfig) -> float:
    """Training images after which a model is assumed to show its classes."""
    return SEEN * math.sqrt(max(1.0, flops.count(config).params / SEEN_PARAMS) * config.tokens / SEEN_TOKENS)


def _config(shape: Shape, grid: int, side: int, factor: int, classes: int) -> DiTConfig:
    inputs = side // factor
    return DiTConfig(
        input_size=inputs,
        patch_size=max(1, inputs // grid),
        in_channels=channels(factor),
        hidden_size=shape.width,
        depth=shape.depth,
        num_heads=shape.heads,
        num_classes=classes,
        learn_sigma=False,
    )


def _class_names(facts: Facts) -> str:
    names = [name for name, _ in facts.classes[:5]]
    return ", ".join(names) + (", ..." if len(facts.classes) > 5 else "")


def diffusion() -> tuple[Choice, ...]:
    return (
        Choice("diffusion.schedule", "flow", "the straight line between noise and images"),
        Choice("diffusion.prediction", "velocity", "as in the recipe photos"),
        Choice("diffusion.objective", "simple", "the mean squared error"),
        Choice("diffusion.times", "logit_normal", "more often in the middle, where most is learned"),
    )


def batch_size(model: DiTConfig, machine: Machine) -> Choice:
    """The device's usual batch, halved until its activations fit."""
    batch = BATCH.get(machine.device, BATCH["cpu"])
    usual = batch
    while batch > 1 and activation_bytes(model, batch, machine.precision) > MEMORY_SHARE * machine.memory:
        batch //= 2
    which = {"cpu": "a processor", "cuda": "a GPU", "mps": "an Apple GPU"}.get(machine.device, "it")
    why = f"large enough to keep {which} busy" if batch == usual else "the largest one that fits into memory"
    return Choice("train.batch_size", batch, why)


def optimizer(model: DiTConfig) -> tuple[Choice, ...]:
    rate = float(f"{LEARNING_RATE * AT_WIDTH / model.hidden_size:.2g}")
    same = model.hidden_size == AT_WIDTH
    why = f"as in the recipe photos{'' if same else f' ({LEARNING_RATE:g} at width {AT_WIDTH}), by width'}"
    return (
        Choice("optimizer.learning_rate", rate, why),
        Choice("optimizer.algorithm", {"name": "adamw", "betas": [0.9, 0.99]}, "as in the recipe photos"),
        Choice("optimizer.decay", "linear", "to 0 at the last step, which makes the images cleaner"),
        Choice("optimizer.clip", 1.0, "against single steps that go too far"),
    )


def precision(machine: Machine) -> tuple[Choice, ...]:
    if machine.precision == "fp32":
        return ()
    return (Choice("train.precision", machine.precision, "the fastest one of this GPU"),)


def flip(facts: Facts) -> Choice:
    """Mirrored images double the data, except where mirroring changes the meaning."""
    words = {word for text in (facts.name, *_names(facts)) for word in re.split(r"[^a-z]+", text.lower())}
    found = sorted(word for word in words if {word, word.removesuffix("s")} & NOT_MIRRORED)
    single = [name for name in _names(facts) if len(name) == 1 or name.isdigit()]
    if found:
        return Choice("data.flip", False, f"{found[0]!r} in the names: a mirrored image would be wrong")
    if len(facts.classes) > 1 and len(single) == len(facts.classes):
        return Choice("data.flip", False, "the classes look like characters: mirrored ones would be wrong")
    return Choice("data.flip", True, "mirrored images too; false if left and right matter, as in text")


def _names(facts: Facts) -> list[str]:
    return [name for name, _ in facts.classes]


def holdout(facts: Facts) -> Choice:
    """A share of each class for the evaluation, where that leaves enough for training."""
    key = "data.holdout"
    if facts.smallest_class < ENOUGH_TO_HOLD_OUT:
        why = f"none: a class has only {counted(facts.smallest_class, 'image')}, which training needs"
        return Choice(key, 0.0, why)
    share = float(f"{min(HOLDOUT, MOST_HELD_OUT / facts.images):.2g}")
    if held_out(facts, share) < len(facts.classes):  # a little of many small classes would be nothing
        share = HOLDOUT
    return Choice(key, share, "of each class is kept from training, to evaluate the model with")


def sampling(facts: Facts) -> tuple[Choice, ...]:
    classes = len(facts.classes)
    guidance = [{"name": "classifier_free", "scale": GUIDANCE, "channels": "all"}] if classes > 1 else []
    return (
        Choice("sample.classes", min(classes, ROWS), "rows of a grid"),
        Choice("sample.per_class", 8, "images in each row"),
        Choice("sample.sampler", {"name": "dpm", "steps": 12}, "DPM-Solver++, as in the recipe photos"),
        Choice(
            "sample.guidance",
            guidance,
            "towards the class; 1 is none, 4 is strong" if guidance else "none, with one class",
        ),
    )


def too_little(facts: Facts) -> list[str]:
    """Sentences on what the images do not suffice for."""
    lines = []
    few = facts.smallest_class
    where = f"in {'a class' if len(facts.classes) > 1 else 'all'}"
    if few < REPEATS:
        lines.append(
            f"{counted(few, 'image')} {where}: the model will repeat them; {VARIES} or more per class vary"
        )
    elif few < VARIES:
        lines.append(
            f"{counted(few, 'image')} {where}: the model will mostly repeat them; with {VARIES} or more per "
            "class, images vary more"
        )
    most = max(count for _, count in facts.classes)
    if most >= 10 * few:
        lines.append(
            f"the largest class has {most:,} images and the smallest {few:,}: the model learns the smallest "
            "least"
        )
    return lines


class Speed(NamedTuple):
    """Measured on this machine. step: seconds of a training step. image: seconds of sampling one image."""

    step: float
    image: float


def pace(
    config: RunConfig, speed: Speed, seconds: float, held_out: int, given_steps: int | None = None
) -> tuple[Choice, ...]:
    """The choices that depend on measured times. config: the other choices. seconds: for training with its
    samples and the evaluation. held_out: number of held-out images. given_steps: by the user."""
    grid = len(config.sample.grid_classes(config.model.num_classes)) * speed.image
    judged = min(MOST_JUDGED, max(FEWEST_JUDGED, held_out)) if held_out else 0
    left = max(0.0, seconds - EVALUATIONS * judged * speed.image)
    most = given_steps or left / speed.step
    every = min(most / SHEETS, FIRST_GRID * EARLY / speed.step)
    shown = min(left * SHEETS_SHARE, grid * (most / max(1, every) + EARLY_GRIDS))
    steps = given_steps or max(FEWEST_STEPS, rounded((left - shown) / speed.step))
    every = max(1, min(steps, rounded(every)))
    first = max(1, every // EARLY) * speed.step
    return (
        Choice("train.steps", steps, f"{speed.step:.3g} s each, measured on this machine"),
        Choice(
            "train.log_every", max(1, rounded(BETWEEN_LOGS / speed.step)), f"a line in {BETWEEN_LOGS:g} s"
        ),
        Choice("optimizer.warmup_steps", min(50, steps // 10), "a gentle start"),
        Choice(
            "checkpoint.every",
            max(1, min(steps, rounded(BETWEEN_SAVES / speed.step))),
            f"about every {BETWEEN_SAVES:g} s: the most that a crash loses",
        ),
        Choice("checkpoint.keep", 2, "the newest ones"),
        Choice("sample.every", every, f"and at 1/8, 1/4 and 1/2 of it: the first grid after {first:.0f} s"),
        *evaluation(judged, held_out, steps),
    )


def is_too_short(config: RunConfig, autoencoder: AutoencoderRun | None) -> bool:
    """Whether a planned run is shorter, at the measured speed, than what shows the classes."""
    if config.train.steps * config.train.batch_size < ENOUGH * enough_images(config.model):
        return True
    if autoencoder is None:
        return False
    train, factor = autoencoder.train, 2 ** (len(autoencoder.model.widths) - 1)
    side = train.crop or autoencoder.data.image_size
    return train.steps * train.batch_size * side**2 < ENOUGH * AUTOENCODER_PIXELS[factor]


def autoencoder_pace(step: float, wish: Wish) -> tuple[Choice, ...]:
    """The same for the autoencoder. step: seconds of a step of its training, measured."""
    steps = max(FEWEST_STEPS, rounded(AUTOENCODER_SHARE * 60 * wish.minutes / step))
    return (
        Choice("train.steps", steps, f"{step:.3g} s each, measured on this machine"),
        Choice(
            "checkpoint.every",
            max(1, min(steps, rounded(BETWEEN_SAVES / step))),
            f"about every {BETWEEN_SAVES:g} s",
        ),
        Choice("evaluate.every", max(1, steps // 3), "three times"),
    )


def held_out(facts: Facts, share: float) -> int:
    """The number of images that data.holdout=share holds out (data.holdout.split)."""
    return sum(math.floor(share * count + 0.5) for _, count in facts.classes)


def sampled(config: RunConfig) -> int:
    """Images that are sampled during training and for its report."""
    sample, evaluate = config.sample, config.evaluate
    grid = len(sample.grid_classes(config.model.num_classes))
    grids = sum(sample.due(step, step == config.train.steps) for step in _due(config))
    judged = evaluate.num * evaluate.seeds * EVALUATIONS if evaluate.every else 0
    return grid * (grids + 1) + judged


def _due(config: RunConfig) -> list[int]:
    """The steps after which a grid may be due."""
    every, steps = config.sample.every, config.train.steps
    if not every:
        return []
    early = {every // part for part in (8, 4, 2)}
    return sorted({step for step in {*range(every, steps + 1, every), *early, steps} if 0 < step <= steps})


def evaluation(judged: int, held_out: int, steps: int) -> tuple[Choice, ...]:
    if not judged:
        return (Choice("evaluate.every", 0, "nothing is held out to compare with"),)
    return (
        Choice("evaluate.every", steps, "once, at the end"),
        Choice("evaluate.reference", "held-out", f"{counted(held_out, 'image')} that training does not see"),
        Choice("evaluate.num", judged, "images are sampled and compared"),
        Choice("evaluate.labels", "equal", "each class as often"),
    )


FIRST_GRID, BETWEEN_SAVES, BETWEEN_LOGS = 40.0, 60.0, 2.0
"""Seconds."""
SHEETS, SHEETS_SHARE = 6, 0.1
"""Grids of samples during training, more if it is long, and the share of its time that they may take."""
EARLY, EARLY_GRIDS = 8, 3
"""Before the first `sample.every` steps there are early grids, the first one after an eighth of them."""
FEWEST_JUDGED, MOST_JUDGED, EVALUATIONS = 48, 1_000, 4
"""Images of an evaluation, done at the end of training and by the report at three scales of guidance."""
FEWEST_STEPS = 20


def rounded(number: float) -> int:
    """Rounded down to two significant digits."""
    if number < 1:
        return 0
    unit = 10 ** max(0, math.floor(math.log10(number)) - 1)
    return int(number // unit * unit)


def _words(sizes: Sequence[int]) -> str:
    return ", ".join(map(str, sizes[:-1])) + f" and {sizes[-1]}"
