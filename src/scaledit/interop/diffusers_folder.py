"""Folders of diffusers' DiTPipeline and DiTTransformer2DModel, in and out.

    folder/  model_index.json  scheduler/scheduler_config.json  vae/  README.md  scaledit.json
             transformer/  config.json  diffusion_pytorch_model[-00001-of-00003].safetensors
                           exact_diffusers.py  (the class that equals scaledit's; not in a plain folder)

scaledit.json holds what diffusers has no place for; it is believed only as far as it fits the weights.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from scaledit.callbacks import Progress
from scaledit.checkpoint import modern_state
from scaledit.config import NOTHING, DiffusionConfig, RunConfig
from scaledit.data.latents import AutoencoderInfo
from scaledit.diffusion import (
    X0,
    CosineBeta,
    Epsilon,
    LinearBeta,
    Parameterization,
    QuadraticBeta,
    Schedule,
    Velocity,
)
from scaledit.errors import UsageError, reading
from scaledit.files.manifest import sha256_of
from scaledit.files.reading import read_json
from scaledit.interop import diffusers_layout
from scaledit.interop.infer import Hints, config_of
from scaledit.interop.lazy_tensors import Lazy, checked_finite, open_safetensors, write_safetensors
from scaledit.interop.model import Model, decoded_by, described
from scaledit.interop.native import CARD, new_folder
from scaledit.interop.official import check_position, check_shapes
from scaledit.interop.pickled import open_pickled
from scaledit.part import Allowed

TRANSFORMER, SCHEDULER, VAE, INDEX, OURS = (
    "transformer",
    "scheduler",
    "vae",
    "model_index.json",
    "scaledit.json",
)
CONFIG, STEM = "config.json", "diffusion_pytorch_model"
CLASSES = (diffusers_layout.PLAIN, diffusers_layout.EXACT, "Transformer2DModel")
"""Transformer2DModel: what DiTTransformer2DModel was once part of; facebook/DiT-XL-2-256 still says so."""
BETAS: Mapping[type[Schedule], str] = {
    LinearBeta: "linear",
    QuadraticBeta: "scaled_linear",
    CosineBeta: "squaredcos_cap_v2",
}
PREDICTIONS: Mapping[type[Parameterization], str] = {
    Epsilon: "epsilon",
    Velocity: "v_prediction",
    X0: "sample",
}
SCHEDULER_CLASS = "DDIMScheduler"
EXACT_MODULE = "exact_diffusers"
EXACT_SOURCE = Path(__file__).with_name(f"{EXACT_MODULE}.py")
VERSION = "0.30.0"
"""The oldest diffusers that has DiTTransformer2DModel."""


def transformer_folder(path: Path) -> Path | None:
    """Where in `path` the transformer lies, None where `path` is no such folder."""
    for folder in (path / TRANSFORMER, path):
        if (folder / CONFIG).is_file() and _config(folder).get("_class_name") in CLASSES:
            return folder
    return None


def _config(folder: Path) -> dict[str, Any]:
    return read_json(folder / CONFIG, "the config of a diffusers model", error=UsageError)


def read(path: Path, hints: Hints, allow_nonfinite: bool = False, allowed: Allowed = NOTHING) -> Model:
    """allow_nonfinite: see `lazy_tensors.checked_finite`. allowed: see `RunConfig.from_json`. Raises
    UsageError for another model, or weights that do not fit the folder's config."""
    folder = transformer_folder(path)
    if folder is None:
        raise UsageError(f"{path} holds no DiT of diffusers: no {CONFIG} with one of {', '.join(CLASSES)}")
    theirs, (weights, files) = _config(folder), _weights(folder)
    weights, kept = checked_finite(weights, folder, allow_nonfinite)
    heads, side = theirs.get("num_attention_heads"), theirs.get("sample_size")
    classes = theirs.get("num_embeds_ada_norm", hints.num_classes)
    for key, value in (
        ("num_attention_heads", heads),
        ("sample_size", side),
        ("num_embeds_ada_norm", classes),
    ):
        if type(value) is not int and not (value is None and key == "num_embeds_ada_norm"):
            raise UsageError(f"{folder / CONFIG}: {key} must be a whole number, got {value!r:.60}")
    native = diffusers_layout.to_native(weights)
    shapes = {key: lazy.shape for key, lazy in native.items()}
    given = dataclasses.replace(hints, heads=heads, input_size=side, num_classes=classes)
    patches = weights.get(diffusers_layout.PATCHES)
    # diffusers' class has a row for the null label whatever the model was trained with
    config = config_of(shapes, given, None if patches is None else patches.shape, null_row=True)
    check_shapes(shapes, config)
    if diffusers_layout.POSITION in weights:
        check_position(weights[diffusers_layout.POSITION].read(), config)
    diffusion, notes = _diffusion(path)
    digests = [sha256_of(file) for file in files]
    sha256 = digests[0] if len(files) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()
    source = {"layout": "diffusers", "name": path.resolve().name, "sha256": sha256}
    model = dataclasses.replace(described(config, native, diffusion, source, (*kept, *notes)), sha256=sha256)
    model = _with_native_config(model, path / OURS, allowed)
    if theirs["_class_name"] != diffusers_layout.EXACT:
        model = model.noting(
            "diffusers itself runs these weights with other timestep frequencies (/127) and another eps; "
            "here they have the official program's function, which is theirs if they came from there"
        )
    vae = path / VAE
    return decoded_by(model, str(vae.resolve())) if (vae / CONFIG).is_file() else model


def _weights(folder: Path) -> tuple[dict[str, Lazy], list[Path]]:
    """Every tensor of one file, of shards, or of a pickle; and the files."""
    index, single = folder / f"{STEM}.safetensors.index.json", folder / f"{STEM}.safetensors"
    if single.is_file():
        return open_safetensors(single), [single]
    if index.is_file():
        places = read_json(index, "an index of weights", error=UsageError).get("weight_map")
        if not isinstance(places, dict) or not all(isinstance(name, str) for name in places.values()):
            raise UsageError(f"{index} has no weight_map")
        out: dict[str, Lazy] = {}
        for name in sorted(set(places.values())):
            if Path(name).name != name or not (folder / name).is_file():
                raise UsageError(f"{index} names {name[:100]!r}, which is no file beside it")
            shard = open_safetensors(folder / name)
            if shard.keys() != {key for key, place in places.items() if place == name}:
                raise UsageError(f"{folder / name} holds other weights than {index.name} says")
            out |= shard
        return out, [folder / name for name in sorted(set(places.values()))]
    if (folder / f"{STEM}.bin").is_file():
        parts = open_pickled(folder / f"{STEM}.bin").parts
        if set(parts) == {""}:
            return dict(parts[""]), [folder / f"{STEM}.bin"]
    raise UsageError(f"{folder} has no {single.name}, no shards of it and no readable {STEM}.bin")


def _diffusion(path: Path) -> tuple[DiffusionConfig, tuple[str, ...]]:
    """What the folder's scheduler says of the objective."""
    file = path / SCHEDULER / "scheduler_config.json"
    if not file.is_file():
        return DiffusionConfig(), (
            "no scheduler says how it was trained: read as the paper's (linear, epsilon)",
        )
    theirs = read_json(file, "a scheduler's config", error=UsageError)
    schedule, prediction = theirs.get("beta_schedule", ""), theirs.get("prediction_type", "epsilon")
    ends, steps = (theirs.get("beta_start"), theirs.get("beta_end")), theirs.get("num_train_timesteps", 1000)
    native = next((key for key, value in BETAS.items() if value == schedule), None)
    read_as = next((key for key, value in PREDICTIONS.items() if value == prediction), None)
    if (
        native is None
        or read_as is None
        or (native is not CosineBeta and ends != (1e-4, 0.02))
        or type(steps) is not int
    ):
        raise UsageError(
            f"{file} has a schedule that scaledit lacks: beta_schedule {schedule!s:.60}, betas {ends!s:.60}, "
            f"prediction_type {prediction!s:.60}, num_train_timesteps {steps!s:.60}"
        )
    try:
        return DiffusionConfig(native(steps), read_as()), ()
    except UsageError as error:
        raise UsageError(f"{file}: num_train_timesteps: {error}") from None


def _with_native_config(model: Model, path: Path, allowed: Allowed) -> Model:
    """What scaledit.json says, where it fits the weights."""
    if not path.is_file():
        return model
    with reading(path, "what scaledit writes", "delete it to go by the weights alone", UsageError):
        said = read_json(path, "what scaledit writes", "delete it to go by the weights alone", UsageError)
        said = modern_state(said)
        config = RunConfig.from_json(said["config"], allowed)
        names, info = tuple(map(str, said["class_names"])), said["autoencoder_info"]
        maker = None if info is None else AutoencoderInfo(**info)
        source, step, kind = dict(said["source"]) or model.source, int(said["step"]), str(said["kind"])
    found = dataclasses.replace(model.config.model, class_dropout=config.model.class_dropout)
    if config.model != found or len(names) != config.model.num_classes:
        raise UsageError(f"{path} does not fit the weights beside it; delete it to go by the weights alone")
    return dataclasses.replace(
        model,
        config=config,
        class_names=names,
        autoencoder_info=maker,
        step=step,
        source=source,
        kind=kind,
    )


class Written(NamedTuple):
    """sha256: of each file of weights. has_pipeline: whether DiTPipeline opens the folder."""

    sha256: dict[str, str]
    has_pipeline: bool


def write(
    model: Model, out: Path, card: str, progress: Progress, plain: bool = False, shard: int | None = None
) -> Written:
    """Writes a folder, whole or not at all. plain: for diffusers' own class, another function. shard: most
    bytes of a file of weights. Raises UsageError for what diffusers' DiT cannot be."""
    config = model.config.model
    weights = diffusers_layout.to_diffusers(model.weights, config)
    kind = diffusers_layout.PLAIN if plain else diffusers_layout.EXACT
    settings = diffusers_layout.transformer_config(config, kind, VERSION)
    if not plain:
        settings["auto_map"] = {"AutoModel": f"{EXACT_MODULE}.{kind}"}
    scheduler = _scheduler(model.config.diffusion)
    with new_folder(out) as folder:
        inner = folder / TRANSFORMER
        _put_json(inner / CONFIG, settings)
        if not plain:
            (inner / f"{EXACT_MODULE}.py").write_bytes(EXACT_SOURCE.read_bytes())
        sha256 = _write_weights(weights, inner, shard, progress)
        if scheduler is not None:
            _put_json(folder / SCHEDULER / "scheduler_config.json", scheduler)
        if has_pipeline(model):
            library = "diffusers" if plain else EXACT_MODULE
            index: dict[str, object] = {
                "_class_name": "DiTPipeline",
                "_diffusers_version": VERSION,
                "id2label": {str(i): name for i, name in enumerate(model.class_names)},
                "scheduler": ["diffusers", SCHEDULER_CLASS],
                "transformer": [library, kind],
            }
            if model.config.autoencoder.path:
                _copy_vae(model.config.autoencoder.path, folder / VAE)
                index["vae"] = ["diffusers", "AutoencoderKL"]
            _put_json(folder / INDEX, index)
        said = {
            "config": model.config.to_json(),
            "class_names": model.class_names,
            "autoencoder_info": None if model.autoencoder_info is None else model.autoencoder_info._asdict(),
            "step": model.step,
            "source": dict(model.source),
            "kind": model.kind,
        }
        _put_json(folder / OURS, said)
        (folder / CARD).write_bytes(card.replace("{sha256}", next(iter(sha256.values()))).encode())
    return Written(sha256, has_pipeline(model))


def has_pipeline(model: Model) -> bool:
    """Whether diffusers' DiTPipeline can sample such a model: latents, on a chain that it knows."""
    return model.autoencoder_info is not None and _scheduler(model.config.diffusion) is not None


def _scheduler(diffusion: DiffusionConfig) -> dict[str, object] | None:
    """A DDIM scheduler of the model's own chain; None for flows and chains that DiTPipeline cannot sample."""
    schedule, prediction = diffusion.schedule, diffusion.prediction
    known = BETAS.get(type(schedule))
    if (
        known is None
        or schedule != type(schedule)(1000)
        or type(prediction) not in PREDICTIONS
        or prediction != type(prediction)()
    ):
        return None
    return {
        "_class_name": SCHEDULER_CLASS,
        "_diffusers_version": VERSION,
        "beta_end": 0.02,
        "beta_schedule": known,
        "beta_start": 0.0001,
        "clip_sample": False,
        "num_train_timesteps": schedule.steps,
        "prediction_type": PREDICTIONS[type(prediction)],
        "set_alpha_to_one": True,
        "steps_offset": 0,
        "trained_betas": None,
    }


def _write_weights(
    weights: Mapping[str, Lazy], folder: Path, shard: int | None, progress: Progress
) -> dict[str, str]:
    total, done = sum(lazy.nbytes for lazy in weights.values()), 0

    def step(nbytes: int) -> None:
        nonlocal done
        done += nbytes
        progress(done, total)

    groups = _grouped(weights, shard)
    names = [f"{STEM}.safetensors"]
    if len(groups) > 1:
        names = [f"{STEM}-{i + 1:05d}-of-{len(groups):05d}.safetensors" for i in range(len(groups))]
    sha256 = {}
    for name, keys in zip(names, groups, strict=True):
        with (folder / name).open("wb") as file:
            sha256[name] = write_safetensors(file, {key: weights[key] for key in keys}, step).sha256
    if len(groups) > 1:
        places = {key: name for name, keys in zip(names, groups, strict=True) for key in keys}
        _put_json(
            folder / f"{STEM}.safetensors.index.json",
            {"metadata": {"total_size": total}, "weight_map": places},
        )
    return sha256


def _grouped(weights: Mapping[str, Lazy], most: int | None) -> Sequence[list[str]]:
    """Keys in order, a list a file of at most `most` bytes (or of one tensor that is larger)."""
    groups: list[list[str]] = [[]]
    room = most
    for key, lazy in weights.items():
        if room is not None and most is not None and lazy.nbytes > room and groups[-1]:
            groups.append([])
            room = most
        groups[-1].append(key)
        room = None if room is None else room - lazy.nbytes
    return groups


def _copy_vae(where: str, to: Path) -> None:
    from scaledit.autoencoders import kl

    folder = kl.find(where)
    to.mkdir()
    for name in (kl.CONFIG, kl.WEIGHTS):
        shutil.copyfile(folder / name, to / name)


def _put_json(path: Path, value: Mapping[str, object]) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_bytes((json.dumps(value, indent=2) + "\n").encode())
