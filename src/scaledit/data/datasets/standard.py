"""The data sets of scaledit: digits, photos and emoji come with packages, images and latents are files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from scaledit.data.datasets import DataSet, NothingHeldOut
from scaledit.errors import UsageError
from scaledit.lazy import np
from scaledit.part import field

if TYPE_CHECKING:
    from scaledit.data.emoji import EmojiImages
    from scaledit.data.files import ImageFiles
    from scaledit.data.latents import Latents
    from scaledit.data.sets import Images
    from scaledit.data.sources import Source


@dataclass(frozen=True)
class Digits(DataSet, name="digits"):
    """1,797 handwritten digits of 8x8 pixels (UCI, Alpaydin & Kaynak 1998), every fifth held out."""

    in_memory = True
    channels = 1
    extractors = ("digits", "digits-random")

    flip: bool = field(False, doc="mirror half of the images, chosen at random")

    def open(self) -> Images:
        from scaledit.data.sets import digits

        return digits(flip=self.flip)

    def held_out(self) -> Images:
        from scaledit.data.sets import digits

        return digits(held_out=True)


@dataclass(frozen=True)
class ImagesInFiles(DataSet, name="images"):
    """Images in files: one folder per class, tar shards, Parquet or a .zip."""

    path: str = field("", doc="a folder with one folder per class, tar shards, Parquet or a .zip")
    image_size: int = field(0, ge=0, doc="side in pixels after scaling and cropping")
    flip: bool = field(False, doc="mirror half of the images, chosen at random")
    background: str = field("", doc='color behind transparent images: "white", "black", "#rrggbb" or "drop"')
    split: str = field("", doc='the split to read; empty means train, "all" all of them')
    image_key: str = field("", doc="the file of a WebDataset sample that is the image, for example jpg")
    holdout: float = field(0.0, ge=0, lt=1, doc="share of each class that training does not see")

    def open(self) -> ImageFiles:
        source = self._source()
        if self.holdout:
            from scaledit.data.holdout import split

            source = split(source, self.holdout).training
        return self._files(source, self.flip)

    def held_out(self) -> ImageFiles:
        from scaledit.data.holdout import split

        source = self._source()
        held_out = split(source, self.holdout).held_out
        if not len(held_out):
            raise NothingHeldOut(f"{self.path} has no held-out images: {self._why_nothing(source)}")
        return self._files(held_out, flip=False)

    def _why_nothing(self, source: Source) -> str:
        """Why no image is held out, and what to set instead."""
        if not self.holdout:
            return "data.holdout is 0; set a share, such as data.holdout=0.1"
        largest = int(max(np.bincount(source.labels)))
        if largest == 1:
            return "each class has one image"
        return (
            f"its classes are too small (at most {largest} images); set a larger share, such as "
            f"data.holdout={1 / largest:.2g}"
        )

    def _files(self, source: Source, flip: bool) -> ImageFiles:
        from scaledit.data.files import ImageFiles

        return ImageFiles(source, self.image_size, flip, behind=self.background)

    def _source(self) -> Source:
        if not self.path:
            raise UsageError("this recipe trains on your images; set their folder with data.path=PATH")
        if not self.image_size:
            raise UsageError("this recipe trains on your images; set their size, such as data.image_size=256")
        from scaledit.data.sources import open_source

        return open_source(self.path, self.split, self.image_key)


@dataclass(frozen=True)
class EncodedInFiles(DataSet, name="latents"):
    """A folder of encoded images, made by `scaledit encode`."""

    encoded = True

    path: str = field("", doc="path of the folder")
    flip: bool = field(
        False, doc="mirror half of the images, chosen at random; they must be encoded both ways"
    )
    verify: bool = field(True, doc="check the SHA-256 of every file before training")

    def open(self) -> Latents:
        if not self.path:
            raise UsageError(
                "this recipe trains on encoded images; set data.path=FOLDER to a folder that scaledit encode "
                "wrote"
            )
        from scaledit.data.latent_buckets import BUCKETS, BucketLatents
        from scaledit.data.latents import Latents

        if (Path(self.path) / BUCKETS).is_file():
            return BucketLatents.opened(Path(self.path), flip=self.flip)
        return Latents.open(self.path, flip=self.flip)


@dataclass(frozen=True)
class Photos(DataSet, name="photos"):
    """64x64 crops of twelve photographs, one class per photograph: 12 x 512, and 12 x 64 held out."""

    in_memory = True
    extractors = ("photos", "photos-random")

    flip: bool = field(False, doc="mirror half of the images, chosen at random")

    def open(self) -> Images:
        from scaledit.data.photos import photos

        return photos(flip=self.flip)

    def held_out(self) -> Images:
        from scaledit.data.photos import photos

        return photos(held_out=True)

    def floor(self) -> Images:
        """Other crops of the training regions: the held-out regions show other parts of the photographs."""
        from scaledit.data.photos import fresh_photos

        return fresh_photos()


@dataclass(frozen=True)
class Emoji(DataSet, name="emoji"):
    """3,953 emoji by OpenMoji (CC BY-SA 4.0), drawn at any size, a tenth of the subjects held out."""

    in_memory = True
    extractors = ("emoji", "emoji-random")
    attribution = (
        "OpenMoji, the open-source emoji and icon project (https://openmoji.org), license CC BY-SA 4.0 "
        "(https://creativecommons.org/licenses/by-sa/4.0/)"
    )

    image_size: int = field(0, ge=0, le=1024, doc="side in pixels of the drawings; 0: 32")
    classes: Literal["category", "subcategory"] = field(
        "category", doc="what the classes are: ten categories, or their 101 subcategories"
    )
    flip: bool = field(False, doc="mirror half of the images, chosen at random")

    def open(self) -> EmojiImages:
        return self._split(held_out=False, flip=self.flip)

    def held_out(self) -> EmojiImages:
        return self._split(held_out=True)

    def classes_of(self) -> tuple[str, ...]:
        from scaledit.data.emoji.classes import CLASS_NAMES

        return CLASS_NAMES[self.classes]

    def judged_by(self) -> tuple[str, ...]:
        return self.extractors if self.classes == "category" else ("emoji-subcategories", "emoji-random")

    def reference_for(self, class_names: Sequence[str]) -> DataSet:
        by_subcategory = replace(self, classes="subcategory")
        return by_subcategory if tuple(class_names) == by_subcategory.classes_of() else self

    def _split(self, *, held_out: bool, flip: bool = False) -> EmojiImages:
        from scaledit.data.emoji import SIDE, emoji

        side = self.image_size or SIDE
        return emoji((side, side), self.classes, held_out=held_out, flip=flip)
