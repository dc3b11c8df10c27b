"""What a run is: one frozen dataclass of sections, written to config.json and read from it.

RunConfig.from_json(config.to_json()) == config, with every part whole
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

from scaledit.config import tables
from scaledit.config.checks import check_run
from scaledit.config.sections import (
    CheckpointConfig,
    DataConfig,
    DiffusionConfig,
    EMAConfig,
    EngineConfig,
    EvaluateConfig,
    LatentConfig,
    LogConfig,
    OptimizerConfig,
    SampleConfig,
    TrainConfig,
)
from scaledit.config.tables import Table
from scaledit.errors import UsageError
from scaledit.models.config import DiTConfig
from scaledit.part import Allowed, plain
from scaledit.values import convert, own_fields

NOTHING = Allowed.only((), "this config")
"""May be imported for a config that came from elsewhere, unless somebody allows it."""


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
        sections = self.sections()
        value = {"name": self.name, **{key: plain(held) for key, held in sections.items()}}
        for key in ("background", "split", "image_key", "changed"):
            if value["data"].get(key) == getattr(DataConfig, key) and key not in self.data.own:
                value["data"].pop(key, None)
        return value

    def sections(self) -> dict[str, dict[str, Any]]:
        """{section: {key: value}}, with the parts as they are."""
        held = {key: getattr(self, key) for key in tables.section_types(type(self))}
        values = {
            key: {one.name: getattr(section, one.name) for one in own_fields(type(section))}
            for key, section in held.items()
        }
        values["data"] = self.data.flat()
        return values

    @classmethod
    def from_json(cls, value: Mapping[str, Any], allowed: Allowed = NOTHING) -> Self:
        """The config that `to_json` of this or an earlier version wrote.

        allowed: the modules that its parts may be imported from. Raises UsageError for an unknown section or
        key, for values of the wrong kind, and for a part of a module that is not allowed.
        """
        table: Table = {}
        tables.assign(cls, table, tables.assignments(value), allowed)
        return cls.of(table, value.get("name", "run"), allowed)

    @classmethod
    def of(cls, table: Table, name: object, allowed: Allowed) -> Self:
        """The config of tables that `tables.assign` made. Raises UsageError."""
        types = tables.section_types(cls)
        made = {key: tables.section(of, key, table.get(key, {}), allowed) for key, of in types.items()}
        return cls(**{"name": convert(str, "name", name), **made})

    def modules(self) -> frozenset[str]:
        """The modules outside of scaledit that its parts come from."""
        return tables.modules(self)


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
        check_run(self)

    @classmethod
    def of(cls, table: Table, name: object, allowed: Allowed) -> RunConfig:
        """Raises UsageError, as that of all configs."""
        types = tables.section_types(cls)
        try:
            made = {
                key: tables.section(of, key, table.get(key, {}), allowed)
                for key, of in types.items()
                if key != "model"
            }
            model = _model(table.get("model", {}), made["diffusion"], allowed)
            return cls(name=convert(str, "name", name), model=model, **made)
        except UsageError:
            raise
        except (TypeError, ValueError, ArithmeticError) as error:  # 1e400 for a width, say
            raise UsageError(f"this is no config of a run: {error}") from None


def _model(given: Mapping[str, Any], diffusion: DiffusionConfig, allowed: Allowed) -> DiTConfig:
    """[model] is either a name of the paper with changes, or the fields of DiTConfig."""
    values = dict(given)
    values.setdefault("learn_sigma", diffusion.learns_variance)
    name, image_size = values.pop("name", None), values.pop("image_size", None)
    if name is None and image_size is not None:
        raise UsageError("model.image_size goes with model.name; use model.input_size otherwise")
    fields = tables.fields(DiTConfig, "model", values, allowed)
    if name is not None:
        image_size = convert(int, "model.image_size", 256 if image_size is None else image_size)
        return DiTConfig.named(convert(str, "model.name", name), image_size, **fields)
    required = [one.name for one in own_fields(DiTConfig) if one.default is dataclasses.MISSING]
    if lacking := [key for key in required if key not in fields]:
        raise UsageError(f"[model] lacks {', '.join(lacking)} (or give model.name)")
    return DiTConfig(**fields)
