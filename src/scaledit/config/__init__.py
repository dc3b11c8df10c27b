"""Configs of runs: recipes and overrides in, frozen dataclasses of parts, config.json out.

    recipe (TOML, may extend another)  +  section.key=value overrides  ->  RunConfig  ->  config.json

    sections   one frozen dataclass per section, one field per key   runs      RunConfig, config.json
    tables     how recipes and overrides are merged                 recipes   TOML files, overrides
    old        keys and protocols of earlier versions                checks    keys that depend on each other
    compare    what may change when a run is resumed         short     --sampler, --steps, --cfg-scale as keys
    trained    which weights a run trains                updates   groups of the optimizer, muP

Imports no torch, so that a wrong name is answered at once.
"""

from scaledit.config.checks import check, check_guidance, check_sampling, models_at
from scaledit.config.compare import (
    Change,
    all_changes,
    as_overrides,
    changes,
    changes_training,
    differences,
    differing,
    flatten,
    unasked,
)
from scaledit.config.recipes import (
    COMMANDS,
    RECIPES,
    changed,
    is_override,
    load,
    override,
    read_toml,
    recipe_names,
    trained_by,
    with_values,
)
from scaledit.config.runs import NOTHING, Config, RunConfig
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
from scaledit.config.short import scaled, short

__all__ = [
    "COMMANDS",
    "NOTHING",
    "RECIPES",
    "Change",
    "CheckpointConfig",
    "Config",
    "DataConfig",
    "DiffusionConfig",
    "EMAConfig",
    "EngineConfig",
    "EvaluateConfig",
    "LatentConfig",
    "LoRAConfig",
    "LogConfig",
    "ModelTrainConfig",
    "OptimizerConfig",
    "RunConfig",
    "SampleConfig",
    "TrainConfig",
    "all_changes",
    "as_overrides",
    "changed",
    "changes",
    "changes_training",
    "check",
    "check_guidance",
    "check_sampling",
    "differences",
    "differing",
    "flatten",
    "is_override",
    "load",
    "models_at",
    "override",
    "read_toml",
    "recipe_names",
    "scaled",
    "short",
    "trained_by",
    "unasked",
    "with_values",
]
