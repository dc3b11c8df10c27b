"""Reads and writes folders of diffusers' DiTPipeline and DiTTransformer2DModel.

    folder/  model_index.json  scheduler/scheduler_config.json  vae/  README.md  scaledit.json
             transformer/  config.json  diffusion_pytorch_model[-00001-of-00003].safetensors
                           exact_diffusers.py  (the class that equals scaledit's; not in a plain folder)

scaledit.json holds what diffusers has no place for. It is accepted only if it fits the weights.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from scaledit.callbacks import Progress
from scaledit.checkpoint import modern_state
from scaledit.config import NOTHING, DiffusionConfig, RunConfig
from scaledit.data import imagenet
from scaledit.data.latents import AutoencoderInfo
from scaledit.diffusion import X0, CosineBeta, Epsilon, LinearBeta, QuadraticBeta, Velocity
from scaledit.errors import UsageError, reading
from scaledit.files.manifest import sha256_of
from scaledit.files.reading import read_json
from scaledit.interop import diffusers_layout
from scaledit.interop.infer import Hints, config_of
from scaledit.interop.lazy_tensors import Lazy, checked_finite, counting, open_safetensors, write_safetensors
from scaledit.interop.model import Model, decoded_by, from_weights
from scaledit.interop.native import CARD, new_folder
from scaledit.interop.official import check_position, check_shapes
from scaledit.interop.pickled import open_pickled
from scaledit.part import Allowed

TRANSFORMER, SCHEDULER, VAE = "transformer", "scheduler", "vae"
CONFIG, STEM, PIPELINE_INDEX, NATIVE_CONFIG = (
    "config.json",
    "diffusion_pytorch_model",
    "model_index.json",
    "scaledit.json",
)
WEIGHTS_INDEX = f"{STEM}.safetensors.index.json"
CLASSES = (diffusers_layout.PLAIN, diffusers_layout.EXACT, "Transformer2DModel")
"""DiTTransformer2DModel was part of Transformer2DModel once; facebook/DiT-XL-2-256 still names that class."""
BETAS: Mapping[type, str] = {
    LinearBeta: "linear",
    QuadraticBeta: "scaled_linear",
    CosineBeta: "squaredcos_cap_v2",
}
PREDICTIONS: Mapping[type, str] = {Epsilon: "epsilon", Velocity: "v_prediction", X0: "sample"}
SCHEDULER_CLASS = "DDIMScheduler"
EXACT_MODULE = "exact_diffusers"
EXACT_SOURCE = Path(__file__).with_name(f"{EXACT_MODULE}.py")
VERSION = "0.30.0"
"""The oldest diffusers that has DiTTransformer2DModel."""


def transformer_folder(path: Path) -> Path | None:
    """The folder of the transformer: `path` or one in it; None if there is no DiT of diffusers."""
    for folder in (path / TRANSFORMER, path):
        if (folder / CONFIG).is_file() and _config(folder).get("_class_name") in CLASSES:
            return folder
    return None


def _config(folder: Path) -> dict[str, Any]:
    return read_json(folder / CONFIG, "the config of a diffusers model", error=UsageError)


def read(path: Path, hints: Hints, allow_nonfinite: bool = False, allowed: Allowed = NOTHING) -> Model:
    """allow_nonfinite: see `lazy_tensors.checked_finite`. allowed: see `RunConfig.from_json`. Raises
    UsageError for another kind of model, and for weights that do not fit the folder's config."""
    folder = transformer_folder(path)
    if folder is None:
        raise UsageError(
            f"{path} contains no DiT of diffusers: it has no {CONFIG} with one of {', '.join(CLASSES)}"
        )
    settings, (weights, files) = _config(folder), _weights(folder)
    weights, notes = checked_finite(weights, folder, allow_nonfinite)
    heads, side = settings.get("num_attention_heads"), settings.get("sample_size")
    classes = settings.get("num_embeds_ada_norm", hints.num_classes)
    stated = {"num_attention_heads": heads, "sample_size": side, "num_embeds_ada_norm": classes}
    for key, value in stated.items():
        if type(value) is not int and not (value is None and key == "num_embeds_ada_norm"):
            raise UsageError(f"{folder / CONFIG}: {key} must be a whole number, got {value!r:.60}")
    native = diffusers_layout.to_native(weights)
    shapes = {key: lazy.shape for key, lazy in native.items()}
    hints = dataclasses.replace(hints, heads=heads, input_size=side, num_classes=classes)
    patches = weights.get(diffusers_layout.PATCHES)
    # diffusers' class has a row for the null label even if the model was trained without one
    config = config_of(shapes, hints, None if patches is None else patches.shape, null_row=True)
    check_shapes(shapes, config)
    if diffusers_layout.POSITION in weights:
        check_position(weights[diffusers_layout.POSITION].read(), config)
    diffusion, schedule_notes = _diffusion(path)
    digests = [sha256_of(file) for file in files]
    sha256 = digests[0] if len(files) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()
    source = {"layout": "diffusers", "name": path.resolve().name, "sha256": sha256}
    model = from_weights(config, native, diffusion, source, (*notes, *schedule_notes))
    names = _class_names(path / PIPELINE_INDEX, config.num_classes) or model.class_names
    model = _with_native_config(
        dataclasses.replace(model, sha256=sha256, class_names=names), path / NATIVE_CONFIG, allowed
    )
    if settings["_class_name"] != diffusers_layout.EXACT:
        model = model.noting(
            "diffusers itself runs these weights with other timestep frequencies (/127) and another eps; "
            "here they have the official program's function, which is right if they came from its files"
        )
    vae = path / VAE
    return decoded_by(model, str(vae.resolve())) if (vae / CONFIG).is_file() else model


def _class_names(index: Path, classes: int) -> tuple[str, ...] | None:
    """The names that the index of a pipeline gives to the classes, the first one of each; None if it names
    none of them, or only some."""
    if not index.is_file():
        return None
    with suppress(UsageError):  # an index that cannot be read names no class; the weights do not depend on it
        labels = read_json(index, "the index of a pipeline", error=UsageError).get("id2label")
        found = [labels.get(str(c)) if isinstance(labels, dict) else None for c in range(classes)]
        names = tuple(label.partition(",")[0].strip() for label in found if isinstance(label, str))
        if len(names) == classes and all(names) and names != tuple(map(str, range(classes))):
            return names
    return None


def _weights(folder: Path) -> tuple[dict[str, Lazy], list[Path]]:
    """Every tensor of one file, of shards, or of a pickle; and the files."""
    index, single, pickled = folder / WEIGHTS_INDEX, folder / f"{STEM}.safetensors", folder / f"{STEM}.bin"
    if single.is_file():
        return open_safetensors(single), [single]
    if index.is_file():
        places = read_json(index, "an index of weights", error=UsageError).get("weight_map")
        if not isinstance(places, dict) or not all(isinstance(name, str) for name in places.values()):
            raise UsageError(f"{index} has no weight_map")
        out: dict[str, Lazy] = {}
        names = sorted(set(places.values()))
        for name in names:
            if Path(name).name != name or not (folder / name).is_file():
                raise UsageError(f"{index} names {name[:100]!r}, which is not a file beside it")
            shard = open_safetensors(folder / name)
            if shard.keys() != {key for key, place in places.items() if place == name}:
                raise UsageError(f"{folder / name} contains other weights than {index.name} lists")
            out |= shard
        return out, [folder / name for name in names]
    if pickled.is_file():
        parts = open_pickled(pickled).parts
        if set(parts) == {""}:
            return dict(parts[""]), [pickled]
    raise UsageError(f"{folder} has no {single.name}, no shards of it and no readable {pickled.name}")


def _diffusion(path: Path) -> tuple[DiffusionConfig, tuple[str, ...]]:
    """What the folder's scheduler says about training, and notes for the user."""
    file = path / SCHEDULER / "scheduler_config.json"
    if not file.is_file():
        return DiffusionConfig(), (
            "no scheduler says how it was trained: read as the paper's (linear, epsilon)",
        )
    settings = read_json(file, "a scheduler's config", error=UsageError)
    betas, predicted = settings.get("beta_schedule", ""), settings.get("prediction_type", "epsilon")
    ends = settings.get("beta_start"), settings.get("beta_end")
    steps = settings.get("num_train_timesteps", 1000)
    schedule = next((part for part, name in BETAS.items() if name == betas), None)
    prediction = next((part for part, name in PREDICTIONS.items() if name == predicted), None)
    if (
        schedule is None
        or prediction is None
        or (schedule is not CosineBeta and ends != (1e-4, 0.02))
        or type(steps) is not int
    ):
        raise UsageError(
            f"{file} has a schedule that scaledit does not support: beta_schedule {betas!s:.60}, betas "
            f"{ends!s:.60}, "
            f"prediction_type {predicted!s:.60}, num_train_timesteps {steps!s:.60}"
        )
    try:
        return DiffusionConfig(schedule(steps), prediction()), ()
    except UsageError as error:
        raise UsageError(f"{file}: num_train_timesteps: {error}") from None


def _with_native_config(model: Model, path: Path, allowed: Allowed) -> Model:
    """The model with what scaledit.json states. Raises UsageError if that does not fit the weights."""
    if not path.is_file():
        return model
    kind, fix = "a file of scaledit", "delete it to go by the weights alone"
    with reading(path, kind, fix, UsageError):
        values = modern_state(read_json(path, kind, fix, UsageError))
        config = RunConfig.from_json(values["config"], allowed)
        info = values["autoencoder_info"]
        stated = dataclasses.replace(
            model,
            config=config,
            class_names=tuple(map(str, values["class_names"])),
            autoencoder_info=None if info is None else AutoencoderInfo(**info),
            step=int(values["step"]),
            source=dict(values["source"]) or model.source,
            kind=str(values["kind"]),
        )
    inferred = dataclasses.replace(model.config.model, class_dropout=config.model.class_dropout)
    if config.model != inferred or len(stated.class_names) != config.model.num_classes:
        raise UsageError(f"{path} does not fit the weights beside it; {fix}")
    return stated


def write(
    model: Model, out: Path, card: str, progress: Progress, plain: bool = False, shard: int | None = None
) -> str:
    """Writes a folder atomically and returns the SHA-256 of its first file of weights. card: the text of
    README.md, in which "{sha256}" is replaced. plain: for diffusers' own class, which computes a different
    function. shard: largest size of a file of weights in bytes. Raises UsageError for a model that diffusers'
    DiT does not support, and as `native.new_folder` does."""
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
            shutil.copyfile(EXACT_SOURCE, inner / EXACT_SOURCE.name)
        sha256 = _write_weights(weights, inner, shard, progress)
        if scheduler is not None:
            _put_json(folder / SCHEDULER / "scheduler_config.json", scheduler)
        if has_pipeline(model):
            index: dict[str, object] = {
                "_class_name": "DiTPipeline",
                "_diffusers_version": VERSION,
                "id2label": {str(i): label for i, label in enumerate(_labels(model.class_names))},
                "scheduler": ["diffusers", SCHEDULER_CLASS],
                "transformer": ["diffusers" if plain else EXACT_MODULE, kind],
            }
            if model.config.autoencoder.path:
                _copy_vae(model.config.autoencoder.path, folder / VAE)
                index["vae"] = ["diffusers", "AutoencoderKL"]
            _put_json(folder / PIPELINE_INDEX, index)
        native_config = {"config": model.config.to_json(), **model.state(), "step": model.step}
        _put_json(folder / NATIVE_CONFIG, native_config)
        (folder / CARD).write_bytes(card.replace("{sha256}", sha256).encode())
    return sha256


def _labels(class_names: tuple[str, ...]) -> tuple[str, ...]:
    """The classes as DiTPipeline finds them: all names of a class, separated by commas."""
    return imagenet.lemmas() if class_names == imagenet.names() else class_names


def has_pipeline(model: Model) -> bool:
    """Whether diffusers' DiTPipeline can sample the model: one of latents, with a schedule that it has."""
    return model.autoencoder_info is not None and _scheduler(model.config.diffusion) is not None


def _scheduler(diffusion: DiffusionConfig) -> dict[str, object] | None:
    """A DDIM scheduler of the model's own chain; None for flows and chains that DiTPipeline cannot sample."""
    schedule, prediction = diffusion.schedule, diffusion.prediction
    betas, predicted = BETAS.get(type(schedule)), PREDICTIONS.get(type(prediction))
    if betas is None or predicted is None:
        return None
    if schedule != type(schedule)(1000) or prediction != type(prediction)():
        return None
    return {
        "_class_name": SCHEDULER_CLASS,
        "_diffusers_version": VERSION,
        "beta_end": 0.02,
        "beta_schedule": betas,
        "beta_start": 0.0001,
        "clip_sample": False,
        "num_train_timesteps": schedule.steps,
        "prediction_type": predicted,
        "set_alpha_to_one": True,
        "steps_offset": 0,
        "trained_betas": None,
    }


def _write_weights(weights: Mapping[str, Lazy], folder: Path, shard: int | None, progress: Progress) -> str:
    """Writes one file, or shards with an index; returns the SHA-256 of the first."""
    groups, step = _grouped(weights, shard), counting(progress, weights)
    names = [f"{STEM}.safetensors"]
    if len(groups) > 1:
        names = [f"{STEM}-{i + 1:05d}-of-{len(groups):05d}.safetensors" for i in range(len(groups))]
    sha256 = []
    for name, keys in zip(names, groups, strict=True):
        with (folder / name).open("wb") as file:
            sha256.append(write_safetensors(file, {key: weights[key] for key in keys}, step).sha256)
    if len(groups) > 1:
        places = {key: name for name, keys in zip(names, groups, strict=True) for key in keys}
        total = sum(lazy.nbytes for lazy in weights.values())
        _put_json(folder / WEIGHTS_INDEX, {"metadata": {"total_size": total}, "weight_map": places})
    return sha256[0]


def _grouped(weights: Mapping[str, Lazy], most: int | None) -> Sequence[list[str]]:
    """The keys in order, one list per file of at most `most` bytes, or of one tensor that is larger."""
    groups: list[list[str]] = [[]]
    size = 0
    for key, lazy in weights.items():
        if most is not None and size + lazy.nbytes > most and groups[-1]:
            groups.append([])
            size = 0
        groups[-1].append(key)
        size += lazy.nbytes
    return groups


def _copy_vae(name: str, to: Path) -> None:
    from scaledit.autoencoders import kl

    folder = kl.find(name)
    to.mkdir()
    for file in (kl.CONFIG, kl.WEIGHTS):
        shutil.copyfile(folder / file, to / file)


def _put_json(path: Path, value: Mapping[str, object]) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_bytes((json.dumps(value, indent=2) + "\n").encode())
