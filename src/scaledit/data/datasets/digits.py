"""scikit-learn's handwritten digits, which come with an installed package."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from scaledit.data.datasets import DataSet
from scaledit.part import field

if TYPE_CHECKING:
    from scaledit.data.sets import Images


@dataclass(frozen=True)
class Digits(DataSet, name="digits"):
    """1,797 handwritten digits of 8x8 pixels (UCI, Alpaydin & Kaynak 1998), every fifth held out."""

    in_memory = True
    channels = 1
    extractors = ("digits", "digits-random")

    flip: bool = field(False, doc="mirror half of the images")

    def open(self) -> Images:
        from scaledit.data.sets import digits

        return digits(flip=self.flip)

    def held_out(self) -> Images:
        from scaledit.data.sets import digits

        return digits(held_out=True)
