"""What `scaledit encode` made of images (scaledit.data.latents)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from scaledit.data.datasets import DataSet
from scaledit.errors import UsageError
from scaledit.part import field

if TYPE_CHECKING:
    from scaledit.data.latents import Latents


@dataclass(frozen=True)
class EncodedInFiles(DataSet, name="latents"):
    """A folder of encoded images, which `scaledit encode` makes."""

    encoded = True

    path: str = field("", doc="the folder")
    flip: bool = field(False, doc="mirror half of the images; they must be encoded both ways")
    verify: bool = field(True, doc="check every byte before training")

    def open(self) -> Latents:
        if not self.path:
            raise UsageError(
                "this recipe trains on encoded images; say where they are with data.path=FOLDER "
                "(scaledit encode makes such a folder)"
            )
        from scaledit.data.latents import Latents

        return Latents.open(self.path, flip=self.flip)
