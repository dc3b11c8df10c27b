"""KL autoencoders through diffusers' AutoencoderKL, frozen (Rombach et al. 2022, section 3.1).

    encode   x --encoder, quant_conv--> (mean, log variance)
    decode   z / scale --post_quant_conv, decoder--> x,         scale = config.json's scaling_factor

Read from diffusers' folder, config.json and diffusion_pytorch_model.safetensors; nothing is unpickled. Old
folders, Stable Diffusion's own among them, lack keys of the config and have other names for the weights of
attention: they are read as diffusers reads them (DEFAULTS, ATTENTION). The decoder can be another one than
the encoder came with, as the paper's table 5 does: what must agree is `encoder_sha256`.
"""

from __future__ import annotations

import hashlib
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from scaledit.autoencoders import Precision
from scaledit.errors import RunError, UsageError, reading
from scaledit.files.manifest import sha256_of
from scaledit.files.reading import read_json

CONFIG, WEIGHTS = "config.json", "diffusion_pytorch_model.safetensors"
CLASS = "AutoencoderKL"
SUBFOLDERS = ("autoencoder", "vae")
"""Where a folder may have it: the run folder of `scaledit autoencoder train`, and a pipeline of diffusers."""

ENCODER_PARTS = ("encoder.", "quant_conv.")
RGB = 3
"""Channels of all images here; grey ones have three equal channels."""
DEFAULTS: Mapping[str, Any] = {
    "in_channels": 3,
    "out_channels": 3,
    "down_block_types": ("DownEncoderBlock2D",),
    "up_block_types": ("UpDecoderBlock2D",),
    "block_out_channels": (64,),
    "layers_per_block": 1,
    "act_fn": "silu",
    "latent_channels": 4,
    "norm_num_groups": 32,
    "sample_size": 32,
    "scaling_factor": 0.18215,
    "shift_factor": None,
    "latents_mean": None,
    "latents_std": None,
    "force_upcast": True,
    "use_quant_conv": True,
    "use_post_quant_conv": True,
    "mid_block_add_attention": True,
}
"""What diffusers' AutoencoderKL takes for a key that config.json lacks: the defaults of its constructor. Old
files lack the keys that are younger than they are, Stable Diffusion's autoencoders scaling_factor."""
ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
"""Names in attention layers before diffusers 0.15 -> since."""
MOST_SIDE = 1 << 16
"""Of a network: widths, groups and layers above are refused before anything is built."""
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


@dataclass(frozen=True)
class KLAutoencoder:
    """A trained AutoencoderKL. The same images in the same batches give the same moments, bit for bit;
    another batch size may change the last bits, because convolutions choose their algorithm by it.

    tiled: decode in overlapping tiles, for images whose activations do not fit; off, the exact decoder.
    notes: what a person should know of how the folder was read, a sentence each.
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
    notes: tuple[str, ...] = ()

    @classmethod
    def open(
        cls, where: str, *, device: str = "cpu", precision: Precision = "fp32", tiled: bool = False
    ) -> KLAutoencoder:
        """A local folder, or else a hub id such as stabilityai/sd-vae-ft-mse (HF_HUB_OFFLINE is respected).

        Raises UsageError where it is missing, incomplete, of another class, has a shift or statistics a
        channel (those of other model families), does not load whole, or has weights that are not finite.
        """
        folder = find(where)
        config, notes = _checked_config(folder)
        weights = folder / WEIGHTS
        net = _network(folder, config)
        if precision not in DTYPES:
            raise UsageError(f"precision must be one of {', '.join(DTYPES)}, got {precision!r}")
        pictures = [config[key] for key in ("in_channels", "out_channels")]
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
            notes=notes,
        )
        for note in notes:
            warnings.warn(f"{where}: {note}", stacklevel=2)
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


def _checked_config(folder: Path) -> tuple[Mapping[str, Any], tuple[str, ...]]:
    """config.json with DEFAULTS for the keys that it lacks, and what was filled in, after making sure that
    this is an autoencoder whose latents need no more than a scale."""
    file = folder / CONFIG
    if not file.is_file():
        raise UsageError(f"{folder} holds no autoencoder: there is no {CONFIG}")
    given = read_json(file, "the config of a diffusers model", error=UsageError)
    kind = given.get("_class_name")
    if kind is None:
        raise UsageError(f"{file} is not the config of a diffusers model: it has no _class_name")
    if kind != CLASS:
        raise UsageError(f"{folder} holds a {str(kind)[:60]}; only {CLASS} is supported")
    if not (folder / WEIGHTS).is_file():
        others = sorted(path.name for path in folder.iterdir() if path.suffix in (".bin", ".ckpt", ".pt"))
        hint = (
            f"; {others[0]} is a pickle, which is never opened: convert it to safetensors" if others else ""
        )
        raise UsageError(f"{folder} has no {WEIGHTS}{hint}")
    config = {**DEFAULTS, **given}
    for key in ("shift_factor", "latents_mean", "latents_std"):
        if config.get(key):
            raise UsageError(f"{folder} needs {key} {config[key]}; only a scaling_factor is supported")
    scale, widths = config["scaling_factor"], config["block_out_channels"]
    if isinstance(scale, bool) or not isinstance(scale, int | float) or not 0 < scale < float("inf"):
        raise UsageError(f"{file}: scaling_factor must be a number above 0, got {str(scale)[:60]}")
    sizes = {key: config[key] for key in ("latent_channels", "layers_per_block", "norm_num_groups")}
    sizes |= {"in_channels": config["in_channels"], "out_channels": config["out_channels"]}
    if not isinstance(widths, list | tuple) or not 1 <= len(widths) <= 16:
        raise UsageError(f"{file}: block_out_channels must be a list of widths, got {str(widths)[:60]}")
    for key, value in (*sizes.items(), *(("block_out_channels", width) for width in widths)):
        if type(value) is not int or not 1 <= value <= MOST_SIDE:
            raise UsageError(
                f"{file}: {key} must be a whole number from 1 to {MOST_SIDE}, got {str(value)[:60]}"
            )
    filled = [key for key in ("scaling_factor", "latent_channels", "norm_num_groups") if key not in given]
    if not filled:
        return config, ()
    said = ", ".join(f"{key} {config[key]}" for key in filled)
    return config, (f"{file} does not say {said}: the default of diffusers' {CLASS} was taken",)


def diffusers_class() -> Any:
    """AutoencoderKL itself. Raises UsageError with what to install where diffusers is missing."""
    try:
        from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL  # 4 s
    except ImportError:
        raise UsageError(_INSTALL) from None
    return AutoencoderKL


def _network(folder: Path, config: Mapping[str, Any]) -> Any:
    """The module with every weight from the file, in float32. It is built without memory first and compared
    with the file's header, so that nothing is believed of the config that the weights do not show."""
    AutoencoderKL = diffusers_class()
    file = folder / WEIGHTS
    with reading(file, f"an {CLASS}", "fetch it again", UsageError), safe_open(file, "pt") as opened:
        names = {_current(key): key for key in opened.keys()}  # noqa: SIM118  # no mapping
        layers = config["layers_per_block"] * len(config["block_out_channels"])
        if layers > len(names):
            raise UsageError(f"{folder / CONFIG} claims {layers} layers, {WEIGHTS} has {len(names)} tensors")
        net = _described_by(AutoencoderKL, config, folder / CONFIG)
        wanted = net.state_dict()
        if wrong := sorted(names.keys() ^ wanted.keys()):
            what = "is missing" if wrong[0] in wanted else "is not known"
            raise UsageError(f"{file} does not fit its {CONFIG}: {wrong[0][:100]} {what}")
        for key, value in wanted.items():
            found = tuple(opened.get_slice(names[key]).get_shape())
            if _without_ones(found) != _without_ones(value.shape):
                raise UsageError(
                    f"{file} does not fit its {CONFIG}: {names[key]} has shape {found}, the config says "
                    f"{tuple(value.shape)}"
                )
        state = {key: _weight(opened, names[key], value.shape, file) for key, value in wanted.items()}
    net.load_state_dict(state, assign=True)
    return net


def _weight(opened: Any, name: str, shape: tuple[int, ...], file: Path) -> Tensor:
    """A tensor of the opened file, in float32: a linear layer of attention is a 1x1 convolution in old
    ones."""
    tensor = opened.get_tensor(name)
    if not tensor.is_floating_point():
        raise UsageError(f"{file} has {name} as {tensor.dtype}, which weights are not")
    tensor = tensor.float().reshape(shape)
    if not bool(tensor.isfinite().all()):
        count = int((~tensor.isfinite()).sum())
        raise UsageError(
            f"{file} has values that are not finite: {count} of the {tensor.numel()} of {name}; fetch it "
            "again, or take another autoencoder"
        )
    return tensor


def _described_by(AutoencoderKL: Any, config: Mapping[str, Any], file: Path) -> Any:
    """The module that a config describes, on the meta device: without values, whatever its size."""
    from diffusers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity_error()  # of keys that this version of diffusers does not know; they change nothing
    try:
        with reading(file, f"the config of an {CLASS}", error=UsageError), torch.device("meta"):
            return AutoencoderKL.from_config(dict(config))
    finally:
        logging.set_verbosity(before)


def _current(key: str) -> str:
    """The name that today's diffusers has for a weight."""
    words = key.split(".")
    if "attentions" in words and len(words) > 1 and words[-2] in ATTENTION:
        words[-2] = ATTENTION[words[-2]]
    return ".".join(words)


def _without_ones(shape: tuple[int, ...]) -> tuple[int, ...]:
    """(D, D, 1, 1) -> (D, D): a shape as far as a 1x1 convolution and a linear layer have the same."""
    return (*shape[:2], *(side for side in shape[2:] if side != 1))


def encoder_sha256(state: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, shapes and float32 values of what makes the moments."""
    digest = hashlib.sha256()
    for name in sorted(state):
        if name.startswith(ENCODER_PARTS):
            value = state[name].detach().float().cpu().contiguous()
            digest.update(f"{name} {tuple(value.shape)}\n".encode())
            digest.update(value.numpy().tobytes())
    return digest.hexdigest()
