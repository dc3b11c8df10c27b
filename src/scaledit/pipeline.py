"""From a trained model to pictures: `scaledit.load(path)(classes)`.

    noise(seed, start + i)  --sampler over the guided denoiser-->  x_0  -->  uint8 image i

Image i depends on (seed, start + i) and its class alone, whatever the batch it was drawn in.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from scaledit import assemble, checkpoint, diffusion, images
from scaledit.autoencoders.decoder import Decoder
from scaledit.config import LatentConfig, RunConfig, SampleConfig
from scaledit.data.latents import MadeBy
from scaledit.errors import UsageError
from scaledit.models.dit import DiT

DECODED_AT_ONCE = 16
"""Images: decoding takes far more memory than sampling."""
PROGRESS = Callable[[int, int], None]
"""Called with (done, total): sampling steps over all batches."""


@dataclass(frozen=True)
class Pipeline:
    """A model ready to sample from. origin: where its weights came from. decoder: of the latents that it
    makes, None where they are pixels."""

    config: RunConfig
    net: DiT
    device: torch.device
    class_names: tuple[str, ...]
    origin: dict[str, Any]
    decoder: Decoder | None = None

    def __call__(
        self,
        classes: Sequence[int],
        seed: int = 0,
        start: int = 0,
        sampler: str | None = None,
        steps: int | None = None,
        cfg_scale: float | None = None,
        cfg_channels: Literal["3", "all"] | None = None,
        batch_size: int = 64,
        progress: PROGRESS | None = None,
    ) -> np.ndarray:
        """(N, H, W, 3) uint8, one image per entry of `classes`.

        What is not given is taken from the run's [sample] section. Raises UsageError for a class or a
        sampler that the model does not have.
        """
        settings = self.settings(seed, sampler, steps, cfg_scale, cfg_channels)
        return self.draw(classes, settings, start, batch_size, progress)

    def settings(
        self,
        seed: int = 0,
        sampler: str | None = None,
        steps: int | None = None,
        cfg_scale: float | None = None,
        cfg_channels: Literal["3", "all"] | None = None,
    ) -> SampleConfig:
        """The run's own [sample] section with what is given in its place."""
        given = {"sampler": sampler, "steps": steps, "cfg_scale": cfg_scale, "cfg_channels": cfg_channels}
        changes = {key: value for key, value in given.items() if value is not None}
        return replace(self.config.sample, seed=seed, **changes)

    def draw(
        self,
        classes: Sequence[int],
        settings: SampleConfig,
        start: int = 0,
        batch_size: int = 64,
        progress: PROGRESS | None = None,
    ) -> np.ndarray:
        """As calling the pipeline, with all settings in one object. Raises UsageError where the model makes
        latents and their decoder is not here."""
        if self.decoder is not None:
            _ = self.decoder.autoencoder  # what is missing is said before the work
        x = self.latents(classes, settings, start, batch_size, progress)
        if self.decoder is None:
            return images.to_uint8(x)
        return np.concatenate([images.to_uint8(self.decoder(part)) for part in x.split(DECODED_AT_ONCE)])

    @property
    def decoder_name(self) -> str:
        """For protocols: which decoder made the pictures."""
        return "none (pixels)" if self.decoder is None else self.decoder.name

    def latents(
        self,
        classes: Sequence[int],
        settings: SampleConfig,
        start: int = 0,
        batch_size: int = 64,
        progress: PROGRESS | None = None,
    ) -> Tensor:
        """(N, C, H, W) float32 on the CPU: what the model makes, before decoding."""
        labels = self.labels(classes)
        if batch_size < 1:
            raise UsageError(f"batch_size must be at least 1, got {batch_size}")
        sampler = assemble.sampler(settings.sampler, settings.steps)
        denoiser = assemble.guided(
            assemble.denoiser(self.config.diffusion, self.net), settings.cfg_scale, settings.cfg_channels
        )
        denoiser.schedule.grid(sampler.steps)  # a wrong number of steps is refused before the first image
        total = -(-len(labels) // batch_size) * sampler.steps
        batches, done = [torch.empty(0, *self.config.model.shape)], 0
        for first in range(0, len(labels), batch_size):
            y = labels[first : first + batch_size]
            indices = range(start + first, start + first + len(y))
            noise = diffusion.Noise(settings.seed, indices, self.config.model.shape, self.device)

            def on_step(i: int, _: Tensor, done: int = done) -> None:
                if progress is not None:
                    progress(done + i + 1, total)

            x = diffusion.sample(denoiser, sampler, noise, y.to(self.device), on_step=on_step)
            batches.append(x.float().cpu())
            done += sampler.steps
        return torch.cat(batches)

    def labels(self, classes: Sequence[int]) -> Tensor:
        """(N,) int64. Raises UsageError where a class is none of the model's."""
        y = torch.as_tensor(classes, dtype=torch.int64).reshape(-1)
        last = self.config.model.num_classes - 1
        wrong = y[(y < 0) | (y > last)]
        if len(wrong):
            raise UsageError(f"class {int(wrong[0])} is out of range; this model has the classes 0..{last}")
        return y


def load(path: str | Path, device: str = "auto", decoder: LatentConfig | None = None) -> Pipeline:
    """The Pipeline of a run folder (its latest checkpoint) or of one checkpoint, with the EMA weights.

    decoder: what to decode its latents with, instead of the run's own [autoencoder]. Raises UsageError if
    there is no model at `path`, RunError if its files are damaged.
    """
    path = Path(path)
    if not path.exists():
        raise UsageError(f"there is no {path}")
    folder = path
    if not (path / checkpoint.MANIFEST).is_file() and not path.name.startswith("step-"):
        found = checkpoint.find(path / "checkpoints")
        if not found:
            raise UsageError(f"{path} holds no checkpoint; give a run folder or a checkpoint of one")
        folder = found[-1]
    opened = checkpoint.open_checkpoint(folder)
    config, where = RunConfig.from_json(opened.config), assemble.device(device)
    net = assemble.network(config.model, seed=0)
    load_weights(net, opened.tensors("ema"), folder)
    return Pipeline(
        config=config,
        net=net.to(where).eval(),
        device=where,
        class_names=tuple(opened.manifest["state"]["class_names"]),
        origin={
            "run": config.name,
            "step": opened.step,
            "weights": "ema",
            "sha256": opened.files["ema.safetensors"]["sha256"],
        },
        decoder=_decoder(decoder or config.autoencoder, opened.manifest["state"].get("made_by"), where),
    )


def _decoder(config: LatentConfig, maker: Mapping[str, Any] | None, device: torch.device) -> Decoder | None:
    """maker: the autoencoder of the latents that the run was trained on, as its checkpoint says."""
    if maker is None:
        return None
    made_by = MadeBy(**maker)
    return Decoder(config.path or made_by.name, made_by, str(device), config.precision, config.tiled)


def load_weights(net: nn.Module, tensors: dict[str, Tensor], where: Path) -> None:
    """Copies `tensors` into `net`; raises UsageError naming the first that does not fit the config."""
    own = net.state_dict()
    for key in sorted(own.keys() | tensors.keys()):
        if key not in tensors or key not in own or tensors[key].shape != own[key].shape:
            have = tuple(tensors[key].shape) if key in tensors else "nothing"
            want = tuple(own[key].shape) if key in own else "nothing"
            raise UsageError(f"{where} does not fit its config: {key} is {have}, the config says {want}")
    net.load_state_dict(tensors)
