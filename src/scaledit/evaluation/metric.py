"""Metrics: each is one part, in the file that computes it, and that one definition is its entry everywhere.

    (features of samples, what is known of the reference)  --compute-->  a number, or a few
    key     in a result's JSON, in --metrics, a study's column          "fid"
    title   in tables, reports and figures                              "FID"

    @dataclass(frozen=True)
    class MeanDistance(Metric, name="mean_distance"):
        title = "distance of means"

        def compute(self, reference, samples, given):
            return float(np.linalg.norm(reference.pool.mean(axis=0) - samples.pool.mean(axis=0)))

Which features there are is the extractor's to say (scaledit.evaluation.extractors). Imports no torch.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple, TypeVar

from scaledit import part
from scaledit.errors import UsageError, shown
from scaledit.evaluation.extractors import Extractor
from scaledit.part import Part

if TYPE_CHECKING:
    from scaledit.evaluation.features import Features
    from scaledit.evaluation.reference import Reference

T = TypeVar("T")
Better = Literal["lower", "higher", "near 1"]
Of = Extractor | type[Extractor]
"""An extractor, or its class: what a metric's columns follow from is the class's."""
DistancePrecision = Literal["fp32", "adm_fp16"]
"""In what distances between neighbours are taken; "adm_fp16" as ADM does."""
LAST = 100
"""The place of a user's own metric: behind scaledit's."""


class Column(NamedTuple):
    """One number of a metric, as tables and figures need it.

    key: in JSON and in CSV. better: the direction. fraction: whether it lies between 0 and 1. brief: whether
    it stands in short tables too, beside the distance. aside: whether it only says how sure another one is.
    digits: significant ones, in tables. about: a sentence for reports.
    """

    key: str
    title: str
    better: Better = "lower"
    fraction: bool = False
    brief: bool = False
    aside: bool = False
    digits: int = 4
    about: str = ""


@dataclass(frozen=True)
class MetricContext:
    """What a metric may use beside the features.

    extractor: that the features are of. precision, device: of distances between neighbours. real: features of
    other real images by the same extractor, where the reference holds some out.
    """

    extractor: Extractor
    precision: DistancePrecision = "fp32"
    device: str = "cpu"
    real: Features | None = None
    made: dict[Any, Any] = field(default_factory=dict, repr=False)

    def once(self, key: object, make: Callable[[], T]) -> T:
        """What several metrics need of the same samples, made when the first of them asks for `key`."""
        if key not in self.made:
            self.made[key] = make()
        return self.made[key]


class Metric(Part, kind="metric", home="scaledit.evaluation.metrics", needs=("compute",)):
    """title: for people; "" is the name. better, fraction, brief, digits: as of a Column. cost: in words.

    reads: features of the samples, by the extractor's names, and "labels", the classes asked for; where a
    sample set does not say those, the metric is left out. of_reference: what it reads of the reference:
    "statistics" (mean and covariance of "pool"), "spatial" (those of "spatial"), "pool" (single images).
    by_request: it is taken only where it is named. order: its place in tables.
    """

    title: ClassVar[str] = ""
    better: ClassVar[Better] = "lower"
    fraction: ClassVar[bool] = False
    brief: ClassVar[bool] = False
    digits: ClassVar[int] = 4
    about: ClassVar[str] = ""
    cost: ClassVar[str] = "small beside that of the features"
    reads: ClassVar[tuple[str, ...]] = ("pool",)
    of_reference: ClassVar[tuple[str, ...]] = ("statistics", "pool")
    by_request: ClassVar[bool] = False
    order: ClassVar[int] = LAST

    def compute(
        self, reference: Reference, samples: Features, given: MetricContext
    ) -> float | Sequence[float]:
        """The number, or as many as `columns` has. All that `reads` and `of_reference` name is there."""
        raise NotImplementedError

    def columns(self, extractor: Of) -> tuple[Column, ...]:
        """What the numbers are called with this extractor; the first is what --metrics names."""
        return (self.column(self.NAME or snake(type(self).__name__), self.title),)

    def column(self, key: str, title: str = "", **changes: Any) -> Column:
        """A column of this metric. key: "" is the title's words in lower case."""
        key = key or snake(title)
        made = Column(
            key=key,
            title=title or key.replace("_", " "),
            better=self.better,
            fraction=self.fraction,
            brief=self.brief,
            digits=self.digits,
            about=self.about,
        )
        return made._replace(**changes)

    def applies(self, extractor: Of) -> bool:
        """Whether the extractor gives what the metric reads."""
        return set(self.reads) <= {*extractor.outputs, "labels"}

    def by_default(self, extractor: Of) -> bool:
        """Whether it is taken with this extractor where no metrics are named."""
        return not self.by_request


def snake(title: str) -> str:
    """ "FD-DINOv2-infinity" -> "fd_dinov2_infinity", "MeanDistance" -> "mean_distance"."""
    return re.sub(r"[\s,-]+", "_", re.sub(r"(?<=[a-z])(?=[A-Z][a-z])", "_", title)).lower()


def own_metrics() -> list[Metric]:
    """scaledit's own, in their order, with their fields' defaults."""
    return sorted((one() for one in part.members(Metric).values()), key=lambda metric: metric.order)


@functools.cache
def known() -> Mapping[str, Column]:
    """The columns of scaledit's own metrics with all of its extractors, in the order they are shown in."""
    found: dict[str, Column] = {}
    extractors = part.members(Extractor).values()
    for metric in own_metrics():
        for extractor in extractors:
            for column in metric.columns(extractor) if metric.applies(extractor) else ():
                found.setdefault(column.key, column)
    return found


def columns(*protocols: Mapping[str, Any]) -> dict[str, Column]:
    """The columns that results may have, by key: scaledit's own, and then a user's, of which the protocols
    that they were measured by say what they are. Raises UsageError where a protocol says it wrongly."""
    found = dict(known())
    for protocol in protocols:
        told = protocol.get(TOLD, {})
        if not isinstance(told, Mapping):
            raise UsageError(f"its {TOLD} are {shown(told)}")
        for key, said in told.items():
            found.setdefault(key, _told(key, said))
    return found


TOLD = "metrics"
"""The protocol's key for what metrics are that are not scaledit's own as they come."""


def tell(metric: Metric, column: Column) -> dict[str, Any]:
    """For a protocol: the part, and what tables need to know of the column."""
    return {
        "part": metric.to_json(),
        "title": column.title,
        "better": column.better,
        "fraction": column.fraction,
        "brief": column.brief,
        "aside": column.aside,
    }


def _told(key: object, said: object) -> Column:
    if not isinstance(key, str) or not is_key(key) or not isinstance(said, Mapping):
        raise UsageError(f"its {TOLD} hold {shown(key)}: {shown(said)}")
    better, flags = said.get("better", "lower"), ("fraction", "brief", "aside")
    if not isinstance(said.get("title"), str) or better not in ("lower", "higher", "near 1"):
        raise UsageError(f"its {TOLD} say of {key} {shown(said)}")
    fraction, brief, aside = (said.get(flag) is True for flag in flags)
    return Column(key, said["title"], better, fraction, brief, aside)


TAKEN = ("name", "protocol", "warnings", "event", "step", "time", "seconds")
"""What else a result and its line in a log hold."""


def is_key(key: str) -> bool:
    """Whether a column may be called so."""
    return key.isidentifier() and key not in TAKEN and not key.endswith(("_std", "_real"))
