"""Crops of twelve photographs, which come with scikit-image (scaledit.data.photos)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from scaledit.data.datasets import DataSet
from scaledit.part import field

if TYPE_CHECKING:
    from scaledit.data.sets import Images


@dataclass(frozen=True)
class Photos(DataSet, name="photos"):
    """Crops of 64x64 pixels of twelve photographs, one a class: 12 x 512, and 12 x 64 held out."""

    in_memory = True
    extractors = ("photos", "photos-random")

    flip: bool = field(False, doc="mirror half of the images")

    def open(self) -> Images:
        from scaledit.data.photos import photos

        return photos(flip=self.flip)

    def held_out(self) -> Images:
        from scaledit.data.photos import photos

        return photos(held_out=True)

    def floor(self) -> Images:
        """Other crops of the parts that are trained on: another part of a photograph is another thing."""
        from scaledit.data.photos import fresh_photos

        return fresh_photos()
