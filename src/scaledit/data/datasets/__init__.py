"""Data sets that a run is trained on, by name. `[data]` of a recipe holds the name and the fields of one.

    [data]                  [data]                   [data]
    name = "digits"         name = "images"          name = "my_sets:Shapes"
    flip = false            path = "photos/"         n = 128

    @dataclass(frozen=True)
    class Shapes(DataSet, name="shapes"):
        in_memory = True
        n: int = field(64, ge=2)

        def open(self) -> Images: ...             (scaledit.data.sets: Batch, Images, TrainingSet)

The code that reads each set is in the modules of scaledit.data. Imports no torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from scaledit.errors import UsageError
from scaledit.part import Part

if TYPE_CHECKING:
    from scaledit.data.sets import TrainingSet

__all__ = ["DataSet", "NothingHeldOut"]


class NothingHeldOut(UsageError):
    """A set has no images that training does not see."""


class DataSet(Part, kind="data set", home="scaledit.data.datasets", needs=("open",)):
    """in_memory: the open set is in memory, so reading ahead gains nothing. encoded: it holds latents of an
    autoencoder, not images. channels: of an image. extractors: names of the extractors that compare samples
    with this set (`evaluate.reference` may then name it), the main one first."""

    in_memory: ClassVar[bool] = False
    encoded: ClassVar[bool] = False
    channels: ClassVar[int] = 3
    extractors: ClassVar[tuple[str, ...]] = ()

    def open(self) -> TrainingSet:
        """The training split. Raises UsageError if it is missing or invalid."""
        raise NotImplementedError

    def held_out(self) -> TrainingSet:
        """Images that training does not see. Raises NothingHeldOut if the set has none."""
        raise NothingHeldOut(f'data.name="{self.part_name()}" has no held-out images')

    def floor(self) -> TrainingSet:
        """Images whose distance to the training split is that of a perfect model."""
        return self.held_out()
