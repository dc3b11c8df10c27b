"""Official .pt files, and other pickles of torch.save: their tensors, without unpickling anything.

    a child process reads descriptions (interop/pickle_reader.py) -> tensors are read where they lie

The child has limits on memory and time; a file that breaks them is refused, and nothing falls back to
torch.load.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from scaledit.errors import RunError, UsageError
from scaledit.interop import pickle_reader
from scaledit.interop.lazily import Lazy, in_file

SAFE_TORCH = (2, 10)
"""Below, torch.load(weights_only=True) runs some hostile pickles."""
WALL_SECONDS = 60
"""For the child, on a busy machine; its processor time is limited to pickle_reader.SECONDS."""


@dataclass(frozen=True)
class Pickled:
    """parts: the state dicts of a file by name, "" for a bare one. args: of the program that wrote it."""

    parts: Mapping[str, Mapping[str, Lazy]]
    args: Mapping[str, Any]


def open_pickled(path: Path) -> Pickled:
    """Raises UsageError for a file that is not what torch.save writes of a state dict or a trainer's
    checkpoint, or that would run something; RunError for one that is cut off."""
    _check_torch()
    answer = _ask(path)
    if "damaged" in answer:
        raise RunError(f"{path} {answer['damaged']}; fetch it again")
    if "refused" in answer:
        raise UsageError(f"{path} {answer['refused']}; it was not opened")
    if not answer["parts"]:
        raise UsageError(f"{path} holds no state dict; it was not opened")
    if path.stat().st_size != answer["size"]:
        raise RunError(f"{path} changed while it was read")
    parts = {
        part: {
            name: in_file(
                path, entry["dtype"], tuple(entry["shape"]), entry["start"], tuple(entry["strides"])
            )
            for name, entry in entries.items()
        }
        for part, entries in answer["parts"].items()
    }
    return Pickled(parts, answer["args"])


def _check_torch() -> None:
    """Nothing here uses torch's unpickler; but who converts a pickle here hands others to torch elsewhere."""
    version = tuple(int(part) for part in torch.__version__.split("+")[0].split(".")[:2])
    if version < SAFE_TORCH:
        raise UsageError(
            f"torch {torch.__version__} runs code from some hostile .pt files; install torch 2.10 or newer, "
            "or convert a .safetensors file"
        )


def _ask(path: Path) -> dict[str, Any]:
    # -I and -S: no user's site, no environment, nothing of this package: the standard library is enough
    command = [sys.executable, "-I", "-S", str(Path(pickle_reader.__file__)), str(path)]
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=WALL_SECONDS,
            check=False,
        )
        answer = json.loads(done.stdout)
    except subprocess.TimeoutExpired:
        return {"refused": f"takes more than {WALL_SECONDS} s to be read"}
    except ValueError:  # killed at a limit, before it could answer
        return {
            "refused": f"needs more than {pickle_reader.SECONDS} s of processor time or "
            f"{pickle_reader.MEMORY >> 20} MiB to be read, which no checkpoint does"
        }
    return answer if isinstance(answer, dict) else {"refused": "could not be read"}
