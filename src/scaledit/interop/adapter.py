"""The low-rank factors of a LoRA run: merged into the weights as they are read, or written for PEFT.

blocks.0.attn.qkv.weight, .lora_A.weight, .lora_B.weight   -->   blocks.0.attn.qkv.weight  =  W + s B A

adapter/  adapter_config.json   adapter_model.safetensors (base_model.model.blocks.0.attn.qkv.lora_A.weight)
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scaledit.callbacks import Progress
from scaledit.config import LoRAConfig, RunConfig, trained
from scaledit.errors import UsageError
from scaledit.interop.lazy_tensors import Lazy, counting, write_safetensors
from scaledit.models import lora
from scaledit.models.shapes import LORA_A, LORA_B

if TYPE_CHECKING:
    from scaledit.interop.model import Model

CONFIG, WEIGHTS, PREFIX = "adapter_config.json", "adapter_model.safetensors", "base_model.model."
"""The files of PEFT, and what it puts before the names of a model's modules."""


def factors(tensors: Mapping[str, Lazy]) -> dict[str, Lazy]:
    """Those of the tensors that are factors of LoRA."""
    return {name: lazy for name, lazy in tensors.items() if name.endswith((LORA_A, LORA_B))}


def merged(tensors: Mapping[str, Lazy], config: LoRAConfig, path: Path) -> dict[str, Lazy]:
    """The weights without factors: W + s B A, computed when it is read, where W has them. Raises UsageError
    if the factors do not fit the weights or the config; path: of the file, for messages."""
    found = factors(tensors)
    weights = {name: lazy for name, lazy in tensors.items() if name not in found}
    for module in {name.removesuffix(LORA_A).removesuffix(LORA_B) for name in found}:
        name = f"{module}.weight"
        weight, a, b = (tensors.get(key) for key in (name, module + LORA_A, module + LORA_B))
        shapes = [None if lazy is None else lazy.shape for lazy in (a, b)]
        rank, sides = config.rank, (0, 0) if weight is None else weight.shape
        if not rank or weight is None or a is None or b is None or len(sides) != 2 or (
            shapes != [(rank, sides[1]), (sides[0], rank)]
        ):  # fmt: skip
            raise UsageError(
                f"{path}: the LoRA factors of {module} have the shapes {shapes[0]} and {shapes[1]}, which do "
                f"not fit lora.rank {rank} and a weight of {sides}"
            )
        weights[name] = _merged(weight, a, b, config.scale)
    return weights


def _merged(weight: Lazy, a: Lazy, b: Lazy, scale: float) -> Lazy:
    return weight.mapped(weight.shape, lambda value: lora.merged(value, a.read(), b.read(), scale))


def write(model: Model, out: Path, progress: Progress) -> str:
    """Writes a folder that PEFT opens, atomically, and returns the SHA-256 of its weights. It holds the
    factors and the modules that lora.also names, but not the model. progress: in bytes.

    Raises UsageError if the model has no factors, and as `native.new_folder` does.
    """
    from scaledit.interop.native import new_folder

    if not model.factors:
        raise UsageError(
            "--to peft writes the LoRA factors of a run with lora.rank, and this model has none (an exported "
            "model has them merged into its weights; use the run folder or a checkpoint)"
        )
    saved = modules_to_save(model.config)
    tensors = {PREFIX + name: lazy for name, lazy in model.factors.items()}
    tensors |= {
        PREFIX + name: lazy for name, lazy in model.weights.items() if name.rpartition(".")[0] in saved
    }
    with new_folder(out) as folder:
        with (folder / WEIGHTS).open("wb") as file:
            written = write_safetensors(file, tensors, counting(progress, tensors))
        text = json.dumps(config_json(model.config, saved), indent=2) + "\n"
        (folder / CONFIG).write_text(text, encoding="utf-8")
    return written.sha256


def modules_to_save(config: RunConfig) -> list[str]:
    """The modules that are trained completely, beside the factors. Raises UsageError if one of them has
    factors, which PEFT cannot express."""
    names = sorted({name.rpartition(".")[0] for name in trained.names(config)} - _holders(config))
    if both := set(names).intersection(trained.adapted(config)):
        raise UsageError(f"PEFT cannot hold {min(both)}, which is in both lora.targets and lora.also")
    return names


def _holders(config: RunConfig) -> set[str]:
    """The modules of the factors themselves."""
    suffixes = [key.removesuffix(".weight") for key in (LORA_A, LORA_B)]
    return {f"{module}{suffix}" for module in trained.adapted(config) for suffix in suffixes}


def config_json(config: RunConfig, saved: list[str]) -> dict[str, Any]:
    """adapter_config.json. PEFT's alpha is a whole number where it can be."""
    alpha = config.lora.alpha
    return {
        "peft_type": "LORA",
        "task_type": None,
        "auto_mapping": None,
        "base_model_name_or_path": config.train.init,
        "inference_mode": True,
        "r": config.lora.rank,
        "lora_alpha": int(alpha) if alpha.is_integer() else alpha,
        "lora_dropout": 0.0,
        "use_rslora": False,
        "use_dora": False,
        "bias": "none",
        "fan_in_fan_out": False,
        "target_modules": trained.adapted(config),
        "modules_to_save": saved or None,
    }
