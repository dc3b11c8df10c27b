"""Position encodings. One file per encoding."""

from __future__ import annotations

from typing import TYPE_CHECKING

from scaledit.models.description import Layers
from scaledit.part import Part

if TYPE_CHECKING:
    from torch import Tensor

    from scaledit.models.config import DiTConfig


class Position(Part, kind="position encoding", home="scaledit.models.positions", needs=("table",)):
    """A position encoding that is added to the tokens of the patches."""

    def fits(self, config: DiTConfig) -> None:
        """Raises UsageError if the encoding does not fit the model."""

    def layers(self, config: DiTConfig) -> Layers:
        """{name: layer} of learned weights, which become submodules of the network; empty if frozen."""
        return {}

    def table(self, config: DiTConfig) -> Tensor:
        """The encoding, (T, D) float32 on the CPU: a function of the config, not saved in checkpoints."""
        raise NotImplementedError
