"""Training an autoencoder as a stream of events, in a run folder that survives being killed.

for event in train(config, out, resume="auto"): ...

out/config.json  out/log.jsonl  out/checkpoints/step-XXXXXXXX/  out/samples/step-XXXXXXXX.png
out/autoencoder/    the result in diffusers' format: config.json and diffusion_pytorch_model.safetensors
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from scaledit import assemble, checkpoint, images
from scaledit.autoencoders import kl
from scaledit.autoencoders.config import AutoencoderRun
from scaledit.data.datasets import NothingHeldOut
from scaledit.data.order import samples_at
from scaledit.data.posterior import split
from scaledit.data.sets import TrainingSet
from scaledit.errors import RunError, UsageError, counted
from scaledit.evaluation import reconstruction
from scaledit.evaluation.efficientnet import EfficientNetExtractor
from scaledit.files.atomic import atomic_folder
from scaledit.files.manifest import sha256_of
from scaledit.training.autoencoder_state import AutoencoderState, in_words, opened
from scaledit.training.events import Event, Exported, Fitted, Reconstructed, Remarked
from scaledit.training.folder import SAMPLES, with_background
from scaledit.training.loop import Run, RunContext, due, locked
from scaledit.training.ranks import Ranks
from scaledit.training.same_data import SameData

FOLDER = kl.SUBFOLDERS[0]
SCALE_IMAGES = 1024
"""The most training images that the scale is measured on; smaller sets are read twice, for their flips."""
PAIRS, PAIRS_PER_ROW = 48, 6


def train(
    config: AutoencoderRun,
    out: Path,
    *,
    resume: Literal["auto", "never"] = "never",
    device: str = "auto",
    dataset: TrainingSet | None = None,
    held_out: TrainingSet | None = None,
    context: RunContext | None = None,
) -> Iterator[Event]:
    """Trains `config` in the run folder `out`, yielding events; the result is out/autoencoder.

    resume, context, errors: as in `scaledit.training.dit.train`. dataset, held_out: replace the images that
    config.data names; held_out must not mirror its images at random. A set that is too small to hold anything
    out is evaluated on its training images, and every message, log line and report says so.
    """
    context = context or RunContext(Ranks(assemble.device(device)))
    config = with_background(config, out)
    ranks = context.ranks
    ranks.share(config.train.batch_size)
    dataset = assemble.dataset(config.data) if dataset is None else dataset
    start = opened(config)
    held_out, remarks = _held_out(config, dataset) if held_out is None else (held_out, ())
    if start is not None and start.config != config.model:
        config = replace(config, model=start.config)
        remarks = (*remarks, f"the autoencoder has the shape of {start.name}: {in_words(config.model)}")
    _check_fits(config, dataset)
    state = AutoencoderState.create(config, dataset, ranks, start)
    data = SameData(dataset, config.data.changed)
    with locked(config, out, resume, context, data.check) as latest:
        params = sum(parameter.numel() for parameter in state.net.parameters())
        macs = multiply_adds(state.net, dataset.shape)
        manifest = {"class_names": dataset.class_names}

        evaluated = EvaluationSet(dataset if held_out is None else held_out, held_out is not None)
        judge = cache(lambda: reconstruction.judge(ranks.device))

        def hooks(last: bool) -> Iterator[Event]:
            if due(state.step, config.evaluate.every) or last:
                yield from context.first_only(
                    state.step, lambda: iter([reconstruct(state, evaluated, judge(), out)])
                )

        def after() -> Iterator[Event]:
            yield from context.first_only(state.step, lambda: iter([export(state, dataset, out / FOLDER)]))

        if remarks and ranks.first:
            yield Remarked(remarks)
        run = Run(state, out, context, macs, manifest, Fitted, hooks, data)
        yield from run.run(latest, params, after)


class EvaluationSet(NamedTuple):
    """The images that a run is evaluated on, and whether training does not see them."""

    images: TrainingSet
    held_out: bool


def _held_out(config: AutoencoderRun, dataset: TrainingSet) -> tuple[TrainingSet | None, tuple[str, ...]]:
    """The held-out images, or None if the set has none; and what a user should know about that."""
    try:
        held_out = assemble.held_out(config.data)
    except NothingHeldOut as reason:
        return None, (f"{reason}; until then, quality is measured on training images",)
    seen = f"training sees the other {counted(len(dataset), 'image')}"
    return held_out, (f"{counted(len(held_out), 'image')} held out to measure quality; {seen}",)


def _check_fits(config: AutoencoderRun, dataset: TrainingSet) -> None:
    channels, height, width = dataset.shape
    f = config.downsampling
    if channels != 3:
        raise UsageError(
            f"autoencoders need images with 3 channels, but data.name={config.data.name} has {channels}"
        )
    crop = config.train.crop
    if crop > min(height, width) or crop % f:
        raise UsageError(
            f"train.crop {crop} must be a multiple of {f} and at most {min(height, width)}, the "
            "side of the images"
        )
    if height % f or width % f:
        raise UsageError(
            f"{len(config.model.widths)} model.widths make latents of 1/{f} of the side, which does not "
            f"divide images of {height}x{width}"
        )


def reconstruct(
    state: AutoencoderState, evaluated: EvaluationSet, judge: EfficientNetExtractor, out: Path
) -> Reconstructed:
    """Encodes and decodes evaluate.num evenly spaced held-out images; saves a grid of PAIRS of them."""
    source = evaluated.images
    num = min(state.config.evaluate.num, len(source))
    x = source.batch(np.arange(num) * len(source) // num, range(num), seed=0).x0
    state.net.eval()
    with torch.no_grad():
        xhat = torch.cat([_mode(state, part) for part in x.split(state.config.train.batch_size)])
    state.net.train()
    originals, reconstructions = images.to_uint8(x), images.to_uint8(xhat)
    rows = np.arange(min(PAIRS, num)) * num // min(PAIRS, num)
    pairs = np.stack([originals[rows], reconstructions[rows]], axis=1).reshape(-1, *originals.shape[1:])
    path = out / SAMPLES / f"{checkpoint.folder_name(state.step)}.png"
    origin = {"run": state.config.name, "step": state.step, "shows": "original, reconstruction, ..."}
    images.save_png(path, images.grid(pairs, 2 * PAIRS_PER_ROW), origin)
    found = reconstruction.quality(originals, reconstructions, judge)
    held_out = len(source) if evaluated.held_out else 0
    return Reconstructed(state.step, found.psnr, found.ssim, num, path, *found[2:], held_out)


def _mode(state: AutoencoderState, x: Tensor) -> Tensor:
    mean, _ = split(state.net.encode(x.to(state.ranks.device)).latent_dist.parameters)
    return state.net.decode(mean).sample.float().cpu()


@torch.no_grad()
def measured_scale(state: AutoencoderState, dataset: TrainingSet) -> float:
    """1 / standard deviation of the drawn latents, over all channels of the first training images."""
    images = min(SCALE_IMAGES, 2 * len(dataset))
    seed, size = state.config.train.seed, state.config.train.batch_size
    count, total, squares = 0, 0.0, 0.0
    for first in range(0, images, size):
        positions = range(first, min(first + size, images))
        x = dataset.batch(samples_at(positions, len(dataset), seed), positions, seed).x0
        mean, log_variance = split(state.net.encode(x.to(state.ranks.device)).latent_dist.parameters)
        mean, log_variance = mean.double(), log_variance.double()
        count += mean.numel()
        total += float(mean.sum())
        squares += float((mean.square() + log_variance.exp()).sum())
    return 1 / float(np.sqrt(squares / count - (total / count) ** 2))


def export(state: AutoencoderState, dataset: TrainingSet, folder: Path) -> Exported:
    """Writes the autoencoder in diffusers' format, atomically, with the scale in its config.json."""
    scale = measured_scale(state, dataset) if state.scale is None else state.scale
    with torch.device("meta"):
        net = type(state.net).from_config({**state.net.config, "scaling_factor": scale})
    weights = {name: value.cpu().contiguous() for name, value in state.net.state_dict().items()}
    net.load_state_dict(weights, assign=True)
    try:
        with atomic_folder(folder) as partial:
            net.save_pretrained(partial)
            # safetensors makes the file readable by its owner only, whatever the umask.
            (partial / kl.WEIGHTS).chmod((partial / kl.CONFIG).stat().st_mode)
    except OSError as error:
        raise RunError(f"could not save {folder}: {error.strerror or error}") from error
    sha256 = sha256_of(folder / kl.WEIGHTS)
    return Exported(state.step, folder, scale, sha256, kl.encoder_sha256(net.state_dict()))


def multiply_adds(net: Any, shape: tuple[int, int, int]) -> int:
    """Multiply-adds of encoding and decoding one image, without normalizations and activations."""
    from torch.utils.flop_counter import FlopCounterMode

    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        net(torch.zeros(1, *shape, device=net.device))
    return counter.get_total_flops() // 2
