"""The reference that samples are compared with: real images, their statistics, or both, in ADM's format.

REF.npz   mu (2048,)  sigma (2048, 2048)       of pool       FID
          mu_s (2023,)  sigma_s (2023, 2023)   of spatial    sFID
          arr_0 (N, H, W, 3) uint8             images        precision, recall, density, coverage, KID
scaledit itself writes pool (N, 2048) instead of arr_0, and origin (JSON: extractor, n, source)
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from scaledit.callbacks import Progress
from scaledit.errors import UsageError, shown
from scaledit.evaluation.features import FeatureNetwork, Features, extract
from scaledit.evaluation.inception import InceptionExtractor
from scaledit.evaluation.samples import (
    SampleSet,
    arrays_of,
    npz_samples,
    open_samples,
    origin_of,
    small_array,
)
from scaledit.evaluation.statistics import Statistics
from scaledit.files.manifest import sha256_of
from scaledit.sampling.files import write_arrays

STATISTICS = ("mu", "sigma", "mu_s", "sigma_s", "pool")
TOLERANCE = 1e-5
"""Of a covariance's asymmetry and negative eigenvalues, relative to its largest element: some are float32."""
SMALLEST, LARGEST = 1e-30, 1e30
"""The smallest tolerance; the magnitude that no feature reaches."""


@dataclass(frozen=True)
class Reference:
    """Features of the real images. pool: of single images (a part of them, in ADM's files). size: of the
    images, if known. sha256: of the file, or of the images' names and bytes. class_means: (classes, D)
    float64, the mean features of the training images of each class, nan without any."""

    name: str
    sha256: str
    statistics: Statistics | None = None
    spatial: Statistics | None = None
    pool: np.ndarray | None = None
    size: tuple[int, int] | None = None

    class_means: np.ndarray | None = None

    @classmethod
    def of(cls, name: str, sha256: str, features: Features) -> Reference:
        return cls(name, sha256, Statistics.of(features.pool), features.spatial, features.pool, features.size)

    @property
    def n(self) -> int | None:
        """The number of images behind the statistics, if known."""
        return None if self.statistics is None else self.statistics.n


def recorded_extractor(path: Path) -> str | None:
    """The name of the network that a file of features was made with; None for images. A file that does not
    say it is ADM's, made with Inception."""
    if path.suffix != ".npz" or not path.is_file():
        return None
    with arrays_of(path) as archive:
        files = archive.namelist()
        if not any(f"{name}.npy" in files for name in STATISTICS):
            return None
        origin = origin_of(small_array(archive, "origin", path), path) if "origin.npy" in files else {}
    return str(origin.get("extractor", InceptionExtractor.name))


def open_reference(
    path: Path,
    extractor: FeatureNetwork,
    needs_images: bool,
    allow_jpeg: bool = False,
    progress: Progress | None = None,
) -> Reference:
    """A reference for `extractor`: an .npz in ADM's format, or any sample set of real images.

    needs_images: whether features of single images are needed; if not, the images of an ADM file with
    statistics are not read. Raises UsageError for a file of neither kind, or of another extractor.
    """
    if path.suffix == ".npz" and path.is_file():
        with arrays_of(path) as archive:
            files = archive.namelist()
            names = [name for name in (*STATISTICS, "origin") if f"{name}.npy" in files]
            arrays = {name: small_array(archive, name, path) for name in names}
        if arrays.keys() - {"origin"}:
            return _from_arrays(path, arrays, extractor, needs_images and "arr_0.npy" in files, progress)
    samples = open_samples(path, allow_jpeg)
    [features] = extract(samples, [extractor], progress)
    return Reference.of(str(path), fingerprint(path), features)


def _from_arrays(
    path: Path,
    arrays: dict[str, np.ndarray],
    extractor: FeatureNetwork,
    use_images: bool,
    progress: Progress | None,
) -> Reference:
    origin = origin_of(arrays["origin"], path) if "origin" in arrays else {}
    sha256 = origin.get("extractor_sha256")
    if sha256 is not None and sha256 != extractor.sha256:
        raise UsageError(
            f"{path} was made with the extractor {str(origin.get('extractor'))[:40]} (SHA-256 "
            f"{str(sha256)[:8]}...), not with {extractor.name} ({extractor.sha256[:8]}...); "
            "make it again with scaledit reference"
        )
    n = origin.get("n")
    if n is not None and (type(n) is not int or n < 2):
        raise UsageError(
            f"{path} says that it was made of {shown(n)} images, which must be a whole number of at least 2"
        )
    pool, size = arrays.get("pool"), None
    if pool is not None:
        if pool.ndim != 2 or len(pool) < 2 or ("mu" in arrays and pool.shape[1:] != arrays["mu"].shape):
            raise UsageError(
                f"{path}: pool has the shape {pool.shape}; features have the shape (images, dimensions of mu)"
            )
        pool = _floats(path, "pool", pool).astype(np.float32)
    elif use_images:
        [features] = extract(npz_samples(path), [extractor], progress)
        pool, size = features.pool, features.size
    statistics = _statistics(path, arrays, "mu", "sigma", n)
    spatial = _statistics(path, arrays, "mu_s", "sigma_s", n)
    return Reference(str(path), fingerprint(path), statistics, spatial, pool, size)


def _floats(path: Path, name: str, array: np.ndarray) -> np.ndarray:
    """The array in float64 and in this machine's byte order."""
    if array.dtype.kind != "f" or not np.isfinite(array).all():
        raise UsageError(f"{path}: {name} must be finite floating-point numbers")
    return array.astype(np.float64)


def _statistics(
    path: Path, arrays: dict[str, np.ndarray], mu: str, sigma: str, n: int | None
) -> Statistics | None:
    if mu not in arrays and sigma not in arrays:
        return None
    for name, other in ((mu, sigma), (sigma, mu)):
        if name not in arrays:
            raise UsageError(f"{path} has {other} but no {name}")
    mean, cov = _floats(path, mu, arrays[mu]), _floats(path, sigma, arrays[sigma])
    if mean.ndim != 1 or not mean.size or cov.shape != (len(mean), len(mean)):
        raise UsageError(f"{path}: {mu} {mean.shape} and {sigma} {cov.shape} are not a mean and a covariance")
    scale = float(np.abs(cov).max())
    if not max(scale, float(np.abs(mean).max())) < LARGEST:
        raise UsageError(f"{path}: {mu} or {sigma} contains numbers that are too large for features")
    if float(np.abs(cov - cov.T).max()) > TOLERANCE * scale:
        raise UsageError(f"{path}: {sigma} is not a covariance, because it is not symmetric")
    try:
        np.linalg.cholesky(cov + np.eye(len(cov)) * max(TOLERANCE * scale, SMALLEST))
    except np.linalg.LinAlgError:
        raise UsageError(
            f"{path}: {sigma} is not a covariance, because it has negative eigenvalues"
        ) from None
    return Statistics(mean, cov, n)


def write_reference(
    out: Path, samples: SampleSet, extractor: FeatureNetwork, source: str, progress: Progress | None = None
) -> Features:
    """Writes the statistics of real images in ADM's format, with their pool features (float32) and the
    extractor's hash. Returns the features."""
    [features] = extract(samples, [extractor], progress)
    statistics = Statistics.of(features.pool)
    arrays = {"mu": statistics.mean, "sigma": statistics.cov}
    if features.spatial is not None:
        arrays |= {"mu_s": features.spatial.mean, "sigma_s": features.spatial.cov}
    origin = {
        "source": source,
        "n": features.n,
        "extractor": extractor.name,
        "extractor_sha256": extractor.sha256,
    }
    write_arrays(out, {**arrays, "pool": features.pool, "origin": np.array(json.dumps(origin))})
    return features


def fingerprint(path: Path) -> str:
    """SHA-256 of a file, or of the names and bytes of a folder's files in the order of names."""
    if path.is_file():
        return sha256_of(path)
    digest = hashlib.sha256()
    for inner in sorted(p for p in path.rglob("*") if p.is_file()):
        digest.update(str(inner.relative_to(path)).encode())
        digest.update(hashlib.sha256(inner.read_bytes()).digest())
    return digest.hexdigest()
