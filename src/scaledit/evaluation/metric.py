"""Metrics: each is one part, in the file that computes it, and that one definition is its entry everywhere.

    (reference, features of the samples)  --compute-->  one number, or several
    key     in a result's JSON, in --metrics, as a study's column       "fid"
    title   in tables, reports and figures                              "FID"

    @dataclass(frozen=True)
    class MeanDistance(Metric, name="mean_distance"):
        title = "distance of means"

        def compute(self, reference, samples, context):
            return float(np.linalg.norm(reference.pool.mean(axis=0) - samples.pool.mean(axis=0)))

The extractor decides which features exist (scaledit.evaluation.extractors). Imports no torch.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple, TypeVar, get_args

from scaledit import part
from scaledit.errors import UsageError, shown
from scaledit.evaluation.extractors import Extractor
from scaledit.part import Part

if TYPE_CHECKING:
    from scaledit.evaluation.features import Features
    from scaledit.evaluation.reference import Reference

T = TypeVar("T")
Better = Literal["lower", "higher", "near 1"]
DistancePrecision = Literal["fp32", "adm_fp16"]
"""The precision of distances between neighbors; "adm_fp16" is ADM's."""


class Column(NamedTuple):
    """One number of a metric, as tables and figures present it.

    key: in JSON and CSV. better: the direction. fraction: whether it lies between 0 and 1. brief: whether
    short tables show it too. aside: whether it only states the uncertainty of another column. digits:
    significant ones, in tables. about: a sentence for reports.
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
    """What a metric may use besides the features.

    extractor: of the features. precision, device: of distances between neighbors. real: features of
    held-out real images by the same extractor, if the reference has any.
    """

    extractor: Extractor
    precision: DistancePrecision = "fp32"
    device: str = "cpu"
    real: Features | None = None
    cache: dict[Any, Any] = field(default_factory=dict, repr=False)

    def once(self, key: object, compute: Callable[[], T]) -> T:
        """A value that several metrics of the same samples share, computed when `key` is first requested."""
        if key not in self.cache:
            self.cache[key] = compute()
        return self.cache[key]


class Metric(Part, kind="metric", home="scaledit.evaluation.metrics", needs=("compute",)):
    """title: for people; "" means the name. better, fraction, brief, digits, about: as in Column.

    reads: the features it needs, by the extractor's names, and "labels", the requested classes; the metric is
    left out for a sample set without labels. of_reference: what it reads of the reference: "statistics"
    (mean and covariance of "pool"), "spatial" (those of "spatial"), "pool" (single images), "class_means" (of
    training images; only the reference "held-out" has them). by_request: computed only if it is named. order:
    its position in tables; by default after all built-in metrics.
    """

    title: ClassVar[str] = ""
    better: ClassVar[Better] = "lower"
    fraction: ClassVar[bool] = False
    brief: ClassVar[bool] = False
    digits: ClassVar[int] = 4
    about: ClassVar[str] = ""
    reads: ClassVar[tuple[str, ...]] = ("pool",)
    of_reference: ClassVar[tuple[str, ...]] = ("statistics", "pool")
    by_request: ClassVar[bool] = False
    order: ClassVar[int] = 100

    @property
    def fewest(self) -> int:
        """The smallest number of samples, and of reference images, that it can be computed from."""
        return 2

    def compute(
        self, reference: Reference, samples: Features, context: MetricContext
    ) -> float | Sequence[float]:
        """One number for each of `columns`. Everything in `reads` and `of_reference` is present."""
        raise NotImplementedError

    def columns(self, extractor: Extractor) -> tuple[Column, ...]:
        """The columns with this extractor; --metrics names the first."""
        return (self.column(self.NAME or _snake(type(self).__name__), self.title),)

    def column(self, key: str, title: str = "", **changes: Any) -> Column:
        """A column of this metric. key: "" means the title in snake case."""
        key = key or _snake(title)
        attributes = {
            name: getattr(self, name) for name in ("better", "fraction", "brief", "digits", "about")
        }
        return Column(key, title or key.replace("_", " "), **{**attributes, **changes})

    def applies(self, extractor: Extractor) -> bool:
        """Whether the extractor gives what the metric reads."""
        return set(self.reads) <= {*extractor.outputs, "labels"}

    def by_default(self, extractor: Extractor) -> bool:
        """Whether the metric is computed with this extractor if no metrics are named."""
        return not self.by_request


def _snake(title: str) -> str:
    """ "FD-EfficientNet-Lite0" -> "fd_efficientnet_lite0", "MeanDistance" -> "mean_distance"."""
    if title.isidentifier():
        title = re.sub(r"(?<=[a-z])(?=[A-Z][a-z])", "_", title)
    return re.sub(r"[\s,-]+", "_", title).lower()


def built_in_metrics() -> list[Metric]:
    """All built-in metrics with their default fields, in the order of tables."""
    return sorted((metric() for metric in part.members(Metric).values()), key=lambda metric: metric.order)


@functools.cache
def built_in_columns() -> Mapping[str, Column]:
    """The columns of the built-in metrics with every built-in extractor, by key, in the order of tables."""
    by_key: dict[str, Column] = {}
    extractors = [extractor() for extractor in part.members(Extractor).values()]
    for metric in built_in_metrics():
        for extractor in extractors:
            for column in metric.columns(extractor) if metric.applies(extractor) else ():
                by_key.setdefault(column.key, column)
    return by_key


def columns(*protocols: Mapping[str, Any]) -> dict[str, Column]:
    """The columns that results with these protocols may have, by key: the built-in ones, then those that the
    protocols describe. Raises UsageError for a description that `to_protocol` does not write."""
    by_key = dict(built_in_columns())
    for protocol in protocols:
        described = protocol.get(METRICS, {})
        if not isinstance(described, Mapping):
            raise UsageError(f"its {METRICS} are {shown(described)}")
        for key, value in described.items():
            by_key.setdefault(key, _from_protocol(key, value))
    return by_key


METRICS = "metrics"
"""The protocol's key for the metrics that are not built in, or whose fields differ from the defaults."""
FLAGS = ("fraction", "brief", "aside")


def to_protocol(metric: Metric, column: Column) -> dict[str, Any]:
    """The metric's part and what tables need to know of its column, for a protocol."""
    return {"part": metric.to_json(), **{name: getattr(column, name) for name in ("title", "better", *FLAGS)}}


def _from_protocol(key: object, value: object) -> Column:
    table = value if isinstance(value, Mapping) else {}
    title, better = table.get("title"), table.get("better", "lower")
    if not (isinstance(key, str) and is_key(key) and isinstance(title, str) and better in get_args(Better)):
        raise UsageError(f"its {METRICS} hold {shown(key)}: {shown(value)}")
    flags: dict[str, Any] = {flag: table.get(flag) is True for flag in FLAGS}
    return Column(key, title, better, **flags)


RESERVED = ("name", "protocol", "warnings", "by_class", "event", "step", "time", "seconds")
"""The other keys of a result and of its line in a log."""


def is_key(key: str) -> bool:
    """Whether `key` may name a column."""
    return key.isidentifier() and key not in RESERVED and not key.endswith(("_std", "_real"))
