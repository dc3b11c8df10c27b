"""KL autoencoders through diffusers' AutoencoderKL, frozen (Rombach et al. 2022, section 3.1).

    encode   x --encoder, quant_conv--> (mean, log variance)
    decode   z / scale --post_quant_conv, decoder--> x,         scale = config.json's scaling_factor

The format is diffusers' folder with config.json and diffusion_pytorch_model.safetensors; nothing is
unpickled. Old folders, such as those of Stable Diffusion, lack keys of the config and name the weights of
attention differently; they are read as diffusers reads them (DEFAULTS, ATTENTION). Autoencoders with equal
`encoder_sha256` can swap decoders, as in the paper's table 5.
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

from scaledit.autoencoders import Autoencoder, Precision
from scaledit.errors import RunError, UsageError, counted, near_path, reading
from scaledit.files.manifest import sha256_of
from scaledit.files.reading import read_json

CONFIG, WEIGHTS = "config.json", "diffusion_pytorch_model.safetensors"
CLASS = "AutoencoderKL"
SUBFOLDERS = ("autoencoder", "vae")
"""Where the run folder of `scaledit autoencoder train` and a pipeline of diffusers have the autoencoder."""
ENCODER_PARTS = ("encoder.", "quant_conv.")
RGB = 3
"""Channels of images; gray images have three equal channels."""
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
"""The defaults of diffusers' constructor for keys that config.json lacks. Old files lack newer keys; Stable
Diffusion's autoencoders lack scaling_factor."""
ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
"""{name in attention layers before diffusers 0.15: name since}."""
MOST_SIDE = 1 << 16
"""Maximum of widths, groups and layers, checked before anything is built."""
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


@dataclass(frozen=True)
class KLAutoencoder(Autoencoder):
    """A trained, frozen AutoencoderKL. The same images in the same batches give the same moments, bit for
    bit. Another batch size may change the last bits, since convolutions choose their algorithm by it.

    tiled: decode in overlapping tiles, which saves memory but is not exact. notes: assumptions made when the
    folder was read, one sentence each.
    """

    net: Any  # diffusers' AutoencoderKL, in eval mode
    precision: Precision = "fp32"
    tiled: bool = False
    notes: tuple[str, ...] = ()

    @classmethod
    def open(
        cls, where: str, *, device: str = "cpu", precision: Precision = "fp32", tiled: bool = False
    ) -> KLAutoencoder:
        """Opens a local folder, or a hub id such as stabilityai/sd-vae-ft-mse (respecting HF_HUB_OFFLINE).

        Raises UsageError if the autoencoder is missing, incomplete, of another class, has a shift or
        statistics per channel (as other model families do), has missing or unknown weights, or weights that
        are not finite.
        """
        folder = find(where)
        config, notes = _checked_config(folder)
        net = _network(folder, config)
        if precision not in DTYPES:
            raise UsageError(f"precision must be one of {', '.join(DTYPES)}, got {precision!r}")
        channels = (config["in_channels"], config["out_channels"])
        if channels != (RGB, RGB):
            raise UsageError(
                f"{where} encodes images of {counted(channels[0], 'channel')} and decodes to "
                f"{channels[1]}; only "
                f"autoencoders of RGB images ({RGB} channels) are supported"
            )
        opened = cls(
            net=net,
            name=where,
            scale=float(config["scaling_factor"]),
            channels=int(config["latent_channels"]),
            downsampling=2 ** (len(config["block_out_channels"]) - 1),
            sha256=sha256_of(folder / WEIGHTS),
            encoder_sha256=encoder_sha256(net.state_dict()),
            precision=precision,
            tiled=tiled,
            notes=notes,
        )
        for note in notes:
            warnings.warn(f"{where}: {note}", stacklevel=2)
        net.requires_grad_(False).eval()
        # Not diffusers' own method, which logs needless warnings.
        torch.nn.Module.to(net, device=device, dtype=DTYPES[precision])
        return opened

    @property
    def device(self) -> torch.device:
        return self.net.device

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) in [-1, 1] -> (N, 2C, H / f, W / f) float32 on the CPU: means, then log variances
        without clamping. Raises UsageError if H or W is not a multiple of f."""
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

    def _finite(self, x: Tensor, step: str) -> Tensor:
        if self.precision == "fp16" and not bool(x.isfinite().all()):
            raise RunError(f"{step} with {self.name} overflows fp16; use bf16 or fp32")
        return x


def find(where: str) -> Path:
    """The folder with config.json and the weights: `where`, a subfolder of it, or a download of that hub id.
    Raises UsageError if there is none."""
    path = Path(where).expanduser()
    if path.is_dir():
        return next((path / sub for sub in SUBFOLDERS if (path / sub / CONFIG).is_file()), path)
    if path.exists() or not _HUB_ID.fullmatch(where):
        raise UsageError(f"there is no autoencoder folder {where}{near_path(where)}")
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise UsageError(f"there is no folder {where}{near_path(where)}; {_INSTALL}") from None
    try:
        return Path(snapshot_download(where, allow_patterns=[CONFIG, WEIGHTS]))
    except Exception as error:  # the hub's client raises its own, httpx's and OSError
        reason = f"{type(error).__name__}: {str(error).strip().splitlines()[0]}"
        raise UsageError(
            f"{where} is not a local folder, and the Hugging Face hub did not provide it ({reason})"
        ) from None


_INSTALL = 'KL autoencoders need diffusers: pip install "scaledit[diffusers]"'


def _checked_config(folder: Path) -> tuple[Mapping[str, Any], tuple[str, ...]]:
    """(config.json with DEFAULTS for missing keys, notes on them). Raises UsageError if this is not an
    autoencoder whose latents need only a scale."""
    file = folder / CONFIG
    if not file.is_file():
        raise UsageError(f"{folder} contains no autoencoder, because it has no {CONFIG}")
    listed = read_json(file, "the config of a diffusers model", error=UsageError)
    kind = listed.get("_class_name")
    if kind is None:
        raise UsageError(f"{file} is not the config of a diffusers model: it has no _class_name")
    if kind != CLASS:
        raise UsageError(f"{folder} contains a {str(kind)[:60]}; only {CLASS} is supported")
    if not (folder / WEIGHTS).is_file():
        others = sorted(path.name for path in folder.iterdir() if path.suffix in (".bin", ".ckpt", ".pt"))
        hint = "; {} is a pickle, which is never opened: convert it to safetensors"
        raise UsageError(f"{folder} has no {WEIGHTS}{hint.format(others[0]) if others else ''}")
    config = {**DEFAULTS, **listed}
    for key in ("shift_factor", "latents_mean", "latents_std"):
        if config.get(key):
            raise UsageError(f"{folder} needs {key} {config[key]}; only a scaling_factor is supported")
    scale, widths = config["scaling_factor"], config["block_out_channels"]
    if isinstance(scale, bool) or not isinstance(scale, int | float) or not 0 < scale < float("inf"):
        raise UsageError(f"{file}: scaling_factor must be a number above 0, got {str(scale)[:60]}")
    keys = ("latent_channels", "layers_per_block", "norm_num_groups", "in_channels", "out_channels")
    if not isinstance(widths, list | tuple) or not 1 <= len(widths) <= 16:
        raise UsageError(f"{file}: block_out_channels must be a list of widths, got {str(widths)[:60]}")
    for key, value in (*((key, config[key]) for key in keys), *(("block_out_channels", w) for w in widths)):
        if type(value) is not int or not 1 <= value <= MOST_SIDE:
            raise UsageError(
                f"{file}: {key} must be a whole number from 1 to {MOST_SIDE}, got {str(value)[:60]}"
            )
    missing = [key for key in ("scaling_factor", "latent_channels", "norm_num_groups") if key not in listed]
    if not missing:
        return config, ()
    defaults = ", ".join(f"{key} {config[key]}" for key in missing)
    return config, (f"{file} does not say {defaults}: the default of diffusers' {CLASS} was taken",)


def diffusers_class() -> Any:
    """diffusers' AutoencoderKL. Raises UsageError if diffusers is not installed."""
    try:
        from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL  # 4 s
    except ImportError:
        raise UsageError(_INSTALL) from None
    return AutoencoderKL


def _network(folder: Path, config: Mapping[str, Any]) -> Any:
    """The module with every weight from the file, in float32. It is built on the meta device first and
    compared with the file's header, so that a wrong config cannot allocate memory."""
    AutoencoderKL = diffusers_class()
    file = folder / WEIGHTS
    with reading(file, f"an {CLASS}", "download it again", UsageError), safe_open(file, "pt") as opened:
        names = {_current(key): key for key in opened.keys()}  # noqa: SIM118  # no mapping
        layers = config["layers_per_block"] * len(config["block_out_channels"])
        if layers > len(names):
            raise UsageError(
                f"{folder / CONFIG} declares {layers} layers, but {WEIGHTS} has {len(names)} tensors"
            )
        net = _described_by(AutoencoderKL, config, folder / CONFIG)
        expected = net.state_dict()
        if wrong := sorted(names.keys() ^ expected.keys()):
            problem = "is missing" if wrong[0] in expected else "is not known"
            raise UsageError(f"{file} does not fit its {CONFIG}: {wrong[0][:100]} {problem}")
        for key, value in expected.items():
            shape = tuple(opened.get_slice(names[key]).get_shape())
            if _without_ones(shape) != _without_ones(value.shape):
                raise UsageError(
                    f"{file} does not fit its {CONFIG}: {names[key]} has the shape {shape} instead of "
                    f"{tuple(value.shape)}"
                )
        state = {key: _weight(opened, names[key], value.shape, file) for key, value in expected.items()}
    net.load_state_dict(state, assign=True)
    return net


def _weight(opened: Any, name: str, shape: tuple[int, ...], file: Path) -> Tensor:
    """A tensor of the file in float32. In old files a linear layer of attention is a 1x1 convolution."""
    tensor = opened.get_tensor(name)
    if not tensor.is_floating_point():
        raise UsageError(f"{file} stores {name} as {tensor.dtype}; weights must be floating-point numbers")
    tensor = tensor.float().reshape(shape)
    if not bool(tensor.isfinite().all()):
        count = int((~tensor.isfinite()).sum())
        raise UsageError(
            f"{file} has values that are not finite ({count} of the {tensor.numel()} in {name}); download it "
            "again, or choose another autoencoder"
        )
    return tensor


def _described_by(AutoencoderKL: Any, config: Mapping[str, Any], file: Path) -> Any:
    """The module that a config describes, on the meta device."""
    from diffusers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity_error()  # keys unknown to this version of diffusers are harmless
    try:
        with reading(file, f"the config of an {CLASS}", error=UsageError), torch.device("meta"):
            return AutoencoderKL.from_config(dict(config))
    finally:
        logging.set_verbosity(before)


def _current(key: str) -> str:
    """A weight's name in the current diffusers."""
    words = key.split(".")
    if "attentions" in words and len(words) > 1 and words[-2] in ATTENTION:
        words[-2] = ATTENTION[words[-2]]
    return ".".join(words)


def _without_ones(shape: tuple[int, ...]) -> tuple[int, ...]:
    """(D, D, 1, 1) -> (D, D), so that the shape of a 1x1 convolution equals that of a linear layer."""
    return (*shape[:2], *(side for side in shape[2:] if side != 1))


def encoder_sha256(state: Mapping[str, Tensor]) -> str:
    """SHA-256 of the names, shapes and float32 values of the weights that compute the moments."""
    digest = hashlib.sha256()
    for name in sorted(state):
        if name.startswith(ENCODER_PARTS):
            value = state[name].detach().float().cpu().contiguous()
            digest.update(f"{name} {tuple(value.shape)}\n".encode())
            digest.update(value.numpy().tobytes())
    return digest.hexdigest()
