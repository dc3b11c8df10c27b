"""DINOv2 features, from weights that the user has: a local folder in transformers' format.

    image --bicubic to 224x224, antialiased--> (x - mean) / sd of ImageNet --> ViT --> normalised class token

Stein et al. 2023 (arXiv:2306.04675) take dinov2-large (1024 features). Nothing is fetched; transformers is an
extra: pip install "scaledit[dinov2]".
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from scaledit.errors import UsageError
from scaledit.parts import sha256_of

SIDE = 224
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


def load(folder: str, device: torch.device | str = "cpu") -> DinoExtractor:
    """Raises UsageError where transformers or the folder is missing, or holds another model."""
    path = Path(folder).expanduser()
    weights = path / "model.safetensors"
    if not (path / "config.json").is_file() or not weights.is_file():
        raise UsageError(
            f"{path} holds no DINOv2: needed are config.json and model.safetensors, as in "
            "facebook/dinov2-large on the Hugging Face hub"
        )
    try:
        kind = json.loads((path / "config.json").read_bytes()).get("model_type")
    except (ValueError, AttributeError):
        raise UsageError(f"{path / 'config.json'} cannot be read") from None
    if kind != "dinov2":
        raise UsageError(f"{path} holds a {kind} model, not dinov2")
    try:
        from transformers import Dinov2Model  # takes seconds
    except ImportError:
        raise UsageError('DINOv2 needs transformers: pip install "scaledit[dinov2]"') from None
    from safetensors import SafetensorError

    try:
        network = Dinov2Model.from_pretrained(path, local_files_only=True, use_safetensors=True)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise UsageError(f"{path} cannot be loaded: {str(error).splitlines()[0]}") from None
    return DinoExtractor(network, sha256_of(weights), device)
