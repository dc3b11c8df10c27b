"""The config of a run: one frozen dataclass of sections, written to config.json and read from it.

RunConfig.from_json(config.to_json()) == config
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
    LoRAConfig,
    ModelTrainConfig,
    OptimizerConfig,
    SampleConfig,
    TrainConfig,
)
from scaledit.config.tables import Table
from scaledit.errors import UsageError
from scaledit.models.config import DiTConfig
from scaledit.part import Allowed, plain
from scaledit.values import convert, is_written, own_fields

NOTHING = Allowed.only((), "this config")
"""For configs from elsewhere: no module may be imported unless the caller allows it."""


class Config:
    """The base class of configs, frozen dataclasses of `name` (that of the recipe) and sections.

    TRAINS: what the recipe trains, its key `trains` ("model" by default).
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
        """Plain values; `from_json` is the inverse. Keys that earlier versions lack are left out at their
        defaults, so that old and new configs of the same run are equal."""
        value: dict[str, Any] = {"name": self.name}
        for key, table in self.sections().items():
            section, own = getattr(self, key), self.data.own if key == "data" else ()
            left_out = {
                item.name
                for item in own_fields(type(section))
                if item.name not in own and not is_written(item, getattr(section, item.name))
            }
            value[key] = {name: plain(one) for name, one in table.items() if name not in left_out}
        return value

    def sections(self) -> dict[str, dict[str, Any]]:
        """{section: {key: value}}, with parts as objects."""
        sections = {key: getattr(self, key) for key in tables.section_types(type(self))}
        values = {
            key: {item.name: getattr(section, item.name) for item in own_fields(type(section))}
            for key, section in sections.items()
        }
        values["data"] = self.data.flat()
        return values

    @classmethod
    def from_json(cls, value: Mapping[str, Any], allowed: Allowed = NOTHING) -> Self:
        """The config that `to_json` of this or an earlier version wrote.

        allowed: the modules that its parts may be imported from. Raises UsageError for an unknown section or
        key, for a value of the wrong type, and for a part of a module that is not allowed.
        """
        table: Table = {}
        tables.assign(cls, table, tables.assignments(value), allowed)
        return cls.of(table, value.get("name", "run"), allowed)

    @classmethod
    def of(cls, table: Table, name: object, allowed: Allowed) -> Self:
        """The config of the tables that `tables.assign` filled. Raises UsageError as `from_json` does."""
        types = tables.section_types(cls)
        sections = {key: tables.section(of, key, table.get(key, {}), allowed) for key, of in types.items()}
        return cls(**{"name": convert(str, "name", name), **sections})

    def modules(self) -> frozenset[str]:
        """The modules outside scaledit that its parts come from."""
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
    train: ModelTrainConfig = field(default_factory=ModelTrainConfig)  # pyright: ignore[reportIncompatibleVariableOverride]
    lora: LoRAConfig = field(default_factory=LoRAConfig)
    ema: EMAConfig = field(default_factory=EMAConfig)
    engine: EngineConfig = field(default_factory=EngineConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    sample: SampleConfig = field(default_factory=SampleConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    log: LogConfig = field(default_factory=LogConfig)

    def __post_init__(self) -> None:
        check_run(self)

    def to_json(self) -> dict[str, Any]:
        """As for all configs, without [lora] in a run that has none."""
        value = super().to_json()
        if not self.lora.rank:
            del value["lora"]
        return value

    @classmethod
    def of(cls, table: Table, name: object, allowed: Allowed) -> RunConfig:
        """As for all configs, with the model built last: it depends on [diffusion]."""
        types = tables.section_types(cls)
        try:
            sections = {
                key: tables.section(of, key, table.get(key, {}), allowed)
                for key, of in types.items()
                if key != "model"
            }
            model = _model(table.get("model", {}), sections["diffusion"], allowed)
            return cls(name=convert(str, "name", name), model=model, **sections)
        except UsageError:
            raise
        except (TypeError, ValueError, ArithmeticError) as error:  # 1e400 for a width, say
            raise UsageError(f"this is not the config of a run: {error}") from None


def _model(table: Mapping[str, Any], diffusion: DiffusionConfig, allowed: Allowed) -> DiTConfig:
    """[model] is either the name of one of the paper's models with changes, or the fields of DiTConfig."""
    values = dict(table)
    values.setdefault("learn_sigma", diffusion.learns_variance)
    name, image_size = values.pop("name", None), values.pop("image_size", None)
    if name is None and image_size is not None:
        raise UsageError(
            "model.image_size can only be used with model.name; without it, use model.input_size"
        )
    fields = tables.fields(DiTConfig, "model", values, allowed)
    if name is not None:
        image_size = convert(int, "model.image_size", 256 if image_size is None else image_size)
        return DiTConfig.named(convert(str, "model.name", name), image_size, **fields)
    required = [item.name for item in own_fields(DiTConfig) if item.default is dataclasses.MISSING]
    if missing := [key for key in required if key not in fields]:
        raise UsageError(
            f"[model] lacks {', '.join(missing)}; set "
            f"{'it' if len(missing) == 1 else 'them'}, or set model.name"
        )
    return DiTConfig(**fields)
