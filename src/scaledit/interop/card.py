"""The model card: recipe, data, metrics with their protocol, and the hash, for the Hub (README.md)."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from scaledit import __version__, config
from scaledit.config import old
from scaledit.errors import printable
from scaledit.interop import diffusers_folder, hub
from scaledit.interop.infer import name_of
from scaledit.interop.model import Model
from scaledit.models import flops
from scaledit.models.config import IMAGENET_CLASSES
from scaledit.part import in_words

Usage = Literal["scaledit", "diffusers", "plain"]
SUFFIXES = ("_std", "_real")

WHERE, AUTOENCODER = "FOLDER_OR_HUB_ID", "AUTOENCODER"
"""What a reader puts in place of these words: where this folder is, and what decodes its latents."""
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
    """A foreign name as text of one line: it opens or closes no tag, no link, no code, no table's cell."""
    return re.sub(r"([\\`*\[\]|~{}])", r"\\\1", html.escape(printable(name), quote=False))


def text(model: Model, results: Sequence[Mapping[str, Any]] = (), usage: Usage = "scaledit") -> str:
    """Markdown with the Hub's header, without folders of this machine. "{sha256}" stands where the hash
    comes in when the weights are written.

    results: what `scaledit evaluate --json` wrote of this model.
    """
    run, shape = model.config, model.config.model
    counts = flops.count(shape)
    library = "scaledit" if usage == "scaledit" else "diffusers"
    title = (
        name_of(shape) or f"DiT, {shape.depth} blocks of width {shape.hidden_size}, patch {shape.patch_size}"
    )
    lines = [
        "---",
        f"library_name: {library}",
        "pipeline_tag: unconditional-image-generation",
        "tags: [dit, diffusion-transformer, class-conditional]",
        "---",
        "",
        f"# {title}",
        "",
        f"{counts.params:,} trainable parameters, {counts.macs / 1e9:.4g} G multiply-adds an image; "
        f"input {shape.in_channels}x{shape.height}x{shape.width}, {shape.num_classes} classes, "
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
        *(_metrics(results) or ["None were measured, or none were handed in (`--metrics`)."]),
        "",
        "## Weights",
        "",
        "- SHA-256 of the weights file: `{sha256}`",
        f"- {'average (EMA) of the weights' if model.kind == 'ema' else 'weights as they were in the file'}"
        + (f" at step {model.step}" if model.step else ""),
        f"- written by scaledit {__version__}" + _came_from(model),
        f"- sampled, unless told otherwise, with {in_words(run.sample.sampler.to_json())}; guidance: "
        f"{in_words([part.to_json() for part in run.sample.guidance if not part.idle])}",
        "",
    ]
    return "\n".join(lines)


def loading(model: Model, usage: Usage) -> list[str]:
    """Lines of Python that open the folder and draw with it, as far as the layout can."""
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
    # DiTPipeline guides by 4 unless told otherwise, away from the label 1000
    is_guided = config.has_null_label and (usage == "diffusers" or config.num_classes == IMAGENET_CLASSES)
    draw = f"images = pipe({classes}{'' if is_guided else ', guidance_scale=1.0'}).images"
    if recorded:
        pipe = [f'pipe = DiTPipeline.from_pretrained("{WHERE}"{trusted})']
        return ["from diffusers import DiTPipeline", "", *pipe, draw]
    return [
        "from diffusers import AutoencoderKL, DiTPipeline",
        "",
        f'vae = AutoencoderKL.from_pretrained("{AUTOENCODER}")',
        f'pipe = DiTPipeline.from_pretrained("{WHERE}", vae=vae{trusted})',
        draw,
    ]


def _is_hub_id(where: str) -> bool:
    return bool(hub.ID.fullmatch(where)) and not Path(where).exists()


_INSIDE = re.compile(r"(?<![\w/.:])(?:~|\.\.?)?/[^\s,;:'\"()]+")
"""A path within a sentence."""


def _named(value: Any) -> Any:
    """`value` without the folders of this machine: of paths, and of those in it, the names only."""
    if isinstance(value, Mapping):
        return {key: _named(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_named(inner) for inner in value]
    if not isinstance(value, str) or "/" not in value.replace("\\", "/"):
        return value
    key, equals, rest = value.partition("=")
    if equals and re.fullmatch(r"[\w.]+", key):
        return f"{key}={_named(rest)}"
    is_address = "://" in value
    if not is_address and (re.match(r"~|\.\.?[/\\]|[/\\]|[A-Za-z]:[/\\]", value) or Path(value).exists()):
        return re.split(r"[/\\]", value.rstrip("/\\"))[-1]
    return _INSIDE.sub(lambda found: found[0].rstrip("/").rpartition("/")[2], value)


def _came_from(model: Model) -> str:
    if not model.source:
        return ""
    said = ", ".join(f"{plain(key)} {plain(_named(value))}" for key, value in model.source.items())
    return f"; converted from: {said}"


def _recipe(model: Model) -> list[str]:
    run = model.config
    if model.source:
        return [f"Trained elsewhere; the weights do not say how. Read as: {_read_as(run.diffusion)}."]
    changes = config.changes(run)
    command = f"scaledit train {run.name}" + "".join(f" '{_named(change)}'" for change in changes)
    is_known = run.name in config.recipe_names()
    return [
        *(["```", command, "```", ""] if is_known else []),
        f"{run.train.steps} steps of {run.train.batch_size}, {run.optimizer.algorithm.TITLE} at "
        f"{run.optimizer.learning_rate}, EMA {run.ema.decay}, seed {run.train.seed}, precision "
        f"{run.train.precision}; {_read_as(run.diffusion)}. All of it: config.json.",
    ]


def _read_as(diffusion: config.DiffusionConfig) -> str:
    return (
        f"schedule {diffusion.schedule.label()}, prediction {diffusion.prediction.label()}, objective "
        f"{diffusion.objective.label()}"
    )


def _data(model: Model) -> list[str]:
    run, names = model.config, model.class_names
    said = [f"- data: {run.data.name}" if not model.source else "- data: not known from the weights"]
    numbered = all(name == str(i) for i, name in enumerate(names))
    shown = ", ".join(map(plain, names[:20])) + (", ..." if len(names) > 20 else "")
    said.append(f"- classes: {len(names)}" + ("" if numbered else f" ({shown})"))
    if model.autoencoder_info is None:
        said.append("- pixels")
    else:
        made = model.autoencoder_info
        where = _named(run.autoencoder.path or made.name) or "not recorded; give one with --decoder"
        said.append(
            f"- latents of {made.channels} channels at 1/{made.downsampling}, scale {made.scale}; "
            f"autoencoder: {plain(where)}"
        )
    return said


def _metrics(results: Sequence[Mapping[str, Any]]) -> list[str]:
    """A table a result, then how it was measured."""
    lines: list[str] = []
    for result in results:
        figures = {
            key: value
            for key, value in result.items()
            if isinstance(value, int | float) and not isinstance(value, bool) and not key.endswith(SUFFIXES)
        }
        lines += ["| metric | value | sd over seeds | real images |", "|---|---|---|---|"]
        for key, value in figures.items():
            others = [result.get(f"{key}{suffix}") for suffix in SUFFIXES]
            shown = [f"{other:.4g}" if isinstance(other, int | float) else "" for other in others]
            lines.append(f"| {plain(key)} | {value:.4g} | {' | '.join(shown)} |")
        said = old.protocol(result.get("protocol", {}))
        protocol = json.dumps(_named(said)).replace("`", "\\u0060")
        lines += ["", f"Protocol: `{protocol}`", ""]
        lines += [f"- {plain(_named(warning))}" for warning in result.get("warnings", [])]
    return lines
