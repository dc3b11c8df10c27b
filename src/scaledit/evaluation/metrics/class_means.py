"""Whether samples show their class, without a classifier of the data: by the nearest class mean.

    m_c  = mean features of the training images of class c
    class of x = argmin_c |f(x) - m_c|                                    Mensink et al. 2013 (TPAMI), NCM
    accuracy   = share of samples whose class is the requested one        ceiling: that of held-out images

The means are of training images, so held-out images are as new to them as samples are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from scaledit.errors import UsageError, shown
from scaledit.evaluation.metric import Metric, MetricContext
from scaledit.lazy import np

if TYPE_CHECKING:
    from scaledit.evaluation.features import Features
    from scaledit.evaluation.reference import Reference


@dataclass(frozen=True)
class NearestMean(Metric, name="nearest_mean_accuracy"):
    """The share of samples that are nearer to the mean training image of their class than to those of the
    other classes, in features."""

    title = "class accuracy (nearest mean)"
    better = "higher"
    fraction = True
    brief = True
    about = (
        "Class accuracy (nearest mean): the share of samples whose features are nearest to the mean of the "
        "training images of their class; that of held-out real images is the ceiling."
    )
    reads = ("pool", "labels")
    of_reference = ("class_means",)
    order = 12

    def compute(self, reference: Reference, samples: Features, context: MetricContext) -> float:
        assert reference.class_means is not None and samples.labels is not None
        return float((nearest_mean(samples.pool, reference.class_means) == samples.labels).mean())


class ClassResult(NamedTuple):
    """held_out: number of held-out images of the class; real: the share of them that is nearest to its mean.
    samples: number of samples of it over all sets; accuracy: the same share of those. None without images."""

    name: str
    held_out: int
    real: float | None
    samples: int
    accuracy: float | None

    @classmethod
    def of(cls, value: object) -> ClassResult:
        """The inverse of `_asdict`. Raises UsageError for another value."""
        table: Mapping[str, Any] = value if isinstance(value, Mapping) else {}
        one = cls(*(table.get(name) for name in cls._fields))  # pyright: ignore[reportArgumentType]
        if not (
            isinstance(one.name, str)
            and all(type(count) is int and count >= 0 for count in (one.held_out, one.samples))
            and all(
                x is None or (isinstance(x, int | float) and 0 <= x <= 1) for x in (one.real, one.accuracy)
            )
        ):
            raise UsageError(f"its by_class holds {shown(value)}")
        return one


def class_means(pool: np.ndarray, labels: np.ndarray, classes: int) -> np.ndarray:
    """The means of (N, D) features with labels (N,): (classes, D) float64, nan for a class without any."""
    means = np.full((classes, pool.shape[1]), np.nan)
    for label in np.unique(labels):
        means[label] = pool[labels == label].mean(axis=0, dtype=np.float64)
    return means


def nearest_mean(pool: np.ndarray, means: np.ndarray) -> np.ndarray:
    """The class (N,) whose mean is nearest to each of (N, D) features, in Euclidean distance; classes without
    a mean (nan) are never the nearest."""
    x = pool.astype(np.float64)
    known = np.isfinite(means.sum(axis=1))
    centers = np.where(known[:, None], means, 0)
    squares = (x**2).sum(1)[:, None] - 2 * x @ centers.T + (centers**2).sum(1)
    return np.where(known, squares, np.inf).argmin(axis=1)


def by_class(
    class_names: Sequence[str],
    means: np.ndarray,
    held_out: tuple[np.ndarray, np.ndarray],
    sets: Sequence[tuple[np.ndarray, np.ndarray]],
) -> list[ClassResult]:
    """One result per class. held_out, and each of the sets: features (N, D) and labels (N,)."""

    def counted(pairs: Sequence[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
        labels = np.concatenate([labels for _, labels in pairs])
        found = np.concatenate([nearest_mean(pool, means) for pool, _ in pairs])
        n, right = np.bincount(labels, minlength=len(class_names)), np.equal(found, labels)
        return n, np.bincount(labels[right], minlength=len(class_names))

    (n_real, right_real), (n, right) = counted([held_out]), counted(sets)

    def share(right: np.ndarray, n: np.ndarray, label: int) -> float | None:
        return float(right[label] / n[label]) if n[label] else None

    return [
        ClassResult(name, int(n_real[c]), share(right_real, n_real, c), int(n[c]), share(right, n, c))
        for c, name in enumerate(class_names)
    ]
