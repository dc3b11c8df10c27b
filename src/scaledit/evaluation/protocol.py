"""How a figure was made: everything that it depends on, and what to distrust about it.

(sample sets, reference, extractors) --describe--> protocol --warnings--> sentences
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from scaledit import __version__
from scaledit.diffusion.samplers import DDPM
from scaledit.evaluation.features import FeatureNetwork, Features
from scaledit.evaluation.metric import TOLD, DistancePrecision
from scaledit.evaluation.metrics.neighbours import K_DENSITY, K_PRECISION
from scaledit.evaluation.reference import Reference
from scaledit.evaluation.samples import SampleSet
from scaledit.part import in_words

PAPER = {"n": 50_000, "labels": "uniform"}
PAPER_SAMPLER = DDPM(steps=250)
"""How the paper's figures were made (section 4; its footnotes name decoder and guidance row by row)."""
PAPER_SIDES = (256, 512)

SMALLEST_RANK = 2049
"""Samples below which a covariance in 2048 dimensions is singular."""
FEWEST_SETS = 3
"""Sample seeds over which a distance on a small extractor is told."""

ORIGIN = (
    "run",
    "step",
    "weights",
    "sha256",
    "labels",
    "start",
    "sampler",
    "guidance",
    "precision",
    "decoder",
    "rounding",
)
"""What a sample set says of itself, where it does."""


def describe(
    sets: Sequence[SampleSet],
    seen: Features,
    reference: Reference,
    extractors: Sequence[FeatureNetwork],
    precision: DistancePrecision,
) -> dict[str, Any]:
    """The protocol of figures over `sets`, of which `seen` is the first. None stands for: not stated. Sampler
    and guidance are whole, as their parts say themselves."""
    origins = [samples.origin for samples in sets]
    return {
        "n": seen.n,
        "sample_sets": len(sets),
        "samples": [samples.name for samples in sets],
        "image_size": list(seen.size),
        **{key: _common([origin.get(key) for origin in origins]) for key in ORIGIN},
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
    """A protocol for people, a line a fact: None says so, and metrics are told by their parts."""
    shown = {key: "not stated" if value is None else value for key, value in protocol.items()}
    told = protocol.get(TOLD)
    if isinstance(told, Mapping):
        shown[TOLD] = ", ".join(f"{key}: {_part(said)}" for key, said in told.items())
    return shown


def _part(said: Any) -> str:
    part = said.get("part") if isinstance(said, Mapping) else None
    if not isinstance(part, Mapping):
        return "not stated"
    fields = [f"{key} {value}" for key, value in part.items() if key != "name"]
    return " ".join([str(part.get("name")), *([f"({', '.join(fields)})"] if fields else [])])


def _common(values: Sequence[Any]) -> Any:
    """The value that all share, or the list of them."""
    return values[0] if all(value == values[0] for value in values) else list(values)


def warnings(
    figures: Sequence[str],
    protocol: Mapping[str, Any],
    sets: Sequence[SampleSet],
    reference: Reference,
    small: bool = False,
    left_out: Sequence[str] = (),
) -> list[str]:
    """A sentence for whatever makes the named figures compare badly with others'.

    small: whether one is a distance on a small extractor. left_out: titles of metrics that need the classes
    asked for, of a sample set that does not say them.
    """
    found = []
    n, (height, width) = protocol["n"], protocol["image_size"]
    if "fid" in figures:
        if n < SMALLEST_RANK:
            found.append(
                f"FID of {n} samples: below {SMALLEST_RANK} the covariance is singular and the bias large; "
                "compare only with the same N"
            )
        found += _unlike_the_paper(protocol)
    if small and len(sets) < FEWEST_SETS:
        found.append(
            f"{len(sets)} sample set; a distance on a small extractor is told over {FEWEST_SETS} seeds"
        )
    found += [
        f"{title} was left out: the sample set does not say which classes were asked for"
        for title in left_out
    ]
    if reference.size not in (None, (height, width)):
        h, w = reference.size
        found.append(f"the samples are {width}x{height}, the reference images {w}x{h}")
    if any(getattr(samples, "allow_jpeg", False) for samples in sets):
        found.append("lossily compressed images were allowed; their figures compare with nothing else")
    return found


def _unlike_the_paper(protocol: Mapping[str, Any]) -> list[str]:
    """One warning that lists what differs from the paper's settings; nothing where they are all the same."""
    differs = [
        f"{key} {'unknown' if protocol[key] is None else protocol[key]}, not {theirs}"
        for key, theirs in PAPER.items()
        if protocol[key] != theirs
    ]
    sampler = protocol["sampler"]
    if sampler != PAPER_SAMPLER.to_json():
        said = "unknown" if sampler is None else in_words(sampler)
        differs.append(f"sampler {said}, not {in_words(PAPER_SAMPLER.to_json())}")
    height, width = protocol["image_size"]
    if height != width or height not in PAPER_SIDES:
        sides = " or ".join(f"{side}x{side}" for side in PAPER_SIDES)
        differs.append(f"images of {width}x{height}, not {sides}")
    return [f"not the paper's protocol: {'; '.join(differs)}"] if differs else []
