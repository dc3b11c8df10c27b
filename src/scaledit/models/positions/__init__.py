"""How tokens are told where they are: one file an encoding."""

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
        """Raises UsageError where the encoding cannot be of such a model."""

    def layers(self, config: DiTConfig) -> Layers:
        """{name: layer} of its own weights, submodules of the network; none for a frozen table."""
        return {}

    def table(self, config: DiTConfig) -> Tensor:
        """What is added, (T, D) float32 on the CPU: a function of the config, in no checkpoint."""
        raise NotImplementedError
