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

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, ClassVar

from scaledit import part
from scaledit.errors import UsageError
from scaledit.part import Part

if TYPE_CHECKING:
    from scaledit.data.sets import TrainingSet

__all__ = ["DataSet", "NothingHeldOut", "attribution", "attributions"]


class NothingHeldOut(UsageError):
    """A set has no images that training does not see."""


class DataSet(Part, kind="data set", home="scaledit.data.datasets", needs=("open",)):
    """in_memory: the open set is in memory, so reading ahead gains nothing. encoded: it holds latents of an
    autoencoder, not images. channels: of an image. extractors: names of the extractors that compare samples
    with this set (`evaluate.reference` may then name it), the main one first. attribution: what must be said
    where pictures of the set go, or pictures that a model trained on it made."""

    in_memory: ClassVar[bool] = False
    encoded: ClassVar[bool] = False
    channels: ClassVar[int] = 3
    extractors: ClassVar[tuple[str, ...]] = ()
    attribution: ClassVar[str] = ""

    def open(self) -> TrainingSet:
        """The training split. Raises UsageError if it is missing or invalid."""
        raise NotImplementedError

    def held_out(self) -> TrainingSet:
        """Images that training does not see. Raises NothingHeldOut if the set has none."""
        raise NothingHeldOut(f'data.name="{self.part_name()}" has no held-out images')

    def floor(self) -> TrainingSet:
        """Images whose distance to the training split is that of a perfect model."""
        return self.held_out()

    def classes_of(self) -> tuple[str, ...]:
        """The names of the set's classes."""
        return tuple(self.floor().class_names)

    def judged_by(self) -> tuple[str, ...]:
        """The names of the extractors that compare samples with this set as it is configured."""
        return self.extractors

    def reference_for(self, class_names: Sequence[str]) -> DataSet:
        """This set as the reference of a model with these classes, if it may have several sets of classes."""
        return self


def attribution(name: str, class_names: Sequence[str] = ()) -> str:
    """What must be said where pictures of the built-in set `name`, or of latents with the classes of one, go;
    "" for others. Imports no set of the user's."""
    for own, data_set in part.members(DataSet).items():
        if data_set.attribution and (
            own == name or (name == "latents" and _has_classes(data_set, class_names))
        ):
            return data_set.attribution
    return ""


def attributions(names: Iterable[str]) -> tuple[str, ...]:
    """`attribution` of each of several sets, without repeats and without ""."""
    return tuple(dict.fromkeys(filter(None, map(attribution, names))))


def _has_classes(data_set: type[DataSet], class_names: Sequence[str]) -> bool:
    return data_set().reference_for(class_names).classes_of() == tuple(class_names)
