"""Teachers: frozen networks whose tokens a model's hidden states are aligned with
(`scaledit.diffusion.terms.alignment`).

    images (N, 3, H, W) in [0, 1] -> (N, D, h, w)

The parts are in scaledit.evaluation.teachers, beside the extractors of the same networks.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from scaledit.lazy import Tensor, torch
from scaledit.part import Part, field

Map = Callable[["Tensor"], "Tensor"]
"""Images, resized by `Teacher.resized` -> a feature map, (N, D, h, w)."""


@dataclass(frozen=True)
class Teacher(Part, kind="teacher", home="scaledit.evaluation.teachers", needs=("load", "width", "macs")):
    """SIDE: of the images that the network was trained on, in pixels. MULTIPLE: divides both sides of its
    inputs."""

    SIDE: ClassVar[int] = 224
    MULTIPLE: ClassVar[int] = 1

    side: int = field(
        0, ge=0, doc="shorter side to which images are resized, in pixels; 0: the network's own"
    )

    def width(self) -> int:
        """D, the channels of the feature map. Raises UsageError if that is not known without the weights, and
        they are missing."""
        raise NotImplementedError

    def load(self, device: torch.device) -> Map:
        """The network, its weights verified, in evaluation mode and without gradients. Raises UsageError if
        the weights are missing, RunError if they are not the known ones."""
        raise NotImplementedError

    def macs(self, height: int, width: int) -> int:
        """Multiply-adds of the network for one image that was resized to height x width."""
        raise NotImplementedError

    def ready(self) -> None:
        """Raises UsageError if the weights are missing, without reading them."""

    def size(self, height: int, width: int) -> tuple[int, int]:
        """The size to which images of height x width are resized: the shorter side becomes `side`, the longer
        one follows, and both are rounded to a multiple of MULTIPLE."""
        scale = (self.side or self.SIDE) / min(height, width)
        rounded = (max(1, round(one * scale / self.MULTIPLE)) * self.MULTIPLE for one in (height, width))
        return next(rounded), next(rounded)

    def resized(self, images: Tensor) -> Tensor:
        """Images (N, 1 or 3, H, W) in [-1, 1] as the network gets them: three channels in [0, 1], resized
        bicubically with antialiasing."""
        size = self.size(images.shape[2], images.shape[3])
        x = (images.float() + 1) / 2
        if x.shape[2:] != size:
            x = torch.nn.functional.interpolate(x, size=size, mode="bicubic", antialias=True).clamp(0, 1)
        return x.expand(-1, 3, -1, -1)
