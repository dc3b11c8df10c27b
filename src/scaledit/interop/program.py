"""The network as a program of torch.export: any batch size, without scaledit's own code.

    save(net, "dit.pt2")        torch.export.load("dit.pt2").module()(x, t, y)  =  net(x, t, y)

`load` gives it back as a network that NetDenoiser takes. A .pt2 is a program: its graph, its guards and the
pickles inside it run code of their author's as soon as torch opens it, so `load` wants to be told that it is
trusted. No command loads one.
"""

from __future__ import annotations

import dataclasses
import io
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from scaledit.errors import UsageError
from scaledit.files.atomic import atomic_bytes
from scaledit.models.config import DiTConfig
from scaledit.models.dit import DiT

CONFIG = "config.json"
EXAMPLE = 2
"""Images in the batch that is traced. Not 1, which torch.export would take for a constant."""


@dataclasses.dataclass(frozen=True)
class ProgramNet:
    """An exported network: x (N, C, H, W), t (N,) float32, y (N,) int64 -> (N, C or 2C, H, W), any N."""

    module: torch.nn.Module
    config: DiTConfig

    @property
    def null_label(self) -> int:
        return self.config.num_classes

    def __call__(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        return self.module(x, t, y)


def export(net: DiT) -> torch.export.ExportedProgram:
    """`net`, traced with a dynamic batch on its own device. It is left in evaluation mode."""
    batch = torch.export.Dim("batch", min=1)
    with torch.no_grad():
        shapes = {name: {0: batch} for name in ("x", "t", "y")}
        return torch.export.export(net.eval(), example(net), dynamic_shapes=shapes)


def example(net: DiT) -> tuple[Tensor, Tensor, Tensor]:
    """(x, t, y) that `net` takes, on its device, to trace it with."""
    device = next(net.parameters()).device
    x = torch.zeros(EXAMPLE, *net.config.shape, device=device)
    t = torch.zeros(EXAMPLE, device=device)
    return x, t, torch.zeros(EXAMPLE, dtype=torch.int64, device=device)


def check_name(out: Path) -> None:
    """Raises UsageError for a name that is no program's."""
    if out.suffix != ".pt2":
        raise UsageError(f"an exported program is a .pt2; got {out}")


def save(net: DiT, out: Path) -> None:
    """Writes a .pt2, whole or not at all, with the config inside. Raises UsageError for another name, OSError
    where it cannot be written."""
    check_name(out)
    config: Any = net.config.to_json()
    # In memory first: torch's writer of archives aborts the whole process where a write fails, and where a
    # Ctrl-C comes in the middle of one.
    buffer = io.BytesIO()
    torch.export.save(export(net), buffer, extra_files={CONFIG: json.dumps(config)})
    atomic_bytes(out, buffer.getbuffer())


def load(path: Path, *, trusted: bool = False) -> ProgramNet:
    """What `save` wrote. trusted: that whoever made the file may run code here.

    Raises UsageError for another file, and, before anything of it is read, where it is not trusted.
    """
    if not trusted:
        raise UsageError(
            f"{path} is a program, which runs code of its author's when it is loaded; pass trusted=True for "
            "one that you made or whose author you trust"
        )
    extra = {CONFIG: ""}
    try:
        program = torch.export.load(path, extra_files=extra)
        config = DiTConfig(**json.loads(extra[CONFIG]))
    except FileNotFoundError:
        raise UsageError(f"there is no {path}") from None
    except Exception as error:  # torch's readers raise what they meet; the first line of it says what
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UsageError(f"{path} is no program that scaledit exported ({reason})") from None
    return ProgramNet(program.module(), config)
