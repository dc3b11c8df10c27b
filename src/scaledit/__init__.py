"""scaledit: Diffusion Transformers end to end. Names are imported when first used, so that
`import scaledit` and the command line's help stay fast."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from scaledit.models.config import DiTConfig
    from scaledit.models.dit import DiT
    from scaledit.pipeline import Pipeline, load

__version__ = "0.1.0"
__all__ = ["DiT", "DiTConfig", "Pipeline", "__version__", "load"]

_HOME = {
    "DiT": "scaledit.models.dit",
    "DiTConfig": "scaledit.models.config",
    "Pipeline": "scaledit.pipeline",
    "load": "scaledit.pipeline",
}


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module 'scaledit' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)
