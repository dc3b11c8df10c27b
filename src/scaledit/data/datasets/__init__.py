"""Data sets: what a run is trained on, by name. `[data]` of a recipe is one of these parts and its fields.

    [data]                  [data]                   [data]
    name = "digits"         name = "images"          name = "my_sets:Shapes"
    flip = false            path = "photos/"         n = 128

    @dataclass(frozen=True)
    class Shapes(DataSet, name="shapes"):
        in_memory = True
        n: int = field(64, ge=2)

        def open(self) -> Images: ...             (scaledit.data.sets: Batch, Images, TrainingSet)

How each is read is in the modules of scaledit.data. Imports no torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from scaledit.errors import UsageError
from scaledit.part import Part

if TYPE_CHECKING:
    from scaledit.data.sets import Images, TrainingSet

__all__ = ["DataSet"]


class DataSet(Part, kind="data set", home="scaledit.data.datasets", needs=("open",)):
    """in_memory: all of it lies in memory once it is open, so that nothing has to be read ahead. encoded: it
    holds an autoencoder's latents, not images. channels: of an image. extractors: names of the extractors
    that judge samples of it against it (`evaluate.reference` may then name the set); the first is the main
    one."""

    in_memory: ClassVar[bool] = False
    encoded: ClassVar[bool] = False
    channels: ClassVar[int] = 3
    extractors: ClassVar[tuple[str, ...]] = ()

    def open(self) -> TrainingSet:
        """The training split. Raises UsageError where it is not there or not what it should be."""
        raise NotImplementedError

    def held_out(self) -> Images:
        """Images that training does not see. Raises UsageError where the set holds none out."""
        raise UsageError(f'data.name="{self.part_name()}" holds no images out')

    def floor(self) -> Images:
        """Images whose distance to the training split a perfect model would reach."""
        return self.held_out()
