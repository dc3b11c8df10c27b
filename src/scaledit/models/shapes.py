"""Names and shapes of a DiT's weights in closed form: what a state dict must be, without building a network.

attn.qkv (3D, D)   attn.proj (D, D)   mlp.fc1 (H, D)   mlp.fc2 (D, H)   modulation (6D or 4D, D)
"""

from __future__ import annotations

from scaledit.models.config import TIME_FREQUENCIES, DiTConfig

Shapes = dict[str, tuple[int, ...]]
MODULATIONS = {"adaln": 4, "adaln_zero": 6}
FINAL_MODULATIONS = 2


def shapes(config: DiTConfig) -> Shapes:
    """{name: shape} of `DiT(config).state_dict()`."""
    d, hidden, area = config.hidden_size, int(config.hidden_size * config.mlp_ratio), config.patch_size**2
    modulated = config.conditioning in MODULATIONS
    block: Shapes = {
        **_linear("attn.qkv", 3 * d, d),
        **_linear("attn.proj", d, d),
        **_linear("mlp.fc1", hidden, d),
        **_linear("mlp.fc2", d, hidden),
    }
    if modulated:
        block |= _linear("modulation", MODULATIONS[config.conditioning] * d, d)
    else:
        block |= {**_norm("norm1", d), **_norm("norm2", d)}
    if config.conditioning == "cross_attention":
        block |= {
            **_norm("norm_cross", d),
            **_linear("cross.q", d, d),
            **_linear("cross.kv", 2 * d, d),
            **_linear("cross.proj", d, d),
        }
    return {
        **_linear("patch_embed", d, config.in_channels * area),
        **_linear("time_embed.fc1", d, TIME_FREQUENCIES),
        **_linear("time_embed.fc2", d, d),
        "label_embed.weight": (config.num_classes + 1, d),
        **{f"blocks.{i}.{name}": shape for i in range(config.depth) for name, shape in block.items()},
        **_linear("final.linear", config.out_channels * area, d),
        **(_linear("final.modulation", FINAL_MODULATIONS * d, d) if modulated else _norm("final.norm", d)),
    }


def _linear(name: str, out: int, width: int) -> Shapes:
    return {f"{name}.weight": (out, width), f"{name}.bias": (out,)}


def _norm(name: str, width: int) -> Shapes:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}
