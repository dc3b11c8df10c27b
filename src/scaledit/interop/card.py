"""The model card (README.md): recipe, data, metrics with their protocol, and the hash of the weights."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from scaledit import __version__, config
from scaledit.config import old
from scaledit.data.datasets import attribution
from scaledit.diffusion.guidance import active
from scaledit.errors import counted, printable
from scaledit.interop import diffusers_folder, hub
from scaledit.interop.infer import name_of
from scaledit.interop.model import Model
from scaledit.models import flops
from scaledit.models.config import IMAGENET_CLASSES
from scaledit.part import in_words

Usage = Literal["scaledit", "diffusers", "plain"]
SUFFIXES = ("_std", "_real")

WHERE, AUTOENCODER = "FOLDER_OR_HUB_ID", "AUTOENCODER"
"""Placeholders that the reader replaces: the location of this folder, and what decodes its latents."""
EQUAL = {
    "scaledit": "",
    "diffusers": (
        "transformer/exact_diffusers.py is diffusers' DiT with the official timestep frequencies (/128) and "
        "LayerNorm eps (1e-6): with it the outputs are those of scaledit and of the official program. Loaded "
        "as a plain DiTTransformer2DModel these weights are another function."
    ),
    "plain": (
        "diffusers' own DiT divides the timestep exponents by 127 instead of 128: with it these weights are "
        "another function than the one that was trained."
    ),
}


def plain(name: object) -> str:
    """A foreign name as text on one line, which opens or closes no tag, link, code or table cell."""
    return re.sub(r"([\\`*\[\]|~{}])", r"\\\1", html.escape(printable(name), quote=False))


def text(model: Model, results: Sequence[Mapping[str, Any]] = (), usage: Usage = "scaledit") -> str:
    """Markdown with the Hub's header and no local paths. The writer of the weights replaces "{sha256}".

    results: what `scaledit evaluate --json` wrote for this model.
    """
    run, shape = model.config, model.config.model
    counts = flops.count(shape)
    size = f"DiT, {counted(shape.depth, 'block')} of width {shape.hidden_size}, patch {shape.patch_size}"
    sampler = in_words(run.sample.sampler.to_json())
    guidance = in_words(_without_folders([part.to_json() for part in active(run.sample.guidance)]))
    lines = [
        "---",
        f"library_name: {'scaledit' if usage == 'scaledit' else 'diffusers'}",
        "pipeline_tag: unconditional-image-generation",
        "tags: [dit, diffusion-transformer, class-conditional]",
        "---",
        "",
        f"# {name_of(shape) or size}",
        "",
        f"{counts.params:,} trainable parameters, {counts.macs / 1e9:.4g} G multiply-adds per image; "
        f"input {shape.in_channels}x{shape.height}x{shape.width}, "
        f"{counted(shape.num_classes, 'class', 'classes')}, "
        f"{shape.block.label()}.",
        "",
        "```python",
        *loading(model, usage),
        "```",
        *(["", EQUAL[usage]] if EQUAL[usage] else []),
        "",
        "## Recipe",
        "",
        *_recipe(model),
        "",
        "## Data",
        "",
        *_data(model),
        "",
        "## Metrics",
        "",
        *(_metrics(results) or ["None were measured, or none were passed (`--metrics`)."]),
        "",
        "## Weights",
        "",
        "- SHA-256 of the weights file: `{sha256}`",
        f"- {'average (EMA) of the weights' if model.kind == 'ema' else 'weights as they were in the file'}"
        + (f" at step {model.step}" if model.step else ""),
        f"- written by scaledit {__version__}" + _origin(model),
        f"- default sampler: {sampler}; guidance: {guidance}",
        "",
    ]
    return "\n".join(lines)


def loading(model: Model, usage: Usage) -> list[str]:
    """Lines of Python that load the folder and sample from it, as far as the layout can."""
    config, info = model.config.model, model.autoencoder_info
    classes = [0, 1] if config.num_classes > 1 else [0]
    recorded = model.config.autoencoder.path
    if usage == "scaledit":
        if info is None or _is_hub_id(recorded or info.name):
            return ["import scaledit", "", f'images = scaledit.load("{WHERE}")({classes}, seed=0)']
        return [
            "import scaledit",
            "from scaledit.config import LatentConfig",
            "",
            f'decoder = LatentConfig(path="{AUTOENCODER}")',
            f'images = scaledit.load("{WHERE}", decoder=decoder)({classes}, seed=0)',
        ]
    trusted = "" if usage == "plain" else ", trust_remote_code=True"
    if not diffusers_folder.has_pipeline(model):
        kind = "DiTTransformer2DModel" if usage == "plain" else "AutoModel"
        return [
            f"from diffusers import {kind}",
            "",
            f'transformer = {kind}.from_pretrained("{WHERE}", subfolder="transformer"{trusted})',
        ]
    # DiTPipeline guides by default, with scale 4 and the null label 1000
    is_guided = config.has_null_label and (usage == "diffusers" or config.num_classes == IMAGENET_CLASSES)
    sampling = f"images = pipe({classes}{'' if is_guided else ', guidance_scale=1.0'}).images"
    if recorded:
        pipe = f'pipe = DiTPipeline.from_pretrained("{WHERE}"{trusted})'
        return ["from diffusers import DiTPipeline", "", pipe, sampling]
    return [
        "from diffusers import AutoencoderKL, DiTPipeline",
        "",
        f'vae = AutoencoderKL.from_pretrained("{AUTOENCODER}")',
        f'pipe = DiTPipeline.from_pretrained("{WHERE}", vae=vae{trusted})',
        sampling,
    ]


def _is_hub_id(name: str) -> bool:
    return bool(hub.ID.fullmatch(name)) and not Path(name).exists()


_PATH_IN_TEXT = re.compile(r"(?<![\w/.:])(?:~|\.\.?)?/[^\s,;:'\"()]+")


def _without_folders(value: Any) -> Any:
    """`value` with every local path, alone or within a sentence, replaced by its last name."""
    if isinstance(value, Mapping):
        return {key: _without_folders(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_without_folders(inner) for inner in value]
    if not isinstance(value, str) or "/" not in value.replace("\\", "/"):
        return value
    key, equals, rest = value.partition("=")
    if equals and re.fullmatch(r"[\w.]+", key):
        return f"{key}={_without_folders(rest)}"
    is_address = "://" in value
    if not is_address and (re.match(r"~|\.\.?[/\\]|[/\\]|[A-Za-z]:[/\\]", value) or Path(value).exists()):
        return re.split(r"[/\\]", value.rstrip("/\\"))[-1]
    return _PATH_IN_TEXT.sub(lambda path: path[0].rstrip("/").rpartition("/")[2], value)


def _origin(model: Model) -> str:
    if not model.source:
        return ""
    source = ", ".join(
        f"{plain(key)} {plain(_without_folders(value))}" for key, value in model.source.items()
    )
    return f"; converted from: {source}"


def _recipe(model: Model) -> list[str]:
    run, diffusion = model.config, model.config.diffusion
    objective = (
        f"schedule {diffusion.schedule.label()}, prediction {diffusion.prediction.label()}, objective "
        f"{diffusion.objective.label()}"
    )
    if diffusion.terms:
        objective += f" with {' and '.join(term.label() for term in diffusion.terms)}"
    if model.source:
        return [f"Trained elsewhere; the weights do not say how. Read as: {objective}."]
    changes = "".join(f" '{_without_folders(change)}'" for change in config.changes(run))
    is_known = run.name in config.recipe_names()
    return [
        *(["```", f"scaledit train {run.name}{changes}", "```", ""] if is_known else []),
        f"{counted(run.train.steps, 'step')} of {run.train.batch_size}, {run.optimizer.algorithm.TITLE} at "
        f"{run.optimizer.learning_rate}, EMA {run.ema.decay}, seed {run.train.seed}, precision "
        f"{run.train.precision}; {objective}. The full config is in config.json.",
        *_breaks(model),
    ]


def _breaks(model: Model) -> list[str]:
    """A sentence on the steps from which the training had other settings, if there are any."""
    changed = {
        item["step"]: [change for change in item["changes"] if config.changes_training(change)]
        for item in model.breaks
    }
    said = [
        f"from step {step} on {plain('; '.join(changes))}" for step, changes in changed.items() if changes
    ]
    return (
        ["", f"These are the last settings; they changed during training: {', '.join(said)}."] if said else []
    )


def _data(model: Model) -> list[str]:
    run, names, info = model.config, model.class_names, model.autoencoder_info
    is_numbered = all(name == str(i) for i, name in enumerate(names))
    listed = ", ".join(map(plain, names[:20])) + (", ..." if len(names) > 20 else "")
    credit = "" if model.source else attribution(run.data.name, names)
    lines = [
        f"- data: {run.data.name}" if not model.source else "- data: not known from the weights",
        *([f"- training images: by {credit}"] if credit else []),
        f"- classes: {len(names)}" + ("" if is_numbered else f" ({listed})"),
    ]
    if info is None:
        return [*lines, "- pixels"]
    autoencoder = (
        _without_folders(run.autoencoder.path or info.name) or "not recorded; pass one with --decoder"
    )
    return [
        *lines,
        f"- latents of {counted(info.channels, 'channel')} at 1/{info.downsampling}, scale {info.scale}; "
        f"autoencoder: {plain(autoencoder)}",
    ]


def _metrics(results: Sequence[Mapping[str, Any]]) -> list[str]:
    """One table per result, then how it was measured."""
    lines: list[str] = []
    for result in results:
        metrics = {
            key: value
            for key, value in result.items()
            if isinstance(value, int | float) and not isinstance(value, bool) and not key.endswith(SUFFIXES)
        }
        lines += ["| metric | value | sd over seeds | real images |", "|---|---|---|---|"]
        for key, value in metrics.items():
            others = [result.get(f"{key}{suffix}") for suffix in SUFFIXES]
            cells = [f"{other:.4g}" if isinstance(other, int | float) else "" for other in others]
            lines.append(f"| {plain(key)} | {value:.4g} | {' | '.join(cells)} |")
        protocol = _without_folders(old.protocol(result.get("protocol", {})))
        lines += ["", "Protocol: `{}`".format(json.dumps(protocol).replace("`", "\\u0060")), ""]
        lines += [f"- {plain(_without_folders(warning))}" for warning in result.get("warnings", [])]
    return lines
