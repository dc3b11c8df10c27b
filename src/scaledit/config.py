"""What a run is: one frozen dataclass a section, read from a recipe (TOML), written to config.json.

    recipe (TOML, may extend another)  +  section.key=value overrides  ->  RunConfig  ->  config.json

Imports no torch, so that a wrong name is answered at once.
"""

from __future__ import annotations

import dataclasses
import json
import math
import tomllib
import types
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal, Self, TypeVar, Union, get_args, get_origin, get_type_hints

from scaledit import checks, part
from scaledit.data.datasets import DataSet
from scaledit.errors import UsageError, did_you_mean, reading, reason, shown
from scaledit.files.reading import check_depth
from scaledit.models.config import DiTConfig
from scaledit.part import YOURS, Allowed, nested_of

RECIPES = Path(__file__).parent / "recipes"

SamplerName = Literal["ddpm", "ddim", "dpm", "unipc", "heun", "euler"]
"""What samplers are called; `assemble.SAMPLERS` says which they are."""
CfgChannels = Literal["3", "all"]
"""Which channels are guided: the first three, as in the paper's figures, or all."""
MOST_STEPS = 1_000_000
"""Of a schedule, and of sampling: each is a number in memory, and in sampling a pass of the network."""


@dataclass(frozen=True)
class DiffusionConfig:
    """Which parts of scaledit.diffusion the model is trained and sampled with.

    schedule: "interpolant" is the flow of a network that is told 1 - t, as SiT's. objective: "hybrid" trains
    a learned variance (and implies model.learn_sigma), "simple" none.
    """

    schedule: Literal["linear", "cosine", "quadratic", "flow", "interpolant"] = "linear"
    steps: int = 1000
    prediction: Literal["epsilon", "velocity", "start"] = "epsilon"
    objective: Literal["simple", "hybrid"] = "hybrid"
    times: Literal["uniform", "logit_normal", "loss_second_moment"] = "uniform"


@dataclass(frozen=True)
class DataConfig:
    """name: a data set of scaledit.data.datasets: "digits" or "photos" (built in); or, with path, "images" (a
    folder a class, tar shards, Parquet, a .zip: read at image_size squared) or "latents" (what `scaledit
    encode` made, every byte of it checked before training where `verify`); or MODULE:CLASS of one's own.

    split: of images that are kept in several, "" for train, "all" for all as one set. image_key: which file
    of a WebDataset sample is the image ("jpg"), where there are several.

    workers: processes a rank that read ahead, 0 for none. The built-in sets lie in memory and need none.
    background: of images, what is seen where they are transparent: "white", "black", "#rrggbb", "drop" (the
    alpha channel is ignored, as it was before there was this key), or "": what the run began with, white for
    a new one. (data.background knows the words.)
    changed: what a resumed run does where the data is not what it was trained on so far: "refuse", or
    "accept", which goes on and says so in the log.
    own: the fields of a set of the user's own, which has none of the above but workers and changed. In a
    recipe and in config.json they stand beside those.
    """

    name: str = "digits"
    path: str = ""
    flip: bool = False
    image_size: int = 0
    workers: int = 2
    verify: bool = True
    background: str = ""
    split: str = ""
    image_key: str = ""
    changed: Literal["refuse", "accept"] = "refuse"
    own: Mapping[str, Any] = field(default_factory=dict, hash=False)


OF_ANY_DATA = ("name", "workers", "changed")
"""Keys of [data] that every set has; the others are the set's own fields."""


@dataclass(frozen=True)
class LatentConfig:
    """Between pictures and what the model makes.

    path: the autoencoder: a folder, a hub id, or "" for the one that made data.path (and, for images, none).
    compare: another decoder of the same latents, which the report shows beside it. precision, tiled: of
    decoding.
    """

    path: str = ""
    compare: str = ""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    tiled: bool = False


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW. The learning rate rises linearly over warmup_steps, then follows `decay` to zero at
    train.steps ("constant" stays). clip: largest gradient norm, 0 for off."""

    learning_rate: float = 1e-4
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.0
    warmup_steps: int = 0
    decay: Literal["constant", "cosine", "linear"] = "constant"
    clip: float = 0.0


@dataclass(frozen=True)
class TrainConfig:
    """batch_size is the global batch, whatever the number of ranks; each rank goes through its share in
    `accumulate` micro-batches.

    max_skips: non-finite steps in a row after which the run stops. spike: a loss that lies so many standard
    deviations above the median of the steps before is flagged with its samples, 0 for never; rollback: and
    then the run goes back to its last checkpoint and on with the batches after the spike.
    """

    steps: int = 400_000
    batch_size: int = 256
    accumulate: int = 1
    seed: int = 0
    precision: Literal["fp32", "tf32", "bf16"] = "fp32"
    log_every: int = 100
    max_skips: int = 5
    spike: float = 10.0
    rollback: bool = False


@dataclass(frozen=True)
class EngineConfig:
    """How training is computed, not what: nothing here changes the result but for rounding.

    parallel: what several ranks do: "ddp" copies the model, "fsdp" shards weights, gradients and optimizer
    over all of them, "hybrid" shards within a machine and copies between machines. recompute: activations
    that the backward pass makes anew: "none", those inside "blocks", or "selective": all but the results of
    products and attention. compile: each block by torch.compile. timeout: seconds without any progress after
    which the job is ended with the name of what is stuck.
    """

    parallel: Literal["ddp", "fsdp", "hybrid"] = "ddp"
    recompute: Literal["none", "blocks", "selective"] = "none"
    compile: bool = False
    timeout: float = 600.0


@dataclass(frozen=True)
class EMAConfig:
    """warmup: the decay of step n is min(decay, (1 + n) / (10 + n)), for runs too short for `decay`."""

    decay: float = 0.9999
    warmup: bool = False


@dataclass(frozen=True)
class CheckpointConfig:
    """every: steps between checkpoints. keep: how many of the newest stay, at least 2, and keep_every: those
    of steps that it divides stay as well (0 for none). background: write while training goes on."""

    every: int = 10_000
    keep: int = 3
    keep_every: int = 0
    background: bool = True


@dataclass(frozen=True)
class SampleConfig:
    """How the run's own pictures are drawn (and what `scaledit sample` does unless told otherwise).

    every: steps between sample grids in training, 0 for none. sampler, steps: which of scaledit.diffusion's,
    in how many steps (times even in log-SNR for dpm and unipc on chains of betas, the official ones
    otherwise). cfg_channels: "3" or "all". What may be said is `check_sampling`'s to say.
    """

    every: int = 10_000
    per_class: int = 8
    classes: int = 10
    sampler: SamplerName = "ddpm"
    steps: int = 250
    cfg_scale: float = 1.0
    cfg_channels: CfgChannels = "3"
    seed: int = 0

    def grid_classes(self, num_classes: int) -> list[int]:
        """The classes of a sample grid, row after row: the first `classes`, `per_class` times each."""
        return [c for c in range(min(self.classes, num_classes)) for _ in range(self.per_class)]


@dataclass(frozen=True)
class EvaluateConfig:
    """How the run is judged: every so many steps in training (0 for never), and by `scaledit evaluate RUN`.

    reference: "digits", or a path: ADM's .npz, or real images. inception, dinov2: where the extractor's
    weights are (docs/evaluation.md). metrics: names separated by commas, empty for all. num: images a seed;
    seeds: how many of them, from `seed` on. labels: the rule of sampling.request. Sampler and steps are
    [sample]'s.
    """

    every: int = 0
    reference: str = ""
    inception: str = ""
    any_inception: bool = False
    dinov2: str = ""
    metrics: str = ""
    precision: Literal["fp32", "adm_fp16"] = "fp32"
    num: int = 50_000
    seeds: int = 1
    seed: int = 1
    labels: Literal["equal", "real", "uniform"] = "uniform"
    cfg_scale: float = 1.0
    batch_size: int = 125


@dataclass(frozen=True)
class LogConfig:
    """Who else is told what log.jsonl is told (scaledit.training.trackers).

    tensorboard: event files in the run folder's tensorboard/. wandb: a Weights & Biases project, or
    ENTITY/PROJECT, "" for none. wandb_mode: "auto" is what WANDB_MODE says, else online, as everywhere with
    W&B; "offline" writes the run folder's wandb/ only, for `wandb sync`.
    """

    tensorboard: bool = False
    wandb: str = ""
    wandb_mode: Literal["auto", "online", "offline"] = "auto"


class Config:
    """What the configs of all kinds of runs share: a frozen dataclass of `name` (the recipe's) and sections.

    TRAINS: the recipe's own word for what it trains (`trains = "autoencoder"`; "model" where it says none).
    """

    TRAINS: ClassVar[str]
    name: str
    data: DataConfig
    optimizer: OptimizerConfig
    train: TrainConfig
    checkpoint: CheckpointConfig
    engine: EngineConfig
    log: LogConfig

    def to_json(self) -> dict[str, Any]:
        """Plain values; `from_json` is its inverse. Keys of [data] that earlier versions did not have are
        left out where they say nothing, so that configs of old and new, and what is compared by them, agree.
        """
        value = json.loads(json.dumps(_plain(self)))
        for key in ("background", "split", "image_key", "changed"):
            if value["data"][key] == getattr(DataConfig, key):
                del value["data"][key]
        own = value["data"].pop("own")
        if ":" in self.data.name:
            shared = {key: value["data"][key] for key in OF_ANY_DATA if key in value["data"]}
            value["data"] = {**shared, **own}
        return value

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Self:
        """Raises UsageError for an unknown section or key, and for values of the wrong kind."""
        parts = sections(cls, value)
        return cls(**{"name": _name(value), **parts})


Kind = TypeVar("Kind", bound=Config)
COMMANDS = {"model": "scaledit train", "autoencoder": "scaledit autoencoder train"}
"""What to call with a recipe, by what it trains."""


@dataclass(frozen=True)
class RunConfig(Config):
    """The training of a diffusion model."""

    TRAINS: ClassVar[str] = "model"

    name: str
    model: DiTConfig
    diffusion: DiffusionConfig = field(default_factory=DiffusionConfig)
    data: DataConfig = field(default_factory=DataConfig)
    autoencoder: LatentConfig = field(default_factory=LatentConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    ema: EMAConfig = field(default_factory=EMAConfig)
    engine: EngineConfig = field(default_factory=EngineConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    sample: SampleConfig = field(default_factory=SampleConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    log: LogConfig = field(default_factory=LogConfig)

    def __post_init__(self) -> None:
        _check(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any], allowed: Allowed = YOURS) -> RunConfig:
        """Raises UsageError, as that of all configs. allowed: which modules may be imported for parts that
        the config names."""
        try:
            parts = sections(cls, value, but="model")
            model = _model(value.get("model", {}), parts["diffusion"], allowed)
            return cls(name=_name(value), model=model, **parts)
        except UsageError:
            raise
        except (TypeError, ValueError, ArithmeticError) as error:  # 1e400 for a width, say
            raise UsageError(f"this is no config of a run: {error}") from None


# These say how often a run looks at itself, not what it computes; a resumed run may change them.
FREE_ON_RESUME = (
    "checkpoint.",
    "engine.",
    "sample.",
    "evaluate.",
    "log.",
    "autoencoder.",  # what made the latents is compared by its hash
    "train.accumulate",  # rounding, as engine: where memory ran out a run goes on with more
    "train.log_every",
    "train.max_skips",
    "train.spike",
    "train.rollback",
    "data.path",
    "data.workers",
    "data.verify",
    "data.changed",
)


def differences(old: Config, new: Config) -> list[str]:
    """'section.key: old -> new' for all that would make `new` another training than `old`."""
    before, after = flatten(old.to_json()), flatten(new.to_json())
    # Without a decay, the number of steps only says when to stop.
    free = (*FREE_ON_RESUME, "train.steps") if new.optimizer.decay == "constant" else FREE_ON_RESUME
    return [
        f"{key}: {before.get(key, 'not set')} -> {after.get(key, 'not set')}"
        for key in sorted(before.keys() | after.keys())
        if before.get(key) != after.get(key) and key != "name" and not key.startswith(free)
    ]


def changes(config: Config) -> list[str]:
    """The overrides that make `config` of the recipe it is named after; empty if there is no such recipe."""
    if config.name not in recipe_names(config.TRAINS):
        return []
    own = flatten(load(config.name, kind=type(config)).to_json())
    return [
        f"{key}={json.dumps(value)}"
        for key, value in flatten(config.to_json()).items()
        if own.get(key) != value
    ]


def flatten(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{'section.key': value} of nested tables."""
    flat: dict[str, Any] = {}
    for key, inner in value.items():
        if isinstance(inner, Mapping):
            flat |= flatten(inner, f"{prefix}{key}.")
        else:
            flat[prefix + key] = inner
    return flat


def recipe_names(trains: str | None = "model") -> list[str]:
    """The recipes that come with scaledit and train such a thing; all of them for None."""
    names = sorted(path.stem for path in RECIPES.glob("*.toml"))
    return [name for name in names if trains is None or trained_by(name) == trains]


def trained_by(recipe: str) -> str:
    """What a recipe trains: a key of COMMANDS."""
    return _trains(_read(recipe), recipe)


def load(recipe: str, overrides: Iterable[str] = (), kind: type[Kind] = RunConfig) -> Kind:
    """The config of a recipe, by name or by path of a .toml file, with `section.key=value` overrides.

    Values are TOML (`train.steps=100`, `model.name="DiT-S/2"`); bare words are taken as strings.
    Raises UsageError for an unknown recipe, section or key, for values of the wrong kind, and for a recipe
    that trains something else.
    """
    table = _read(recipe)
    trains = _trains(table, recipe)
    if trains != kind.TRAINS:
        raise UsageError(f"{recipe} is a recipe of another kind; use {COMMANDS[trains]} {recipe}")
    table.pop("trains", None)
    for override in overrides:
        _apply(table, override, kind)
    table.setdefault("name", Path(recipe).stem)
    return kind.from_json(table)


def _trains(table: Mapping[str, Any], recipe: str) -> str:
    trains = table.get("trains", "model")
    if not isinstance(trains, str) or trains not in COMMANDS:
        raise UsageError(f"{recipe}: trains is {shown(trains)}{did_you_mean(shown(trains), COMMANDS)}")
    return trains


def _read(recipe: str, extended_by: tuple[str, ...] = ()) -> dict[str, Any]:
    """A recipe as tables, with what it extends merged in. A path it extends is relative to its own folder."""
    if recipe in extended_by:
        raise UsageError(f"recipes extend each other in a circle: {' -> '.join([*extended_by, recipe])}")
    is_path = recipe.endswith(".toml") or "/" in recipe
    path = Path(recipe) if is_path else RECIPES / f"{recipe}.toml"
    if not path.is_file():
        if is_path:
            raise UsageError(f"no recipe file {recipe}")
        raise UsageError(f"unknown recipe {recipe!r}{did_you_mean(recipe, recipe_names(None))}")
    table, _ = read_toml(path)
    for section, values in table.items():
        if section not in ("name", "extends", "trains") and not isinstance(values, Mapping):
            named = shown(section)[1:-1]
            raise UsageError(f"{path}: {named} must be a section, [{named}] with keys below it")
    base = table.pop("extends", None)
    if base is None:
        return table
    if not isinstance(base, str):
        raise UsageError(f"{path}: extends must be a recipe's name or path, got {shown(base)}")
    if base.endswith(".toml") or "/" in base:
        base = str((path.parent / base).resolve())
    return _merge(_read(base, (*extended_by, recipe)), table)


LARGEST_TOML = 1 << 20
"""Bytes; recipes and studies have a few thousand."""


def read_toml(path: Path) -> tuple[dict[str, Any], str]:
    """The tables of a TOML file, and its text. Raises UsageError."""
    with reading(path, "TOML", error=UsageError):
        if path.stat().st_size > LARGEST_TOML:
            raise ValueError(f"it has {path.stat().st_size / 1e6:.0f} MB")
        try:
            text = path.read_text(encoding="utf-8")
            table = tomllib.loads(text)
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise UsageError(f"{path} is not valid TOML: {error}") from None
        check_depth(table)
    return table, text


def _merge(base: dict[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    for key, value in changes.items():
        if isinstance(value, Mapping):
            there = base.get(key)
            base[key] = _merge(dict(there) if isinstance(there, Mapping) else {}, value)
        else:
            base[key] = value
    return base


def _apply(table: dict[str, Any], override: str, kind: type[Config]) -> None:
    key, equals, text = override.partition("=")
    section, dot, name = key.partition(".")
    if not equals or not dot or not name:
        raise UsageError(f"an override is section.key=value, as in train.steps=100; got {override!r}")
    if "\n" in text or name != name.strip():
        raise UsageError(f"an override is section.key=value without spaces or line breaks; got {override!r}")
    _known(section, _section_names(kind), "section")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
        check_depth(value)
    except tomllib.TOMLDecodeError:
        value = text
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{key} cannot be {shown(text)}: {reason(error)}") from None
    if key == "data.name" and isinstance(value, str) and ":" in value:
        before = table.get(section, {})
        shared = {name: before[name] for name in OF_ANY_DATA if name in before}
        table[section] = {**shared, **part.switched(DataSet, before, value)}
    table.setdefault(section, {})[name] = value


def _known(word: str, known: Iterable[str], what: str) -> None:
    known = list(known)
    if word not in known:
        raise UsageError(f"unknown {what} {shown(word)}{did_you_mean(word, known)}")


def _section_names(kind: type[Config]) -> list[str]:
    return [name for name in get_type_hints(kind) if name not in ("name", "TRAINS")]


def sections(kind: type[Config], table: Mapping[str, Any], but: str = "") -> dict[str, Any]:
    """The sections of a config class built from their tables, defaults where there is none; without `but`.

    Raises UsageError as `load` does.
    """
    names = _section_names(kind)
    if not isinstance(table, Mapping):
        raise UsageError(f"a config is a table of sections, got {shown(table)}")
    for section in table:
        if section != "name":
            _known(section, names, "section")
    hints = get_type_hints(kind)
    return {name: _section(hints[name], name, table.get(name, {})) for name in names if name != but}


def _section(kind: type, section: str, values: Mapping[str, Any]) -> Any:
    return kind(**_values(kind, section, values))


def _plain(config: Any) -> dict[str, Any]:
    """{name: plain value} of a dataclass of sections; a section that knows its own plain values says them."""
    values = {one.name: getattr(config, one.name) for one in dataclasses.fields(config)}
    return {
        name: value.to_json()
        if hasattr(value, "to_json")
        else dataclasses.asdict(value)
        if dataclasses.is_dataclass(value) and not isinstance(value, type)
        else value
        for name, value in values.items()
    }


def _values(kind: type, section: str, values: object, allowed: Allowed = YOURS) -> dict[str, Any]:
    if not isinstance(values, Mapping):
        raise UsageError(f"{section} must be a table of keys, got {shown(values)}")
    hints = get_type_hints(kind)
    out = {}
    if kind is DataConfig:
        values = _data(values)
    for key, value in values.items():
        _known(f"{section}.{key}", [f"{section}.{name}" for name in hints], "key")
        own = kind is DataConfig and key == "own"  # checked against the set's class where it is opened
        made = value if own else nested_of(allowed)(hints[key], f"{section}.{key}", value)
        out[key] = _value(hints[key], f"{section}.{key}", value) if made is NotImplemented else made
    return out


def _data(values: Mapping[str, Any]) -> Mapping[str, Any]:
    """[data] with a user's set's own fields apart. Raises UsageError for an unknown set."""
    name = values.get("name", DataConfig.name)
    if not isinstance(name, str):
        return values
    own = {key: value for key, value in values.items() if key not in OF_ANY_DATA}
    if ":" in name:  # what it takes is looked up where it is opened: a foreign config imports nothing
        return {**{key: value for key, value in values.items() if key not in own}, "own": own}
    if name not in part.names(DataSet) or "own" in values:
        key, said = ("name", name) if "own" not in values else ("own", values["own"])
        hint = did_you_mean(name, part.names(DataSet)) if key == "name" else "; there is no such key"
        raise UsageError(f"data.{key} is {shown(said)}{hint}")
    return values


def _name(table: Mapping[str, Any]) -> str:
    return _value(str, "name", table.get("name", "run"))


def _model(given: object, diffusion: DiffusionConfig, allowed: Allowed = YOURS) -> DiTConfig:
    """[model] is either a name of the paper with changes, or the fields of DiTConfig."""
    if not isinstance(given, Mapping):
        raise UsageError(f"model must be a table of keys, got {shown(given)}")
    values = dict(given)
    learned = diffusion.objective == "hybrid"
    values.setdefault("learn_sigma", learned)
    name, image_size = values.pop("name", None), values.pop("image_size", None)
    if name is None and image_size is not None:
        raise UsageError("model.image_size goes with model.name; use model.input_size otherwise")
    fields = _values(DiTConfig, "model", values, allowed)
    if name is not None:
        image_size = _value(int, "model.image_size", 256 if image_size is None else image_size)
        config = DiTConfig.named(_value(str, "model.name", name), image_size, **fields)
    else:
        required = [
            f.name
            for f in dataclasses.fields(DiTConfig)
            if f.default is dataclasses.MISSING and f.name not in fields
        ]
        if required:
            raise UsageError(f"[model] lacks {', '.join(required)} (or give model.name)")
        config = DiTConfig(**fields)
    if config.learn_sigma != learned:
        raise UsageError(
            f"model.learn_sigma={str(config.learn_sigma).lower()} does not fit "
            f'diffusion.objective="{diffusion.objective}": only the hybrid objective trains a variance; '
            f"change one of them"
        )
    return config


def _value(kind: Any, key: str, value: Any) -> Any:
    """`value` checked against a type of the sections above; ints are taken for floats."""
    origin = get_origin(kind)
    if origin is Literal:
        options = get_args(kind)
        if all(isinstance(option, str) for option in options) and not isinstance(value, Mapping | list):
            value = str(value) if not isinstance(value, int) or abs(value) < LARGEST else shown(value)
        if value not in options:
            raise UsageError(f"{key} is {shown(value)}{did_you_mean(shown(value), map(str, options))}")
        return value
    if origin in (Union, types.UnionType):
        for option in get_args(kind):
            try:
                return _value(option, key, value)
            except UsageError:
                continue
        raise UsageError(f"{key} cannot be {shown(value)}")
    if origin is tuple:
        parts = get_args(kind)
        if parts[-1] is Ellipsis:
            parts = parts[:1] * (len(value) if isinstance(value, list | tuple) else 1)
        if not isinstance(value, list | tuple) or len(value) != len(parts):
            raise UsageError(f"{key} must be a list of {len(parts)} values, got {shown(value)}")
        return tuple(_value(part, key, item) for part, item in zip(parts, value, strict=True))
    if isinstance(value, int) and not -LARGEST <= value < LARGEST:
        raise UsageError(f"{key} must be a number of at most 64 bits, got {shown(value)}")
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        names = {int: "a whole number", float: "a number", bool: "true or false", str: "a string"}
        raise UsageError(f"{key} must be {names.get(kind, kind)}, got {shown(value)}")
    if isinstance(value, str) and not _is_text(value):
        raise UsageError(f"{key} must be text that a file's name can hold, got {shown(value)}")
    return value


LARGEST = 1 << 63


def _is_text(value: str) -> bool:
    """Without NUL, and without halves of characters that are no bytes of a file's name."""
    try:
        value.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return False
    return "\0" not in value


TRAINING_BOUNDS: Mapping[str, float] = {
    "train.steps": 1,
    "train.batch_size": 1,
    "train.accumulate": 1,
    "train.log_every": 1,
    "train.max_skips": 1,
    "train.spike": 0,
    "engine.timeout": 1,
    "checkpoint.every": 1,
    "checkpoint.keep": 2,
    "checkpoint.keep_every": 0,
    "data.workers": 0,
    "data.image_size": 0,
    "optimizer.learning_rate": 0,
    "optimizer.warmup_steps": 0,
    "optimizer.weight_decay": 0,
    "optimizer.clip": 0,
}
"""Smallest values of what all kinds of runs have."""


def check_bounds(config: Config, at_least: Mapping[str, float]) -> None:
    """Raises UsageError where a 'section.key' is below its smallest value, or a float is not finite."""
    values = flatten(dataclasses.asdict(config))  # pyright: ignore[reportArgumentType]
    for key, smallest in at_least.items():
        if not values[key] >= smallest:
            raise UsageError(f"{key} must be at least {smallest}, got {values[key]}")
    for key, value in values.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise UsageError(f"{key} must be finite, got {value}")
    if config.data.background and config.data.name != "images":
        raise UsageError(
            f'data.background is for data.name="images"; {config.data.name} holds nothing transparent'
        )
    if any(not 0 <= beta < 1 for beta in config.optimizer.betas):
        raise UsageError(f"optimizer.betas must lie in [0, 1), got {list(config.optimizer.betas)}")


def _check(config: RunConfig) -> None:
    """Bounds of single keys and of keys together."""
    at_least = {
        **TRAINING_BOUNDS,
        "evaluate.every": 0,
        "evaluate.num": 2,
        "evaluate.seeds": 1,
        "evaluate.batch_size": 1,
    }
    check_bounds(config, at_least)
    if not 0 <= config.ema.decay < 1:
        raise UsageError(f"ema.decay must lie in [0, 1), got {config.ema.decay}")
    if config.train.batch_size % config.train.accumulate:
        raise UsageError(
            f"train.accumulate {config.train.accumulate} does not divide train.batch_size "
            f"{config.train.batch_size}"
        )
    checks.integer(config.diffusion.steps, "diffusion.steps", 2, MOST_STEPS)
    checks.seed(config.train.seed, "train.seed")
    checks.seed(config.evaluate.seed, "evaluate.seed")
    checks.seed(config.evaluate.seed + config.evaluate.seeds - 1, "evaluate.seed + evaluate.seeds - 1")
    check_sampling(config.sample, config.diffusion, "sample.")


def check_sampling(sample: SampleConfig, diffusion: DiffusionConfig, where: str = "") -> None:
    """Raises UsageError where images cannot be drawn so: the one place that says what [sample] may hold, for
    recipes, the command line and a pipeline's callers. where: what stands before a key's name in the
    message."""
    for key, lowest in (("every", 0), ("per_class", 1), ("classes", 1), ("steps", 1)):
        checks.integer(getattr(sample, key), where + key, lowest)
    checks.seed(sample.seed, where + "seed")
    checks.finite(sample.cfg_scale, where + "cfg_scale")
    if sample.cfg_channels not in (channels := get_args(CfgChannels)):
        hint = did_you_mean(str(sample.cfg_channels), channels)
        raise UsageError(f"{where}cfg_channels is {sample.cfg_channels!r}{hint}")
    if diffusion.schedule in ("flow", "interpolant"):
        checks.integer(sample.steps, where + "steps", 1, MOST_STEPS)
    elif sample.steps > diffusion.steps:
        raise UsageError(
            f"{where}steps {sample.steps} exceeds the schedule's own diffusion.steps {diffusion.steps}"
        )


def check_guidance(model: DiTConfig, cfg_scale: float, name: str = "cfg_scale") -> None:
    """Raises UsageError where guidance would lead away from a null label that was never trained, and warns
    where it leads nowhere."""
    if cfg_scale == 1:
        return
    if not model.has_null_label:
        raise UsageError(
            f"{name} is {cfg_scale:g}, and this model cannot be guided: with model.class_dropout 0 its null "
            f"label, which guidance leads away from, is never trained; use {name} 1 (no guidance)"
        )
    if model.num_classes == 1:
        warnings.warn(
            f"{name} is {cfg_scale:g}, and this model has one class: with the label and without it, it has "
            f"seen the same images, so that guidance only enlarges its errors; {name} 1 is no guidance",
            stacklevel=1,  # one place, so that Python says it once
        )
