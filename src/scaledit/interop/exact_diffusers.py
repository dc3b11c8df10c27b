"""diffusers' DiT with the official program's function, for weights that were exported from scaledit.

    w_k = 10000^(-k/128), k = 0..127      (DiTTransformer2DModel: 10000^(-k/127))
    LayerNorm eps 1e-6 everywhere         (DiTTransformer2DModel: 1e-5 before the MLP)

A subclass with the same weights under the same names, which needs only diffusers: scaledit copies this file
into the folders that it exports, where diffusers finds it (trust_remote_code=True).
"""

import functools
import math
from typing import Any

import torch
from diffusers import DiTTransformer2DModel  # pyright: ignore[reportPrivateImportUsage]

LAYER_NORM_EPS = 1e-6
FREQUENCIES = 128


def frequencies() -> torch.Tensor:
    """(128,) float32 on the CPU: the exponent rounded to float32, its exp taken in float64 and rounded once,
    so that every processor gets the same; entry 12 is the next float32 above, as in the official outputs."""
    exponent = -math.log(10000.0) * torch.arange(FREQUENCIES, dtype=torch.float32, device="cpu") / FREQUENCIES
    values = exponent.double().exp().float()
    values[12] = torch.nextafter(values[12], torch.tensor(1.0, device="cpu"))
    return values


class ExactTimesteps(torch.nn.Module):
    """t (N,) -> (N, 256) float32: cosines first, then sines."""

    def forward(self, timesteps: torch.Tensor) -> torch.Tensor:
        angles = timesteps[:, None].float() * frequencies().to(timesteps.device)
        return torch.cat([angles.cos(), angles.sin()], dim=-1)


class ExactDiTTransformer2DModel(DiTTransformer2DModel):
    """DiTTransformer2DModel with the official function. Every label from the number of classes on is the null
    label, so that DiTPipeline, whose null label is always 1000, can guide models of fewer classes."""

    @functools.wraps(DiTTransformer2DModel.__init__)  # diffusers reads the names of the config from it
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        blocks: Any = self.transformer_blocks
        for block in blocks:
            block.norm1.emb.time_proj = ExactTimesteps()
            block.norm3.eps = LAYER_NORM_EPS

    def forward(self, hidden_states, timestep=None, class_labels=None, *args, **kwargs):
        if class_labels is not None:
            config: Any = self.config
            class_labels = class_labels.clamp(max=config.num_embeds_ada_norm)
        return super().forward(hidden_states, timestep, class_labels, *args, **kwargs)
