"""KL autoencoders through diffusers' AutoencoderKL, frozen (Rombach et al. 2022, section 3.1).

    encode   x --encoder, quant_conv--> (mean, log variance)
    decode   z / scale --post_quant_conv, decoder--> x,         scale = config.json's scaling_factor

Read from diffusers' folder, config.json and diffusion_pytorch_model.safetensors; nothing is unpickled. The
decoder can be another one than the encoder came with, as the paper's table 5 does: what must agree is
`encoder_sha256`.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from scaledit.autoencoders import Precision
from scaledit.errors import RunError, UsageError
from scaledit.parts import sha256_of

CONFIG, WEIGHTS = "config.json", "diffusion_pytorch_model.safetensors"
CLASS = "AutoencoderKL"
SUBFOLDERS = ("autoencoder", "vae")
"""Where a folder may have it: the run folder of `scaledit autoencoder train`, and a pipeline of diffusers."""

ENCODER_PARTS = ("encoder.", "quant_conv.")
RGB = 3
"""Channels of all images here; grey ones have three equal channels."""
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


@dataclass(frozen=True)
class KLAutoencoder:
    """A trained AutoencoderKL. The same images in the same batches give the same moments, bit for bit;
    another batch size may change the last bits, because convolutions choose their algorithm by it.

    tiled: decode in overlapping tiles, for images whose activations do not fit; off, the exact decoder.
    """

    net: Any  # diffusers' AutoencoderKL, in eval mode
    name: str
    scale: float
    channels: int
    downsampling: int
    sha256: str
    encoder_sha256: str
    precision: Precision = "fp32"
    tiled: bool = False

    @classmethod
    def open(
        cls, where: str, *, device: str = "cpu", precision: Precision = "fp32", tiled: bool = False
    ) -> KLAutoencoder:
        """A local folder, or else a hub id such as stabilityai/sd-vae-ft-mse (HF_HUB_OFFLINE is respected).

        Raises UsageError where it is missing, incomplete, of another class, has a shift or statistics a
        channel (those of other model families), or does not load whole.
        """
        folder = find(where)
        config = _checked_config(folder)
        weights = folder / WEIGHTS
        net = _network(folder)
        if precision not in DTYPES:
            raise UsageError(f"precision must be one of {', '.join(DTYPES)}, got {precision!r}")
        pictures = [config.get(key, RGB) for key in ("in_channels", "out_channels")]
        if pictures != [RGB, RGB]:
            raise UsageError(
                f"{where} takes images of {pictures[0]} and makes images of {pictures[1]} channels; only "
                f"autoencoders of RGB images ({RGB} channels) are supported"
            )
        opened = cls(
            net=net,
            name=where,
            scale=float(config["scaling_factor"]),
            channels=int(config["latent_channels"]),
            downsampling=2 ** (len(config["block_out_channels"]) - 1),
            sha256=sha256_of(weights),
            encoder_sha256=encoder_sha256(net.state_dict()),
            precision=precision,
            tiled=tiled,
        )
        net.requires_grad_(False).eval()
        torch.nn.Module.to(net, device=device, dtype=DTYPES[precision])  # diffusers' own warns of nothing
        return opened

    @property
    def device(self) -> torch.device:
        return self.net.device

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) in [-1, 1] -> (N, 2C, H / f, W / f) float32 on the CPU: means, then log variances as
        the encoder gives them, not clamped. Raises UsageError where H or W is no multiple of f."""
        n, f = len(images), self.downsampling
        if images.ndim != 4 or images.shape[1] != 3 or images.shape[2] % f or images.shape[3] % f:
            raise UsageError(
                f"{self.name} encodes (N, 3, H, W) with H and W multiples of {f}, got {tuple(images.shape)}"
            )
        self.net.use_tiling = False
        moments = self.net.encode(self._in(images)).latent_dist.parameters.float().cpu()
        assert moments.shape == (n, 2 * self.channels, images.shape[2] // f, images.shape[3] // f)
        return self._finite(moments, "encoding")

    @torch.no_grad()
    def decode(self, z: Tensor) -> Tensor:
        """Scaled latents (N, C, h, w) -> (N, 3, f h, f w) float32 on the CPU, clamped to [-1, 1]."""
        if z.ndim != 4 or z.shape[1] != self.channels:
            raise UsageError(
                f"{self.name} decodes latents of {self.channels} channels, (N, {self.channels}, h, w); got "
                f"{tuple(z.shape)}"
            )
        self.net.use_tiling = self.tiled
        images = self.net.decode(self._in(z / self.scale)).sample.float().cpu()
        return self._finite(images, "decoding").clamp(-1, 1)

    def _in(self, x: Tensor) -> Tensor:
        return x.to(device=self.device, dtype=DTYPES[self.precision])

    def _finite(self, x: Tensor, what: str) -> Tensor:
        if self.precision == "fp16" and not bool(x.isfinite().all()):
            raise RunError(f"{what} with {self.name} overflows fp16; use bf16 or fp32")
        return x


def find(where: str) -> Path:
    """The folder that holds config.json and the weights: `where`, a subfolder of it, or what the hub has
    under that id. Raises UsageError where there is none."""
    path = Path(where).expanduser()
    if path.is_dir():
        return next((path / sub for sub in SUBFOLDERS if (path / sub / CONFIG).is_file()), path)
    if path.exists() or not _HUB_ID.fullmatch(where):
        raise UsageError(f"there is no autoencoder folder {where}")
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise UsageError(f"there is no folder {where}; {_INSTALL}") from None
    try:
        return Path(snapshot_download(where, allow_patterns=[CONFIG, WEIGHTS]))
    except Exception as error:  # the hub's client raises its own, httpx's and OSError
        reason = f"{type(error).__name__}: {str(error).strip().splitlines()[0]}"
        raise UsageError(
            f"{where} is no local folder, and the Hugging Face hub did not give it ({reason})"
        ) from None


_INSTALL = 'KL autoencoders need diffusers: pip install "scaledit[diffusers]"'


def _checked_config(folder: Path) -> Mapping[str, Any]:
    """config.json, after making sure that this is an autoencoder whose latents need no more than a scale."""
    if not (folder / CONFIG).is_file():
        raise UsageError(f"{folder} holds no autoencoder: there is no {CONFIG}")
    try:
        config = json.loads((folder / CONFIG).read_bytes())
        kind = config["_class_name"]
    except (ValueError, KeyError, TypeError):
        raise UsageError(f"{folder / CONFIG} is not the config of a diffusers model") from None
    if kind != CLASS:
        raise UsageError(f"{folder} holds a {kind}; only {CLASS} is supported")
    if not (folder / WEIGHTS).is_file():
        others = sorted(path.name for path in folder.iterdir() if path.suffix in (".bin", ".ckpt", ".pt"))
        hint = (
            f"; {others[0]} is a pickle, which is never opened: convert it to safetensors" if others else ""
        )
        raise UsageError(f"{folder} has no {WEIGHTS}{hint}")
    needed = {"scaling_factor", "latent_channels", "block_out_channels"}
    if missing := sorted(needed - config.keys()):
        raise UsageError(f"{folder / CONFIG} lacks {', '.join(missing)}")
    for key in ("shift_factor", "latents_mean", "latents_std"):
        if config.get(key):
            raise UsageError(f"{folder} needs {key} {config[key]}; only a scaling_factor is supported")
    return config


def diffusers_class() -> Any:
    """AutoencoderKL itself. Raises UsageError with what to install where diffusers is missing."""
    try:
        from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL  # 4 s
    except ImportError:
        raise UsageError(_INSTALL) from None
    return AutoencoderKL


def _network(folder: Path) -> Any:
    """The module with every weight from the file; from_pretrained knows older names of attention layers."""
    AutoencoderKL = diffusers_class()
    from diffusers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity_error()  # what it would warn of is raised below
    try:
        loaded: Any = AutoencoderKL.from_pretrained(
            folder,
            use_safetensors=True,
            local_files_only=True,
            low_cpu_mem_usage=False,
            output_loading_info=True,
        )
    except Exception as error:
        reason = str(error).strip().splitlines()[0]
        raise UsageError(f"{folder} cannot be read as an {CLASS} ({reason})") from None
    finally:
        logging.set_verbosity(before)
    net, found = loaded
    wrong = [*found["missing_keys"], *found["unexpected_keys"], *found["mismatched_keys"]]
    if wrong:
        raise UsageError(f"{folder / WEIGHTS} does not fit its {CONFIG}: {wrong[0]} is missing or not known")
    return net


def encoder_sha256(state: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, shapes and float32 values of what makes the moments."""
    digest = hashlib.sha256()
    for name in sorted(state):
        if name.startswith(ENCODER_PARTS):
            value = state[name].detach().float().cpu().contiguous()
            digest.update(f"{name} {tuple(value.shape)}\n".encode())
            digest.update(value.numpy().tobytes())
    return digest.hexdigest()
