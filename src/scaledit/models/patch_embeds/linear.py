"""The paper's patch embedding (section 3.2, "Patchify"; Dosovitskiy et al. 2021): one linear layer.

token = x W + b,   x (p p C),  W (p p C, D)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from scaledit.models import description
from scaledit.models.patch_embeds import PatchEmbed

if TYPE_CHECKING:
    from scaledit.models.config import DiTConfig


@dataclass(frozen=True)
class Linear(PatchEmbed, name="linear"):
    """One linear layer, as in the paper."""

    def layer(self, config: DiTConfig) -> description.Linear:
        return description.Linear(config.patch_numbers, config.hidden_size, config.tokens)
