"""Norms of the blocks and of the final layer. One file per norm."""

from __future__ import annotations

from scaledit.models.description import Layer
from scaledit.part import Part


class Norm(Part, kind="norm", home="scaledit.models.norms", needs=("layer",)):
    """A norm of tokens over their channels."""

    def layer(self, width: int, rows: int, affine: bool = True) -> Layer:
        """The norm of `rows` tokens of one image, (N, T, width) -> (N, T, width). affine: whether it has
        learned weights."""
        raise NotImplementedError
