"""Compares weights (bit for bit) and outputs across checkpoint layouts and with diffusers' own class.

official .pt -> ours -> official;  ours -> diffusers -> ours;  the installed diffusers on our exports

python benchmarks/interop.py [DiT-S/8]     prints the table of docs/interop.md
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from scaledit import DiT, DiTConfig, load
from scaledit.interop import official
from scaledit.interop.convert import open_model, write
from scaledit.interop.exact_diffusers import ExactDiTTransformer2DModel

TIMES = (0, 10, 100, 250, 500, 750, 999)


def network(name: str) -> DiT:
    """A newly initialized network without zero weights: modulations and the last layer are N(0, 0.02)."""
    torch.manual_seed(0)
    dit = DiT(DiTConfig.named(name)).eval()
    with torch.no_grad():
        for parameter in dit.parameters():
            if not parameter.any():
                parameter.normal_(std=0.02)
    return dit


def distance(a: Tensor, b: Tensor) -> float:
    """The largest difference, divided by the largest value."""
    return float((a - b).abs().max() / b.abs().max())


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> str:
    equal = a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)
    return "bit for bit" if equal else "NOT EQUAL"


@torch.no_grad()
def measure(name: str, folder: Path) -> None:
    from diffusers import DiTTransformer2DModel

    dit = network(name)
    state = official.export(dit)
    torch.save(state, folder / "in.pt")

    def quiet(done: int, total: int) -> None:
        pass

    def go(source: str, out: str, to: Any, **more: bool) -> None:
        write(open_model(folder / source), folder / out, to, quiet, **more)

    go("in.pt", "ours", "scaledit")
    go("ours", "out.pt", "official")
    go("ours", "exact", "diffusers")
    go("exact", "back", "scaledit")
    go("ours", "plain", "diffusers", plain=True)
    x = torch.randn(len(TIMES), *dit.config.shape)
    t, y = torch.tensor(TIMES), torch.arange(len(TIMES)) * 100
    expected = dit(x, t, y)
    print(f"{name}, random weights, t = {', '.join(map(str, TIMES))}\n")
    print("| layout | weights, round trip | outputs: largest difference / largest value |")
    print("|---|---|---|")
    weights = same(torch.load(folder / "out.pt"), state)
    print(f"| official .pt | {weights} | {distance(load(folder / 'ours').net(x, t, y), expected):.1e} |")
    weights = same(load_file(folder / "back/model.safetensors"), load_file(folder / "ours/model.safetensors"))

    def theirs(kind: Any, **changes: float) -> float:
        where = folder / ("exact" if kind is ExactDiTTransformer2DModel else "plain") / "transformer"
        net = kind.from_pretrained(where, low_cpu_mem_usage=False, **changes)
        return distance(net(x, timestep=t, class_labels=y).sample, expected)

    exact = theirs(ExactDiTTransformer2DModel)
    print(f"| diffusers, our class (ExactDiTTransformer2DModel) | {weights} | {exact:.1e} |")
    print(
        f"| diffusers, plain, as we write it (/127) | the same file | {theirs(DiTTransformer2DModel):.1e} |"
    )
    default = theirs(DiTTransformer2DModel, norm_eps=1e-5)
    print(f"| diffusers, plain, its default eps (/127, 1e-5) | the same file | {default:.1e} |")
    for block in dit.blocks:
        block.norm2.eps = 1e-5  # pyright: ignore[reportAttributeAccessIssue]
    print(f"| the eps alone (/128, 1e-5) | | {distance(dit(x, t, y), expected):.1e} |")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        measure(sys.argv[1] if len(sys.argv) > 1 else "DiT-S/8", Path(folder))
