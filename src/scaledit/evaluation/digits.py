"""Two honest scores for the digits, made with scikit-learn on real digits only:

class accuracy    share of conditional samples that a classifier takes for the class asked for
nearest distance  mean distance of samples to their nearest training digit, over that of held-out digits
                  (well below 1: the model copies; well above: it does not make digits)
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from scaledit.data.sets import digits

if TYPE_CHECKING:
    from sklearn.neighbors import NearestNeighbors
    from sklearn.svm import SVC

CLASSIFIER = "scikit-learn SVC(kernel='rbf', gamma=0.1, C=10) trained on the 1,438 training digits"


class DigitScores(NamedTuple):
    """n: samples. held_out_accuracy: the classifier's on real held-out digits, a ceiling for `accuracy`.
    nearest: the ratio of mean distances described above."""

    n: int
    accuracy: float
    held_out_accuracy: float
    nearest: float


class _Judge(NamedTuple):
    classifier: SVC
    neighbours: NearestNeighbors
    held_out_accuracy: float
    held_out_distance: float


@lru_cache(maxsize=1)
def _judge() -> _Judge:
    from sklearn.neighbors import NearestNeighbors
    from sklearn.svm import SVC

    train, held_out = digits(), digits(held_out=True)
    x, x_held_out = (part.images.flatten(1).numpy() for part in (train, held_out))
    classifier = SVC(kernel="rbf", gamma=0.1, C=10)  # pyright: ignore[reportArgumentType]
    classifier.fit(x, train.labels.numpy())
    neighbours = NearestNeighbors(n_neighbors=1).fit(x)
    return _Judge(
        classifier,
        neighbours,
        float(classifier.score(x_held_out, held_out.labels.numpy())),
        float(neighbours.kneighbors(x_held_out)[0].mean()),
    )


def score(images: np.ndarray, classes: np.ndarray) -> DigitScores:
    """images (N, 8, 8, 3) uint8 as sampled; classes (N,) the labels they were asked for."""
    judge = _judge()
    x = (images[..., 0].reshape(len(images), -1).astype(np.float32) - 127.5) / 127.5
    predicted = judge.classifier.predict(x)
    distance = float(judge.neighbours.kneighbors(x)[0].mean())
    return DigitScores(
        n=len(images),
        accuracy=float((predicted == np.asarray(classes)).mean()),
        held_out_accuracy=judge.held_out_accuracy,
        nearest=distance / judge.held_out_distance,
    )
