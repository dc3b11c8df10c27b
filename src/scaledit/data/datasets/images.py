"""Labelled images in files (scaledit.data.sources, scaledit.data.files)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from scaledit.data.datasets import DataSet
from scaledit.errors import UsageError
from scaledit.part import field

if TYPE_CHECKING:
    from scaledit.data.files import ImageFiles


@dataclass(frozen=True)
class ImagesInFiles(DataSet, name="images"):
    """Images in files: one folder per class, tar shards, Parquet or a .zip."""

    path: str = field("", doc="where they lie")
    image_size: int = field(0, ge=0, doc="pixels a side that they are scaled and cropped to")
    flip: bool = field(False, doc="mirror half of the images")
    background: str = field("", doc='seen where an image is transparent: "white", "black", "#rrggbb", "drop"')
    split: str = field("", doc='of several; empty: train, "all": all as one')
    image_key: str = field("", doc="which file of a WebDataset sample is the image, as in jpg")

    def open(self) -> ImageFiles:
        if not self.path:
            raise UsageError("this recipe trains on images; say where they are with data.path=PATH")
        if not self.image_size:
            raise UsageError("this recipe trains on images; say how large they are with data.image_size=256")
        from scaledit.data.files import ImageFiles
        from scaledit.data.sources import open_source

        source = open_source(self.path, self.split, self.image_key)
        return ImageFiles(source, self.image_size, self.flip, behind=self.background)
