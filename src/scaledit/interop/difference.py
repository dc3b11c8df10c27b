"""Measures how much diffusers' own DiT, loaded from a plain folder, differs from scaledit's.

Both networks get the same standard normal inputs, one for each of MEASURED_AT.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import torch

from scaledit.interop.diffusers_folder import TRANSFORMER
from scaledit.interop.model import Model


class Difference(NamedTuple):
    """output: the largest difference of outputs over the largest output. embedding: the smallest cosine
    similarity of the two timestep embeddings. times: the timesteps. version: that of diffusers."""

    output: float
    embedding: float
    times: tuple[int, ...]
    version: str


MEASURED_AT = (0, 10, 100, 500, 999)


def measured(model: Model, folder: Path) -> Difference | None:
    """The difference of the plain `folder` that `model` was written to; None without diffusers. The two
    networks are in memory one after the other."""
    try:
        import diffusers
        from diffusers import DiTTransformer2DModel  # pyright: ignore[reportPrivateImportUsage]
        from diffusers.utils import logging
    except ImportError:
        return None
    config = model.config.model
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(len(MEASURED_AT), *config.shape, generator=generator)
    t, y = torch.tensor(MEASURED_AT), torch.arange(len(MEASURED_AT)) % config.num_classes
    with torch.no_grad():
        native = model.network().eval()
        expected, native_embedding = native(x, t, y), native.time_embed(t)
        del native
        verbosity = logging.get_verbosity()
        logging.set_verbosity_error()
        logging.disable_progress_bar()
        try:
            net: Any = DiTTransformer2DModel.from_pretrained(
                folder / TRANSFORMER, local_files_only=True, low_cpu_mem_usage=False
            )
        finally:
            logging.set_verbosity(verbosity)
            logging.enable_progress_bar()
        output = net(x, timestep=t, class_labels=y).sample
        emb = net.transformer_blocks[0].norm1.emb
        embedding = emb.timestep_embedder(emb.time_proj(t))
    return Difference(
        output=float((output - expected).abs().max() / expected.abs().max().clamp(min=1e-30)),
        embedding=float(torch.cosine_similarity(native_embedding, embedding, dim=1).min()),
        times=MEASURED_AT,
        version=diffusers.__version__,
    )
