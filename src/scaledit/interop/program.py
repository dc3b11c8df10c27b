"""The network as a program of torch.export, which takes any batch size and needs none of scaledit's code.

    save(net, "dit.pt2")        torch.export.load("dit.pt2").module()(x, t, y)  =  net(x, t, y)

`load` returns it as a network for NetDenoiser. A .pt2 is a program: its graph, its guards and the pickles
inside it run their author's code as soon as torch opens it, so `load` needs to know that it is trusted.
"""

from __future__ import annotations

import dataclasses
import io
import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from scaledit.errors import UsageError, no_such
from scaledit.files.atomic import atomic_bytes
from scaledit.models.config import DiTConfig
from scaledit.models.dit import DiT

CONFIG = "config.json"
EXAMPLE = 2
"""Images in the batch that is traced. torch.export would take a batch of 1 for a constant."""


@dataclasses.dataclass(frozen=True)
class ProgramNet:
    """An exported network: x (N, C, H, W), t (N,) float32, y (N,) int64 -> (N, C or 2C, H, W), any N.

    The program has exactly these three inputs. y holds labels, `null_label` for the null condition. What else
    a DiT takes raises UsageError: a Condition or None as y, a second time, numbers of hidden blocks.
    """

    module: torch.nn.Module
    config: DiTConfig

    @property
    def null_label(self) -> int:
        return self.config.num_classes

    def __call__(
        self, x: Tensor, t: Tensor, y: Tensor, second: Tensor | None = None, hidden: Collection[int] = ()
    ) -> Tensor:
        if second is not None or hidden or not isinstance(y, Tensor):
            raise UsageError(
                "an exported program accepts x, t and a tensor of labels y, but no other condition, "
                "second time or hidden blocks; use the DiT that it was exported from"
            )
        if x.shape[1:] != self.config.shape:
            shape = ", ".join(map(str, self.config.shape))
            raise UsageError(f"this program accepts inputs of shape (N, {shape}), got {tuple(x.shape)}")
        return self.module(x, t, y)


def export(net: DiT) -> torch.export.ExportedProgram:
    """`net`, traced on its device with any batch size. It is left in evaluation mode."""
    batch = torch.export.Dim("batch", min=1)
    with torch.no_grad():
        shapes = {name: {0: batch} for name in ("x", "t", "y")}
        return torch.export.export(net.eval(), example(net), dynamic_shapes=shapes)


def example(net: DiT) -> tuple[Tensor, Tensor, Tensor]:
    """(x, t, y) on the device of `net`, to trace it with. Raises UsageError if it has a second time."""
    if net.config.second_time:
        raise UsageError("exported networks accept x, t and y only, but this model has a second time")
    device = next(net.parameters()).device
    x = torch.zeros(EXAMPLE, *net.config.shape, device=device)
    t = torch.zeros(EXAMPLE, device=device)
    return x, t, torch.zeros(EXAMPLE, dtype=torch.int64, device=device)


def check(out: Path) -> None:
    """Raises UsageError unless `out` is named like an exported program."""
    if out.suffix != ".pt2":
        raise UsageError(f"an exported program is a .pt2; got {out}")


def save(net: DiT, out: Path) -> None:
    """Writes a .pt2 atomically, with the config inside. Raises UsageError for another name or as `example`
    does, OSError if it cannot be written."""
    check(out)
    config: Any = net.config.to_json()
    # In memory first: torch's archive writer aborts the process if a write fails or is interrupted.
    buffer = io.BytesIO()
    torch.export.save(export(net), buffer, extra_files={CONFIG: json.dumps(config)})
    atomic_bytes(out, buffer.getbuffer())


def load(path: Path, *, trusted: bool = False) -> ProgramNet:
    """Loads what `save` wrote. trusted: whether the author of the file may run code here.

    Raises UsageError for another file, and before anything is read if it is not trusted.
    """
    if not trusted:
        raise UsageError(
            f"{path} is a program, and loading it runs its author's code; pass trusted=True if you made it "
            "or trust its author"
        )
    extra = {CONFIG: ""}
    try:
        program = torch.export.load(path, extra_files=extra)
        config = DiTConfig(**json.loads(extra[CONFIG]))
    except FileNotFoundError:
        raise UsageError(no_such(path)) from None
    except Exception as error:  # torch's readers raise many types; the first line of the message is enough
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UsageError(f"{path} is not a program that scaledit exported ({reason})") from None
    return ProgramNet(program.module(), config)
