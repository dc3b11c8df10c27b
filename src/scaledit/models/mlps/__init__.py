"""MLPs of the blocks. One file per MLP."""

from __future__ import annotations

from scaledit.models.description import Layer
from scaledit.part import Part


class MLP(Part, kind="MLP", home="scaledit.models.mlps", needs=("layer",)):
    """What a block does to each token by itself."""

    def layer(self, width: int, hidden: int, rows: int) -> Layer:
        """The MLP of `rows` tokens of one image, (N, T, width) -> (N, T, width). hidden: width of the hidden
        layer of the paper's MLP; another MLP chooses its own so that it has about as many parameters."""
        raise NotImplementedError
