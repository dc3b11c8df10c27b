"""The official DiT's state dict <-> ours: the same numbers under other names.

    x_embedder.proj.weight (D, C, p, p)  <->  patch_embed.weight (D, C p p)
    blocks.i.adaLN_modulation.1.weight   <->  blocks.i.modulation.weight,  and so on

The official programs have the adaLN-Zero block only, and keep the frozen position table as `pos_embed`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from scaledit.errors import UsageError
from scaledit.models.config import DiTConfig
from scaledit.models.dit import DiT

_NAMES = (
    ("x_embedder.proj.", "patch_embed."),
    ("t_embedder.mlp.0.", "time_embed.fc1."),
    ("t_embedder.mlp.2.", "time_embed.fc2."),
    ("y_embedder.embedding_table.", "label_embed."),
    ("final_layer.", "final."),
    (".adaLN_modulation.1.", ".modulation."),
)
POSITION = "pos_embed"
POSITION_TOLERANCE = 1e-5


def _ours(key: str) -> str:
    for theirs, ours in _NAMES:
        key = key.replace(theirs, ours)
    return key


def _theirs(key: str) -> str:
    for theirs, ours in _NAMES:
        key = key.replace(ours, theirs)
    return key


def _check_conditioning(config: DiTConfig) -> None:
    if config.conditioning != "adaln_zero":
        raise UsageError(
            f"the official layout holds adaLN-Zero models only; this config is {config.conditioning!r}"
        )


def load(config: DiTConfig, state_dict: dict[str, Tensor]) -> DiT:
    """A DiT with the weights of an official state dict; every value kept bit for bit.

    Raises UsageError where a key is missing or unknown, a shape is another one's, or `pos_embed` is not
    the sin-cos table (then the weights belong to another position embedding).
    """
    _check_conditioning(config)
    dit = DiT(config)
    expected = dit.state_dict()
    given = {_ours(key): value for key, value in state_dict.items() if key != POSITION}
    missing, unknown = sorted(expected.keys() - given.keys()), sorted(given.keys() - expected.keys())
    if missing or unknown:
        raise UsageError(
            "the state dict does not fit this config"
            + (f"; missing {_theirs(missing[0])} and {len(missing) - 1} more" if missing else "")
            + (f"; unknown {_theirs(unknown[0])} and {len(unknown) - 1} more" if unknown else "")
        )
    for key, value in given.items():
        shape = _theirs_shape(config, key, expected[key])
        if tuple(value.shape) != shape:
            raise UsageError(f"{_theirs(key)} has shape {tuple(value.shape)}, this config needs {shape}")
    if POSITION in state_dict:
        table, own = state_dict[POSITION], dit.position.unsqueeze(0)
        if table.shape != own.shape or not torch.allclose(
            table.float(), own, rtol=0, atol=POSITION_TOLERANCE
        ):
            raise UsageError(
                f"{POSITION} is not the sin-cos table of a {config.height}x{config.width} input at patch "
                f"{config.patch_size}; check input_size and patch_size"
            )
    dit.load_state_dict({key: value.reshape(expected[key].shape) for key, value in given.items()})
    return dit


def export(dit: DiT) -> dict[str, Tensor]:
    """The official state dict of `dit`, `pos_embed` included."""
    _check_conditioning(dit.config)
    state = {
        _theirs(key): value.reshape(_theirs_shape(dit.config, key, value))
        for key, value in dit.state_dict().items()
    }
    return {POSITION: dit.position.unsqueeze(0), **state}


def _theirs_shape(config: DiTConfig, key: str, value: Tensor) -> tuple[int, ...]:
    if key == "patch_embed.weight":
        return (config.hidden_size, config.in_channels, config.patch_size, config.patch_size)
    return tuple(value.shape)
