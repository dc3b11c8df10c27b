"""Makes the table of docs/concepts/network.md from the descriptions of the networks:

python tests/network_table.py      prints it
"""

from __future__ import annotations

from typing import Any, NamedTuple

from scaledit import DiTConfig
from scaledit.models import flops


class Switch(NamedTuple):
    """A row. key: as it is written. values: fields of DiTConfig."""

    what: str
    key: str
    source: str
    values: dict[str, Any]


PIXELS: dict[str, Any] = {"input_size": 256, "patch_size": 16, "in_channels": 3}
BLOCK: dict[str, Any] = {"norm": "rms", "mlp": "swiglu", "qk_norm": True, "value_residual": True}
SWITCHES = (
    Switch("the paper's", "", "Peebles & Xie 2022", {}),
    Switch("RMSNorm", 'norm = "rms"', "Zhang & Sennrich 2019", {"norm": "rms"}),
    Switch("SwiGLU", 'mlp = "swiglu"', "Shazeer 2020", {"mlp": "swiglu"}),
    Switch("QK-norm", "qk_norm = true", "Henry et al. 2020; Dehghani et al. 2023", {"qk_norm": True}),
    Switch("value residual", "value_residual = true", "Zhou et al. 2024", {"value_residual": True}),
    Switch("16 registers", "registers = 16", "Darcet et al. 2024", {"registers": 16}),
    Switch("table of times", 'time_embedding = "table"', "", {"time_embedding": "table"}),
    Switch(
        "random Fourier features",
        'time_embedding = "fourier"',
        "Tancik et al. 2020",
        {"time_embedding": "fourier"},
    ),
    Switch(
        "adaLN-single", 'conditioning = "adaln_single"', "Chen et al. 2023", {"conditioning": "adaln_single"}
    ),
    Switch(
        "context tokens",
        'conditioning = "context_tokens"',
        "improved MeanFlow, 2025",
        {"conditioning": "context_tokens"},
    ),
    Switch(
        "adaLN-single with the first four and 16 registers",
        "",
        "",
        {**BLOCK, "registers": 16, "conditioning": "adaln_single"},
    ),
    Switch("pixels, patches of 16 x 16", "", "", PIXELS),
    Switch(
        "the same with a bottleneck",
        'patch_embed = "bottleneck"',
        "Li & He 2025",
        {**PIXELS, "patch_embed": "bottleneck"},
    ),
)


def table() -> str:
    """Markdown: parameters in millions and multiply-adds of one image in billions."""
    lines = [
        "| switch | in `[model]` | source | parameters, millions | multiply-adds, billions |",
        "|---|---|---|---|---|",
    ]
    for what, key, source, values in SWITCHES:
        params, macs = flops.count(DiTConfig.named("DiT-XL/2", **values))
        code = f"`{key}`" if key else ""
        cells = (what, code, source, f"{params / 1e6:.2f}", f"{macs / 1e9:.2f}")
        lines.append(f"|{'|'.join(f' {cell} ' if cell else ' ' for cell in cells)}|")
    return "\n".join(lines)


if __name__ == "__main__":
    print(table())
