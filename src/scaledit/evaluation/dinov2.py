"""DINOv2 features, with weights from a local folder in transformers' format.

    image --bicubic to 224x224, antialiased--> (x - mean) / sd of ImageNet --> ViT --> normalized class token

Stein et al. 2023 (arXiv:2306.04675) use dinov2-large (1024 features). Nothing is downloaded. Needs the extra
"scaledit[dinov2]".
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from scaledit.errors import UsageError, reading, shown
from scaledit.files.manifest import sha256_of
from scaledit.files.reading import read_json
from scaledit.files.tensors import header

SIDE = 224
HIDDEN_SIZE = 768
"""Of transformers' Dinov2Config, where a config leaves it out."""
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class DinoExtractor:
    """images (N, 3, H, W) uint8 -> {"pool": (N, D)}, float32 on the CPU."""

    name = "dinov2"
    resize = f"bicubic with antialiasing to {SIDE}x{SIDE} (Pillow)"

    def __init__(self, network: Any, sha256: str, device: torch.device | str = "cpu"):
        self.network, self.sha256, self.device = network.to(device).eval(), sha256, device

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> dict[str, Tensor]:
        resized = [
            np.asarray(Image.fromarray(image).resize((SIDE, SIDE), Image.Resampling.BICUBIC))
            for image in images.permute(0, 2, 3, 1).numpy()
        ]
        x = torch.from_numpy(np.stack(resized)).permute(0, 3, 1, 2).float() / 255
        x = (x - torch.tensor(MEAN)[:, None, None]) / torch.tensor(DEVIATION)[:, None, None]
        return {"pool": self.network(pixel_values=x.to(self.device)).pooler_output.float().cpu()}


class Described(NamedTuple):
    """A folder with a DINOv2: its weights file, its config, and the width of its tokens."""

    weights: Path
    config: dict[str, Any]
    hidden_size: int


def described(folder: str) -> Described:
    """What `folder` holds, without reading the weights. Raises UsageError if it holds no DINOv2."""
    path = Path(folder).expanduser()
    weights = path / "model.safetensors"
    if not (path / "config.json").is_file() or not weights.is_file():
        raise UsageError(
            f"{path} contains no DINOv2 model; it must have config.json and model.safetensors, as in "
            "facebook/dinov2-large on the Hugging Face hub"
        )
    config = read_json(path / "config.json", "the config of a DINOv2", error=UsageError)
    model_type = config.get("model_type")
    if model_type != "dinov2":
        name = model_type[:40] if isinstance(model_type, str) else shown(model_type)
        raise UsageError(f"{path} contains a model of the type {name}, but only dinov2 is supported")
    hidden_size = config.get("hidden_size", HIDDEN_SIZE)
    if not isinstance(hidden_size, int) or isinstance(hidden_size, bool) or hidden_size < 1:
        raise UsageError(f"{path} has a DINOv2 with the hidden_size {shown(hidden_size)}")
    return Described(weights, config, hidden_size)


def on_meta(folder: str) -> Any:
    """The network of the folder's config without weights, to count what it computes. Raises as `load`
    does."""
    config = described(folder).config
    model, settings = _transformers()
    with reading(Path(folder).expanduser(), "a DINOv2", error=UsageError), torch.device("meta"):
        return model(settings(**config)).eval()


def _transformers() -> tuple[Any, Any]:
    """The classes of the model and of its config. Raises UsageError if transformers is missing."""
    try:
        from transformers import Dinov2Config, Dinov2Model  # takes seconds
    except ImportError:
        raise UsageError('DINOv2 needs transformers: pip install "scaledit[dinov2]"') from None
    return Dinov2Model, Dinov2Config


def load(folder: str, device: torch.device | str = "cpu") -> DinoExtractor:
    """The extractor with the weights in `folder`. Raises UsageError if transformers or the folder is missing,
    or the folder holds another model."""
    weights, config, _ = described(folder)
    path = weights.parent
    model, _ = _transformers()
    with reading(path, "a DINOv2", error=UsageError):
        _check_size(config, weights)
        loaded: Any = model.from_pretrained(
            path, local_files_only=True, use_safetensors=True, output_loading_info=True
        )
        network, info = loaded
        if missing := sorted(info["missing_keys"]):  # transformers would fill them with random numbers
            raise ValueError(f"{weights.name} lacks {missing[0]}")
    return DinoExtractor(network, sha256_of(weights), device)


def _check_size(config: dict[str, Any], weights: Path) -> None:
    """Raises ValueError unless the config has the size of the weights, before a network of it is built."""
    stored = header(weights)
    layers = {name.split(".")[2] for name in stored if name.startswith("encoder.layer.")}
    width = next((at.shape[-1] for name, at in stored.items() if name.endswith("embeddings.cls_token")), None)
    for key, size in (("num_hidden_layers", len(layers)), ("hidden_size", width)):
        if key in config and config[key] != size:
            raise ValueError(f"its config says {key} {shown(config[key])}, but its weights have {size}")
