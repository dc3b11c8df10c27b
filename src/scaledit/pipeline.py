"""From a trained model to images: `scaledit.load(path)(classes)`.

    noise(seed, start + i)  --sampler over the guided denoiser-->  x_0  -->  uint8 image i

Image i depends on (seed, start + i) and its class alone, whatever batch it is sampled in.
"""

from __future__ import annotations

import math
import tempfile
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from scaledit import assemble, checks, diffusion, images, machine
from scaledit.autoencoders.decoder import Decoder
from scaledit.averages import Average
from scaledit.callbacks import Progress
from scaledit.config import (
    LatentConfig,
    RunConfig,
    SampleConfig,
    check_guidance,
    check_sampling,
    short,
    with_values,
)
from scaledit.config.tables import modules
from scaledit.data.latents import AutoencoderInfo
from scaledit.diffusion.guidance.base import Opened, active
from scaledit.errors import Diverged, RunError, UsageError, counted, did_you_mean, listed, no_such
from scaledit.interop import card, hub, native
from scaledit.interop.convert import open_model
from scaledit.interop.infer import Hints
from scaledit.interop.lazy_tensors import from_tensor
from scaledit.interop.model import Model
from scaledit.interop.official import check_size
from scaledit.models import flops
from scaledit.models.config import DiTConfig
from scaledit.models.dit import DiT
from scaledit.models.shapes import shapes as needed_shapes
from scaledit.part import Allowed, in_words

DECODED_AT_ONCE = 16
"""Images per call of the decoder, which takes far more memory than sampling."""
BYTES_OF_A_NUMBER = 4
MOST_IMAGES = 1 << 63
"""An exclusive upper bound of image indices."""
Classes = Sequence[int | str] | np.ndarray | Tensor | int | str
"""Class numbers, names, or both."""


@dataclass(frozen=True)
class Pipeline:
    """A model ready to sample from.

    origin: where its weights came from. decoder: the decoder of its latents, None for a model of pixels.
    official_noise: use the random numbers of the official sample.py; an image then depends on its whole
    batch. source: the file that converted weights came from. breaks: as in a model. allow_import: as in
    `load`, for the models that guidance names. others: those models, opened when first used. size: height and
    width of the images in pixels, None for those of the training; set by `at`."""

    config: RunConfig
    net: DiT
    device: torch.device
    class_names: tuple[str, ...]
    origin: dict[str, Any]
    decoder: Decoder | None = None
    official_noise: bool = False
    source: Mapping[str, Any] = field(default_factory=dict)
    breaks: tuple[Mapping[str, Any], ...] = ()
    allow_import: tuple[str, ...] = ()
    others: dict[str, Opened] = field(default_factory=dict)
    size: tuple[int, int] | None = None

    def __call__(
        self,
        classes: Classes,
        seed: int = 0,
        start: int = 0,
        sampler: str | Mapping[str, Any] | diffusion.Sampler | None = None,
        steps: int | None = None,
        cfg_scale: float | None = None,
        cfg_channels: int | str | None = None,
        batch_size: int = 64,
        progress: Progress | None = None,
        guidance: Sequence[diffusion.Guidance] | None = None,
        cfg_interval: tuple[float, float] | None = None,
        tolerance: float | None = None,
        size: int | tuple[int, int] | None = None,
    ) -> np.ndarray:
        """Samples one image per entry of `classes`; returns (N, H, W, 3) uint8.

        classes: numbers (0 is the first class) or names (strings). If names are numbers, "7" is the class
        called 7 and 7 is class number 7. seed, start: image i is made from the noise of (seed, start + i).
        sampler: a name ("ddim", or "my_parts:Midpoint" of a module that can be imported), a table of a name
        and fields, or a Sampler. steps: steps of the sampler. cfg_scale, cfg_channels: scale and channels of
        classifier-free guidance; channels are a number or "all". batch_size: images sampled at once.
        progress: called with (done, total) sampling steps over all batches. guidance: replaces the guidance
        of the run, the first part innermost. cfg_interval: the times (low, high) between which is guided,
        fractions of the schedule from 0, the image, to 1, noise. tolerance: rtol and atol of the sampler
        "adaptive", which is the default with it. size: side, or (height, width), of the images in pixels.

        Arguments left out come from the run's [sample] section; a sampler given by name keeps its number of
        steps. Raises UsageError for an unknown class or sampler, for settings that [sample] would refuse, for
        a size as `at` does, and for guidance if the null label was never trained; RunError if the sampled
        values are not finite.
        """
        settings = self.settings(
            seed, sampler, steps, cfg_scale, cfg_channels, guidance, cfg_interval, tolerance
        )
        return self.at(size).sample(classes, settings, start, batch_size, progress)

    def at(self, size: int | Sequence[int] | None) -> Pipeline:
        """The same model for images of another size, without further training; which size works depends on
        its position encoding.

        size: side, or (height, width), in pixels; None keeps the size. Raises UsageError if the patches and
        the autoencoder do not divide it, naming the nearest sizes that they divide, if the position encoding
        is not defined there, or if the tokens of one image exceed the memory."""
        if size is None:
            return self
        sides = list(size) if isinstance(size, Sequence) else [size, size]
        if len(sides) != 2:
            raise UsageError(f"a size is a side or (height, width) in pixels, got {size!r}")
        height, width = (checks.integer(side, "a side of size", 1) for side in sides)
        trained, factor = self.config.model, self.downsampling
        unit = trained.patch_size * factor
        if height % unit or width % unit:
            raise UsageError(
                f"{height}x{width} (height x width) is not possible: both sides must be multiples of {unit}, "
                f"{_unit_in_words(trained.patch_size, factor)}; the nearest size"
                f"{_nearest_sizes((height, width), unit)}"
            )
        machine.check_memory(
            BYTES_OF_A_NUMBER * (height // unit) * (width // unit) * trained.hidden_size,
            f"the tokens of an image of {height}x{width}",
            "choose a smaller size",
        )
        model = trained.at(height // factor, width // factor)
        if model.grid == trained.grid:
            return replace(self, size=None)
        trained.position_part.table_at(trained, model.grid)
        return replace(self, size=(height, width))

    @property
    def downsampling(self) -> int:
        """Pixels per side of a latent; 1 for a model of pixels."""
        return 1 if self.decoder is None else self.decoder.autoencoder_info.downsampling

    @property
    def model(self) -> DiTConfig:
        """The shape of the model at the size that is sampled."""
        if self.size is None:
            return self.config.model
        return self.config.model.at(*(side // self.downsampling for side in self.size))

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width of the images in pixels."""
        return self.model.height * self.downsampling, self.model.width * self.downsampling

    def settings(
        self,
        seed: int = 0,
        sampler: str | Mapping[str, Any] | diffusion.Sampler | None = None,
        steps: int | None = None,
        cfg_scale: float | None = None,
        cfg_channels: int | str | None = None,
        guidance: Sequence[diffusion.Guidance] | None = None,
        cfg_interval: tuple[float, float] | None = None,
        tolerance: float | None = None,
    ) -> SampleConfig:
        """The run's [sample] section with the arguments that are not None in its place, as in a call of the
        pipeline. Raises UsageError as that does."""
        parts: dict[str, Any] = {"sample.sampler": sampler, "sample.guidance": guidance}
        changes = {key: value for key, value in parts.items() if value is not None}
        changes |= short(
            self.config,
            steps=steps,
            cfg_scale=cfg_scale,
            cfg_channels=cfg_channels,
            cfg_interval=cfg_interval,
            tolerance=tolerance,
        )
        settings = replace(with_values(self.config, changes).sample, seed=seed)
        self.check(settings)
        return settings

    def opened(self, guidance: Sequence[diffusion.Guidance]) -> tuple[diffusion.Guidance, ...]:
        """The parts with the other models that they name (autoguidance). Raises UsageError if one of these is
        missing or cannot guide this model, RunError if it is corrupt."""

        def open_model(path: str) -> Opened:
            if path not in self.others:
                info = None if self.decoder is None else self.decoder.autoencoder_info
                self.others[path] = open_other(path, self.config, self.device, info, self.allow_import)
            return self.others[path]

        return tuple(part.opened(open_model) for part in guidance)

    def check(self, settings: SampleConfig) -> diffusion.Sampler:
        """The sampler of `settings`. Raises UsageError if this model cannot be sampled with them."""
        check_sampling(settings, self.config.diffusion)
        check_guidance(self.config.model, self.config.diffusion.schedule, settings.guidance)
        settings.sampler.chosen_for(self.model.shape).grid(self.config.diffusion.schedule)
        return settings.sampler

    def sample(
        self,
        classes: Classes,
        settings: SampleConfig,
        start: int = 0,
        batch_size: int = 64,
        progress: Progress | None = None,
        on_evaluations: Callable[[Tensor], None] | None = None,
    ) -> np.ndarray:
        """The same as calling the pipeline, with the settings in one object. on_evaluations: called after
        each batch, with how often the sampler evaluated the denoiser for each image, (N,) int64. Raises
        UsageError if the model makes latents and their decoder cannot be opened."""
        if self.decoder is not None:
            _ = self.decoder.autoencoder  # raises before the work if it is missing
        x = self.latents(classes, settings, start, batch_size, progress, on_evaluations)
        return self.decoded(x, start)

    def decoded(self, x: Tensor, start: int = 0) -> np.ndarray:
        """The images (N, H, W, 3) uint8 of the model's samples (N, C, H, W). start: index of the first, for
        messages. Raises RunError if the decoder's numbers are not finite."""
        if self.decoder is None:
            return images.to_uint8(x)
        decoded = []
        for first in range(0, max(1, len(x)), DECODED_AT_ONCE):
            part = x[first : first + DECODED_AT_ONCE]
            pixels = self.decoder(part)
            self._check_decoded(pixels, part, start + first)
            decoded.append(images.to_uint8(pixels))
        return np.concatenate(decoded)

    def _check_decoded(self, pixels: Tensor, latents: Tensor, first: int) -> None:
        """Raises RunError if the decoder turned finite latents into pixels that are not. first: index of the
        first image."""
        wrong = (~torch.isfinite(pixels)).flatten(1).any(1).nonzero().flatten().tolist()
        if wrong:
            largest = float(latents[wrong].abs().max())
            raise RunError(
                f"the decoder returned pixels that are not finite, first for image {first + wrong[0]}, from "
                f"latents that are (none beyond {largest:.3g}): {self.decoder_name}; its weights are "
                f"corrupt, or they need another --decoder-precision"
            )

    @property
    def decoder_name(self) -> str:
        """The decoder's name, for protocols."""
        return "none (pixels)" if self.decoder is None else self.decoder.name

    def latents(
        self,
        classes: Classes,
        settings: SampleConfig,
        start: int = 0,
        batch_size: int = 64,
        progress: Progress | None = None,
        on_evaluations: Callable[[Tensor], None] | None = None,
    ) -> Tensor:
        """The model's samples before decoding, (N, C, H, W) float32 on the CPU. Raises as a call does."""
        labels = self.labels(classes)
        start = checks.integer(start, "start", 0, MOST_IMAGES - len(labels))
        if self.official_noise:
            if start:
                raise UsageError("official noise begins with the first image, so start must be 0")
            batch_size = max(1, len(labels))
        batch_size = checks.integer(batch_size, "batch_size", 1)
        sampler = self.check(settings)
        self._check_memory(len(labels), batch_size, _is_guided(settings))
        inside = assemble.denoiser(self.config.diffusion, self.net)
        denoiser = assemble.guided(inside, self.opened(settings.guidance))
        total = -(-len(labels) // batch_size) * sampler.ticks
        batches, done = [torch.empty(0, *self.model.shape)], 0
        for first in range(0, len(labels), batch_size):
            y = labels[first : first + batch_size]
            noise = self._noise(settings, start + first, len(y))

            def on_step(i: int, _: Tensor, done: int = done) -> None:
                if progress is not None:
                    progress(done + i + 1, total)

            try:
                x = diffusion.sample(
                    denoiser,
                    sampler,
                    noise,
                    y.to(self.device),
                    on_step=on_step,
                    on_evaluations=on_evaluations,
                )
            except diffusion.NonFiniteError as error:
                raise Diverged(self._nonfinite(error, start + first, settings)) from None
            except diffusion.TooManyEvaluations as error:
                numbers = [start + first + row for row in error.rows]
                raise RunError(error.describe(*_images(numbers))) from None
            batches.append(x.float().cpu())
            done += sampler.ticks
        return torch.cat(batches)

    def _check_memory(self, n: int, batch_size: int, guided: bool) -> None:
        """Raises UsageError if n images, or a batch of them in the network, exceed the memory. The estimate
        is low, so that only what cannot work is refused."""
        size = math.prod(self.model.shape)
        machine.check_memory(
            BYTES_OF_A_NUMBER * size * n, f"{counted(n, 'image')} at once", "sample fewer, or generate"
        )
        at_once = min(n, batch_size)
        machine.check_memory(
            flops.sampling_bytes(self.model, at_once * (2 if guided else 1)),
            f"sampling {counted(at_once, 'image')} at once",
            "use a smaller batch_size (--batch-size)",
            self.device,
        )

    def _nonfinite(self, error: diffusion.NonFiniteError, first: int, settings: SampleConfig) -> str:
        """Which images, numbered from `first`, are not finite, and the likely cause."""
        numbers = [first + row for row in error.rows]
        message = error.describe(*_images(numbers))
        bad = [name for name, weight in self.net.state_dict().items() if not bool(weight.isfinite().all())]
        if bad:
            more = f" and {len(bad) - 1} more" if len(bad) > 1 else ""
            return f"{message}; the model's weights are not finite: {bad[0]}{more}"
        if _is_guided(settings):
            guidance = " and ".join(part.label() for part in settings.guidance)
            return f"{message}; the weights are finite: try less guidance than {guidance}"
        return f"{message}; the weights are finite: the network's own numbers grow beyond float32"

    def _noise(self, settings: SampleConfig, first: int, n: int) -> diffusion.NoiseSource:
        """The noise of the images first..first + n - 1."""
        shape = self.model.shape
        if self.official_noise:
            doubled = _is_guided(settings)
            return diffusion.OfficialNoise(settings.seed, n, shape, self.device, doubled=doubled)
        return diffusion.Noise(settings.seed, range(first, first + n), shape, self.device)

    def with_official_noise(self) -> Pipeline:
        """The same model with the random numbers of the official sample.py: the same seed and the same
        classes in the same order give the images of that program."""
        return replace(self, official_noise=True, origin={**self.origin, "noise": "official sample.py"})

    def save_pretrained(
        self, folder: str | Path, metrics: Sequence[Mapping[str, Any]] = (), progress: Progress | None = None
    ) -> Path:
        """Writes config.json, model.safetensors, manifest.json and a model card into `folder`, which `load`
        reads; returns the folder.

        metrics: results of `scaledit evaluate --json`, shown in the card with their protocol. Raises
        UsageError if `folder` is not empty.
        """
        model = Model(
            config=self.config,
            weights={key: from_tensor(value) for key, value in self.net.state_dict().items()},
            class_names=self.class_names,
            autoencoder_info=None if self.decoder is None else self.decoder.autoencoder_info,
            source=self.source,
            step=self.origin.get("step", 0),
            kind=self.origin.get("weights", "model"),
            breaks=self.breaks,
        )
        native.write(model, Path(folder), card.text(model, metrics), progress or (lambda done, total: None))
        return Path(folder)

    def push_to_hub(
        self, repo_id: str, metrics: Sequence[Mapping[str, Any]] = (), private: bool = False
    ) -> str:
        """Uploads what `save_pretrained` writes to the Hub as `repo_id`; returns its address.

        Raises RunError if the Hub refuses or HF_HUB_OFFLINE is set.
        """
        with tempfile.TemporaryDirectory() as parent:
            return hub.push(self.save_pretrained(Path(parent) / "model", metrics), repo_id, private)

    def labels(self, classes: Classes) -> Tensor:
        """`classes` as (N,) int64 labels. Raises UsageError for a class that the model does not have, and for
        a value that is neither an integer nor a name; nothing is rounded."""
        if isinstance(classes, Tensor | np.ndarray):
            classes = classes.reshape(-1).tolist()
        elif isinstance(classes, str) or not isinstance(classes, Iterable):
            classes = [classes]
        return torch.tensor([self.label(item) for item in classes], dtype=torch.int64)

    def label(self, item: int | str) -> int:
        """The label of a class given by number, or by name if it is a string. Raises as `labels` does."""
        if isinstance(item, str):
            numbers = [number for number, name in enumerate(self.class_names) if name == item]
            if not numbers:
                raise UsageError(
                    f"unknown class {item!r}{near_classes(item, self.class_names)} (write class names as "
                    "strings and class numbers as numbers)"
                )
            if len(numbers) > 1:
                raise UsageError(
                    f"{len(numbers)} classes are called {item!r}; choose one by its number: "
                    f"{listed(list(map(str, numbers)), 'or')}"
                )
            return numbers[0]
        number, last = checks.integer(item, "a class"), self.config.model.num_classes - 1
        if not 0 <= number <= last:
            raise UsageError(f"class {number} is out of range; this model has the classes 0..{last}")
        return number


def _unit_in_words(patch: int, factor: int) -> str:
    if factor == 1:
        return "the model's patch size"
    return f"the model's patch size {patch} times the autoencoder's downsampling {factor}"


def _nearest_sizes(size: tuple[int, int], unit: int) -> str:
    """' is 16x16', 's are 16x16 and 16x24': multiples of the unit around a size."""
    options = [sorted({max(1, side // unit) * unit, -(-side // unit) * unit}) for side in size]
    sizes = [f"{height}x{width}" for height in options[0] for width in options[1]]
    return f" is {sizes[0]}" if len(sizes) == 1 else f"s are {listed(sizes, 'and')}"


MOST_LISTED = 50
"""Classes that a message lists at most."""


def near_classes(word: str, names: Sequence[str]) -> str:
    """`did_you_mean` for the name of a class, without a list of very many names."""
    hint = did_you_mean(word, names)
    if hint.startswith("; did you mean") or len(names) <= MOST_LISTED:
        return hint
    return f"; the model has {len(names):,} classes, such as {names[0]} and {names[-1]}"


def _images(numbers: list[int]) -> tuple[str, list[int]]:
    return "image" if len(numbers) == 1 else "images", numbers


def _is_guided(settings: SampleConfig) -> bool:
    return bool(active(settings.guidance))


def load(
    path: str | Path,
    device: str = "auto",
    decoder: LatentConfig | None = None,
    hints: Hints | None = None,
    allow_import: Iterable[str] = (),
    average: str | float | Average | None = None,
) -> Pipeline:
    """Loads a model as a Pipeline, with its EMA weights if it has them.

    path: a run folder (its latest checkpoint), a checkpoint, an exported folder, an official .pt, a folder of
    diffusers, or the id of one of these folders on the Hub. Local paths need no network. device: "auto" is
    CUDA, else MPS, else the CPU. decoder: replaces the model's own decoder. hints: facts that weights from
    elsewhere do not hold. allow_import: modules that the model may name parts of (my_parts:Midpoint). They
    are imported and so executed: name only modules that you trust. average: the relative length of a
    power-function average of a run that was trained with ema.power, such as 0.13, or "0.13@20000" up to an
    earlier step; 0 is the EMA, None what the run's sample.average says. `origin["average"]` has its step and
    its predicted error.

    Warns about what had to be assumed. Raises UsageError if there is no model at `path`, if it names a module
    that is not allowed, or if the average is outside of what was kept; RunError if its files are corrupt."""
    allowed = Allowed.only(allow_import, str(path))
    model = open_model(hub.local(path), hints, allowed=allowed, average=average)
    target = assemble.device(device)
    for note in model.notes:
        warnings.warn(f"{path}: {note}", stacklevel=2)
    config = model.config
    check_size(config.model, len(model.weights))
    _check_fits(needed_shapes(config.model), {key: lazy.shape for key, lazy in model.weights.items()}, path)
    net = assemble.network(config.model, seed=0)
    own = net.state_dict()
    with torch.no_grad():
        for key, lazy in model.weights.items():  # one tensor in memory at a time
            own[key].copy_(lazy.read())
    return Pipeline(
        config=config,
        net=net.to(target).eval(),
        device=target,
        class_names=model.class_names,
        origin=_origin(model),
        decoder=_decoder(decoder or config.autoencoder, model.autoencoder_info, target),
        source=model.source,
        breaks=model.breaks,
        allow_import=tuple(allow_import),
    )


def _origin(model: Model) -> dict[str, Any]:
    origin = {"run": model.config.name, "step": model.step, "weights": model.kind, "sha256": model.sha256}
    return origin if model.averaged is None else {**origin, "average": model.averaged._asdict()}


def open_other(
    path: str,
    config: RunConfig,
    device: torch.device,
    info: AutoencoderInfo | None,
    allow_import: Iterable[str] = (),
) -> Opened:
    """The model at `path`, a local one, as guidance of a model with `config`: autoguidance's weaker model.

    info: of the autoencoder of this model's latents. allow_import: as in `load`; modules that `config` names
    are allowed, since they are imported already. Raises UsageError if there is no such model or if it differs
    in what guidance needs: the schedule, the prediction, the shape of the images, the classes and the
    latents.
    """
    folder = native.at_step(path)
    if not folder.exists():
        raise UsageError(no_such(folder))
    other = load(folder, str(device), allow_import={*allow_import, *modules(config)})
    what = {
        "diffusion.schedule": lambda config: in_words(config.diffusion.schedule.to_json()),
        "diffusion.prediction": lambda config: in_words(config.diffusion.prediction.to_json()),
        "image shape": lambda config: config.model.shape,
        "model.num_classes": lambda config: config.model.num_classes,
    }
    for key, value in what.items():
        if value(other.config) != value(config):
            raise UsageError(
                f"{path} cannot guide this model: its {key} is {value(other.config)}, not {value(config)}; "
                "name a weaker model that was trained as this one was"
            )
    theirs = None if other.decoder is None else other.decoder.autoencoder_info
    if info and theirs and (info.encoder_sha256, info.scale) != (theirs.encoder_sha256, theirs.scale):
        raise UsageError(
            f"{path} cannot guide this model: it was trained on latents of {theirs.name}, this one on those "
            f"of {info.name}, which has another encoder; name a weaker model of the same latents"
        )
    denoiser = assemble.denoiser(other.config.diffusion, other.net)
    return Opened(denoiser, str(other.origin["sha256"]), other.config.model.has_null_label)


def _decoder(config: LatentConfig, info: AutoencoderInfo | None, device: torch.device) -> Decoder | None:
    """info: the autoencoder of the latents that the model was trained on, from its checkpoint."""
    if info is None:
        return None
    return Decoder(config.path or info.name, info, str(device), config.precision, config.tiled)


def _check_fits(
    expected: Mapping[str, tuple[int, ...]], shapes: Mapping[str, tuple[int, ...]], path: str | Path
) -> None:
    for key in sorted(expected.keys() | shapes.keys()):
        have, want = shapes.get(key, "nothing"), expected.get(key, "nothing")
        if have != want:
            raise UsageError(f"{path} does not fit its config: {key} is {have} instead of {want}")
