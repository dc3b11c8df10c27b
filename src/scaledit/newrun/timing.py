"""How fast this machine is at the very run that is planned, measured on a few of its steps.

config --a few steps in a temporary folder--> seconds of a step     (data, optimizer and averaging included)
       --a few sampled images--> seconds of an image
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from scaledit import assemble, machine
from scaledit.autoencoders.config import AutoencoderRun
from scaledit.config import RunConfig, with_values
from scaledit.data.sets import Images, TrainingSet
from scaledit.newrun.rules import Machine, Speed
from scaledit.pipeline import Pipeline
from scaledit.training import autoencoder, dit
from scaledit.training.events import Event, Fitted, Stepped
from scaledit.training.loop import RunContext
from scaledit.training.ranks import Ranks

if TYPE_CHECKING:
    from scaledit.config import Config

WARM_UP, FEWEST, LONGEST = 3, 3, 6.0
"""Steps before the timed ones; timed steps, at least; seconds of them, about."""
STEPS = 1_000
SAMPLED = 4
STAND_INS = 64
"""Random latents that stand for those that are not made yet."""


def this_machine(name: str = "auto") -> Machine:
    """The machine as the rules see it. name: of the device. Raises UsageError for an unknown one."""
    from importlib.util import find_spec

    device = assemble.device(name)
    fast = device.type == "cuda" and torch.cuda.is_bf16_supported()
    precision = "bf16" if fast else "fp32"
    return Machine(
        device.type,
        machine.memory(device),
        machine.measured_peak(device, precision),
        precision,
        find_spec("diffusers") is not None,
    )


def latents_like(config: RunConfig, class_names: tuple[str, ...]) -> TrainingSet:
    """A set of random latents of the model's shape."""
    x = torch.randn(STAND_INS, *config.model.shape, generator=torch.Generator().manual_seed(0))
    return Images(x, torch.arange(STAND_INS) % len(class_names), class_names)


def model_speed(
    config: RunConfig, class_names: tuple[str, ...], device: str, dataset: TrainingSet | None = None
) -> Speed:
    """Trains `config` for a few steps and samples a few images. dataset: replaces its data."""
    alone = with_values(
        config, {"sample.every": 0, "evaluate.every": 0, "checkpoint.every": STEPS, **_briefly(config)}
    )
    with tempfile.TemporaryDirectory() as folder:
        context = RunContext(Ranks(assemble.device(device)))
        out = Path(folder) / "run"
        step = _seconds_per_step(dit.train(alone, out, dataset=dataset, context=context), Stepped)
    return Speed(step, _seconds_per_image(config, class_names, device))


def autoencoder_speed(config: AutoencoderRun, device: str) -> float:
    """Seconds of a step of training `config`."""
    values = {"evaluate.every": 0, "checkpoint.every": STEPS, **_briefly(config)}
    with tempfile.TemporaryDirectory() as folder:
        context = RunContext(Ranks(assemble.device(device)))
        out = Path(folder) / "run"
        return _seconds_per_step(autoencoder.train(with_values(config, values), out, context=context), Fitted)


def _briefly(config: Config) -> dict[str, Any]:
    return {"train.steps": STEPS, "train.log_every": 1, "optimizer.warmup_steps": 0}


def _seconds_per_step(events: Iterator[Event], kind: type[Stepped | Fitted]) -> float:
    """The mean of the timed steps. The run is ended after them, without saving."""
    first: Any = None
    steps, seconds = 1, 0.0
    with closing(events):  # pyright: ignore[reportArgumentType]  # a generator
        for event in events:
            if not isinstance(event, kind) or event.step < WARM_UP:
                continue
            if first is None:
                first = event
                continue
            steps, seconds = event.step - first.step, event.seconds - first.seconds
            if steps >= FEWEST and seconds >= LONGEST:
                break
    return seconds / steps


def _seconds_per_image(config: RunConfig, class_names: tuple[str, ...], device: str) -> float:
    """Of sampling with the config's sampler and guidance, without decoding."""
    target = assemble.device(device)
    net = assemble.network(config.model, seed=0).to(target).eval()
    pipeline = Pipeline(config, net, target, class_names, {}, None)
    settings = pipeline.settings()
    classes = [i % len(class_names) for i in range(SAMPLED)]
    pipeline.latents(classes, settings)
    began = time.perf_counter()
    pipeline.latents(classes, settings)
    return (time.perf_counter() - began) / SAMPLED
