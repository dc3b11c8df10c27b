"""How far diffusers' own DiT is off: a plain folder loaded in the installed diffusers, beside ours.

The same standard normal inputs through both, one for each of MEASURED_AT.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from scaledit.interop.diffusers_folder import TRANSFORMER
from scaledit.interop.model import Model


class Difference(NamedTuple):
    """Of a plain folder in diffusers from ours, over a few times: the largest difference of outputs over the
    largest output, and the smallest cosine between the two timestep embeddings."""

    output: float
    embedding: float
    times: tuple[int, ...]
    version: str


MEASURED_AT = (0, 10, 100, 500, 999)


def measured(model: Model, folder: Path) -> Difference | None:
    """Of the plain `folder` that `model` was written to; None without diffusers. Both networks are in memory,
    one after the other."""
    try:
        import diffusers
        from diffusers import DiTTransformer2DModel  # pyright: ignore[reportPrivateImportUsage]
        from diffusers.utils import logging
    except ImportError:
        return None
    import torch

    from scaledit.models.dit import DiT

    config = model.config.model
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(len(MEASURED_AT), *config.shape, generator=generator)
    t, y = torch.tensor(MEASURED_AT), torch.arange(len(MEASURED_AT)) % config.num_classes
    with torch.no_grad():
        ours = DiT(config)
        ours.load_state_dict({key: lazy.read() for key, lazy in model.weights.items()})
        expected, embedded = ours.eval()(x, t, y), ours.time_embed(t)
        del ours
        before = logging.get_verbosity()
        logging.set_verbosity_error()
        logging.disable_progress_bar()
        try:
            net: Any = DiTTransformer2DModel.from_pretrained(
                folder / TRANSFORMER, local_files_only=True, low_cpu_mem_usage=False
            )
        finally:
            logging.set_verbosity(before)
            logging.enable_progress_bar()
        found = net(x, timestep=t, class_labels=y).sample
        emb = net.transformer_blocks[0].norm1.emb
        theirs = emb.timestep_embedder(emb.time_proj(t))
    return Difference(
        output=float((found - expected).abs().max() / expected.abs().max().clamp(min=1e-30)),
        embedding=float(torch.cosine_similarity(embedded, theirs, dim=1).min()),
        times=MEASURED_AT,
        version=diffusers.__version__,
    )
