"""The model card: recipe, data, metrics with their protocol, and the hash, for the Hub (README.md)."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from scaledit import __version__, config
from scaledit.errors import printable
from scaledit.interop.infer import name_of
from scaledit.interop.model import Model
from scaledit.models import flops

Usage = Literal["scaledit", "diffusers", "plain"]
SUFFIXES = ("_std", "_real")

LOADING = {
    "scaledit": 'import scaledit\n\nimages = scaledit.load("FOLDER_OR_HUB_ID")([0, 1], seed=0)',
    "diffusers": (
        "from diffusers import DiTPipeline\n\n"
        'pipe = DiTPipeline.from_pretrained("FOLDER_OR_HUB_ID", trust_remote_code=True)'
    ),
    "plain": 'from diffusers import DiTPipeline\n\npipe = DiTPipeline.from_pretrained("FOLDER_OR_HUB_ID")',
}
EQUAL = {
    "scaledit": "",
    "diffusers": (
        "transformer/exact_diffusers.py is diffusers' DiT with the official timestep frequencies (/128) and "
        "LayerNorm eps (1e-6): with it the outputs are those of scaledit and of the official program. Loaded "
        "as a plain DiTTransformer2DModel these weights are another function. Where the folder has no vae, "
        "from_pretrained takes one: vae=AutoencoderKL.from_pretrained(...)."
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
    """Markdown with the Hub's header. "{sha256}" stands where the hash comes in when the weights are written.

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
        f"{shape.conditioning}.",
        "",
        "```python",
        LOADING[usage],
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
        f"- sampled, unless told otherwise, with {run.sample.sampler}, {run.sample.steps} steps, guidance "
        f"{run.sample.cfg_scale}",
        "",
    ]
    return "\n".join(lines)


def _came_from(model: Model) -> str:
    if not model.source:
        return ""
    said = ", ".join(f"{plain(key)} {plain(value)}" for key, value in model.source.items())
    return f"; converted from: {said}"


def _recipe(model: Model) -> list[str]:
    run = model.config
    if model.source:
        return [
            "Trained elsewhere; the weights do not say how. Read as: "
            f"schedule {run.diffusion.schedule}, prediction {run.diffusion.prediction}, objective "
            f"{run.diffusion.objective}."
        ]
    changes = config.changes(run)
    command = f"scaledit train {run.name}" + "".join(f" '{change}'" for change in changes)
    is_known = run.name in config.recipe_names()
    return [
        *(["```", command, "```", ""] if is_known else []),
        f"{run.train.steps} steps of {run.train.batch_size}, AdamW at {run.optimizer.learning_rate}, EMA "
        f"{run.ema.decay}, seed {run.train.seed}, precision {run.train.precision}; schedule "
        f"{run.diffusion.schedule}, prediction {run.diffusion.prediction}, objective "
        f"{run.diffusion.objective}. All of it: config.json.",
    ]


def _data(model: Model) -> list[str]:
    run, names = model.config, model.class_names
    said = [f"- data: {run.data.name}" if not model.source else "- data: not known from the weights"]
    numbered = all(name == str(i) for i, name in enumerate(names))
    shown = ", ".join(map(plain, names[:20])) + (", ..." if len(names) > 20 else "")
    said.append(f"- classes: {len(names)}" + ("" if numbered else f" ({shown})"))
    if model.made_by is None:
        said.append("- pixels")
    else:
        made = model.made_by
        where = run.autoencoder.path or made.name or "not recorded; give one with --decoder"
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
        lines += [
            "",
            "Protocol: `" + json.dumps(result.get("protocol", {})).replace("`", "\\u0060") + "`",
            "",
        ]
        lines += [f"- {plain(warning)}" for warning in result.get("warnings", [])]
    return lines
