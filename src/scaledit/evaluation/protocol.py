"""The protocol of a result: everything that its metrics depend on, and warnings.

(sample sets, reference, extractors) --describe--> protocol --warnings--> sentences
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from scaledit import __version__, part
from scaledit.diffusion.samplers import DDPM
from scaledit.evaluation.extractors import Extractor
from scaledit.evaluation.features import FeatureNetwork
from scaledit.evaluation.metric import METRICS, DistancePrecision
from scaledit.evaluation.metrics.neighbors import K_DENSITY, K_PRECISION
from scaledit.evaluation.reference import Reference
from scaledit.evaluation.samples import SampleSet
from scaledit.part import in_words
from scaledit.sampling.request import EVALUATIONS, is_stated, together

PAPER = {"n": 50_000, "labels": "uniform"}
PAPER_SAMPLER = DDPM(steps=250).to_json()
"""The paper's protocol (section 4; its footnotes name decoder and guidance row by row)."""
PAPER_SIDES = (256, 512)

SMALLEST_RANK = 2049
"""Below this many samples a covariance in 2048 dimensions is singular."""
FEWEST_SETS = 3
"""Sample seeds over which a distance on a small extractor should be reported."""

CHECKPOINT = ("run", "step", "weights", "sha256")
SAMPLING = ("labels", "start", "sampler", "guidance", "precision", "decoder", "rounding")


def describe(
    sets: Sequence[SampleSet],
    n: int,
    image_size: tuple[int, int],
    reference: Reference,
    extractors: Sequence[FeatureNetwork],
    precision: DistancePrecision,
) -> dict[str, Any]:
    """The protocol of metrics of `sets`; n and image_size are of the first. None means unknown. Sampler and
    guidance are recorded with all their fields."""
    origins = [samples.origin for samples in sets]
    return {
        "n": n,
        "sample_sets": len(sets),
        "samples": [samples.name for samples in sets],
        "image_size": list(image_size),
        **{key: _common([origin.get(key) for origin in origins]) for key in (*CHECKPOINT, *SAMPLING)},
        **together([origin.get(EVALUATIONS) for origin in origins], [samples.n for samples in sets]),
        "seed": [origin.get("seed") for origin in origins],
        "extractor": _common([extractor.name for extractor in extractors]),
        "extractor_sha256": _common([extractor.sha256 for extractor in extractors]),
        "extractor_precision": "fp32",
        "resize": extractors[0].resize,
        "reference": reference.name,
        "reference_sha256": reference.sha256,
        "reference_n": reference.n,
        "neighbours": f"k={K_PRECISION} (precision, recall), k={K_DENSITY} (density, coverage), {precision}",
        "scaledit": __version__,
        "torch": torch.__version__,
    }


def readable(protocol: Mapping[str, Any]) -> dict[str, Any]:
    """A protocol for people, one line per entry: None as "not stated", metrics as their parts."""
    lines = {key: "not stated" if value is None else value for key, value in protocol.items()}
    spent = protocol.get(EVALUATIONS)
    if isinstance(spent, Mapping) and is_stated(spent):
        lines[EVALUATIONS] = "{mean} per image, {min} to {max}".format_map(spent)
    if isinstance(metrics := protocol.get(METRICS), Mapping):
        parts = {key: value.get("part") for key, value in metrics.items() if isinstance(value, Mapping)}
        lines[METRICS] = ", ".join(f"{key}: {in_words(part)}" for key, part in parts.items())
    return lines


def incomparable(protocols: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """A sentence for everything by which results that are shown side by side must not be compared. protocols:
    by the name of the result."""
    sentences = []
    for title, shown, compared in MEASURED_WITH:
        known = {name: _first(protocol, compared) for name, protocol in protocols.items()}
        if len({str(value) for value in known.values() if value is not None}) > 1:
            values = ", ".join(f"{name}: {_first(protocols[name], shown)}" for name in protocols)
            sentences.append(f"these results have different {title}, so do not compare them ({values})")
    return sentences


MEASURED_WITH = (
    ("numbers of images", ("n",), ("n",)),
    ("image sizes", ("image_size",), ("image_size",)),
    ("references", ("reference",), ("reference_sha256", "reference")),
    ("extractors", ("extractor",), ("extractor_sha256", "extractor")),
)
"""What `incomparable` compares: a title, the key that is shown, and keys of which the first known counts."""


def _first(protocol: Mapping[str, Any], keys: Sequence[str]) -> Any:
    return next((protocol[key] for key in keys if protocol.get(key) is not None), None)


COMPARED = {
    "n": "number of images",
    "sample_sets": "number of sample sets",
    "seed": "seeds",
    "image_size": "image size",
    "labels": "classes sampled",
    "sampler": "sampler",
    "guidance": "guidance",
    "decoder": "decoder",
    "precision": "precision of sampling",
    "extractor": "extractor",
    "extractor_sha256": "weights of the extractor",
    "resize": "resizing",
    "reference": "reference",
    "reference_sha256": "images of the reference",
    "neighbours": "neighbors",
}
"""What must be equal for metrics to be comparable, in words."""


def differences(protocols: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """{what: [its value in each protocol]} of the entries in COMPARED that are not equal in all protocols."""
    found = {}
    for key, words in COMPARED.items():
        values = [protocol.get(key) for protocol in protocols]
        if any(value != values[0] for value in values):
            found[words] = values
    return found


def _common(values: Sequence[Any]) -> Any:
    """The value that all share, or the list of them."""
    return values[0] if all(value == values[0] for value in values) else list(values)


def warnings(
    keys: Sequence[str],
    protocol: Mapping[str, Any],
    sets: Sequence[SampleSet],
    reference: Reference,
    small: bool = False,
    left_out: Sequence[str] = (),
) -> list[str]:
    """A sentence for everything that makes the metrics `keys` hard to compare with others.

    small: whether one is a distance on a small extractor. left_out: titles of the metrics that need the
    requested classes, for a sample set that does not state them.
    """
    sentences = []
    n, (height, width) = protocol["n"], protocol["image_size"]
    if "fid" in keys:
        if n < SMALLEST_RANK:
            sentences.append(
                f"FID of {n} samples: below {SMALLEST_RANK} the covariance is singular and the bias large; "
                "compare only with the same N"
            )
        sentences += _unlike_the_paper(protocol)
    if small and len(sets) < FEWEST_SETS:
        count = "1 sample set was" if len(sets) == 1 else f"{len(sets)} sample sets were"
        sentences.append(
            f"only {count} evaluated; report a distance on a small extractor over {FEWEST_SETS} seeds"
        )
    sentences += [f"{title} was left out: the sample set does not state the classes" for title in left_out]
    if reference.size not in (None, (height, width)):
        h, w = reference.size
        sentences.append(f"the samples have {width}x{height} pixels, but the reference images have {w}x{h}")
    if any(getattr(samples, "allow_jpeg", False) for samples in sets):
        sentences.append("lossily compressed images were allowed; do not compare these metrics with others")
    return sentences


def real_name(protocol: Mapping[str, Any]) -> str:
    """The heading of the metrics of real images, beside those of samples with this protocol."""
    return "real, training" if protocol.get("real") else "real, held out"


FEW = 50
"""Below this many held-out images, only gross failures can be seen."""


def few_images(n: int, reference: Reference, extractor: Extractor) -> list[str]:
    """What can and cannot be concluded from a comparison of `n` samples with few held-out images."""
    assert reference.pool is not None
    (held_out, dimensions), distance = reference.pool.shape, extractor.distance()
    sentences = []
    if held_out <= dimensions:
        sentences.append(
            f"{held_out} held-out images are no more than the {dimensions} features, so the covariance is "
            f"singular and {distance} too large: compare it only between models, with equal held-out images "
            f"and equal numbers of samples; {extractor.distance('K')} is unbiased"
        )
    if held_out < FEW:
        sentences.append(
            f"only {held_out} held-out images: these metrics show gross failures, compared with the column "
            "of real images, but not which of two good models is better"
        )
    if n != held_out:
        sentences.append(
            f"{n} samples are compared, but the column of real images is of at most {held_out}; {distance} "
            f"is comparable with it at equal numbers: evaluate.num={held_out} (--num {held_out})"
        )
    return sentences


def is_conclusive(protocol: Mapping[str, Any]) -> bool:
    """Whether a verdict may use the metrics of a result with this protocol: not if its main extractor has
    random weights that know nothing about images."""
    names = protocol.get("extractor")
    main = names[0] if isinstance(names, list | tuple) and names else names
    extractor = part.members(Extractor).get(str(main))
    return extractor is None or extractor.conclusive


def _unlike_the_paper(protocol: Mapping[str, Any]) -> list[str]:
    """One warning that lists the differences from the paper's protocol, if there are any."""
    differences = [
        f"{key} {'unknown' if protocol[key] is None else protocol[key]}, not {expected}"
        for key, expected in PAPER.items()
        if protocol[key] != expected
    ]
    sampler = protocol["sampler"]
    if sampler != PAPER_SAMPLER:
        name = "unknown" if sampler is None else in_words(sampler)
        differences.append(f"sampler {name}, not {in_words(PAPER_SAMPLER)}")
    height, width = protocol["image_size"]
    if height != width or height not in PAPER_SIDES:
        sides = " or ".join(f"{side}x{side}" for side in PAPER_SIDES)
        differences.append(f"images of {width}x{height}, not {sides}")
    return [f"not the paper's protocol: {'; '.join(differences)}"] if differences else []
