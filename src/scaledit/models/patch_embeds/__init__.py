"""Patch embeddings: from the numbers of a patch to a token. One file per embedding."""

from __future__ import annotations

from typing import TYPE_CHECKING

from scaledit.models.description import Layer
from scaledit.part import Part

if TYPE_CHECKING:
    from scaledit.models.config import DiTConfig


class PatchEmbed(Part, kind="patch embedding", home="scaledit.models.patch_embeds", needs=("layer",)):
    """Makes a token of each patch."""

    def layer(self, config: DiTConfig) -> Layer:
        """The layer, (N, T, C p p) -> (N, T, D), for `config.tokens` patches of `config.patch_numbers`
        numbers."""
        raise NotImplementedError

    def fits(self, config: DiTConfig) -> None:
        """Raises UsageError if the embedding does not fit the model."""
