"""The network as ONNX, for runtimes without PyTorch.

    save(net, "dit.onnx")
    onnxruntime.InferenceSession("dit.onnx").run(None, {"x", "t", "y"})  =  net(x, t, y)

x (N, C, H, W) float32, t (N,) float32 in 0..1000, y (N,) int64 -> out (N, C or 2C, H, W) float32, any N. The
config is in the file's metadata under "scaledit", so that the null label and the channels are known.
"""

from __future__ import annotations

import json
import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from scaledit.errors import UsageError
from scaledit.files.atomic import partial_folder, sync
from scaledit.interop.program import example
from scaledit.models.dit import DiT

LARGEST_INSIDE = 1 << 30
"""Bytes of weights in the .onnx itself, a protocol buffer of at most 2 GiB; more go into a file beside it."""
METADATA = "scaledit"


def weights_file(out: Path) -> Path:
    """The file of weights that are too large for `out` itself."""
    return out.with_name(f"{out.name}.data")


def check(out: Path) -> None:
    """Raises UsageError if `out` is not an .onnx, one of its files exists, or the onnx extra is missing."""
    if out.suffix != ".onnx":
        raise UsageError(f"--to onnx writes a file; use OUT.onnx, not {out}")
    for path in (out, weights_file(out)):
        if path.exists():
            raise UsageError(f"{path} exists; choose another name or delete it")
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError:
        raise UsageError('ONNX export needs onnx and onnxscript: pip install "scaledit[onnx]"') from None


def save(net: DiT, out: Path) -> Path | None:
    """Writes an .onnx atomically; returns the file of its weights if they are not inside. The network is left
    in evaluation mode. Raises UsageError as `check` and `program.example` do, and OSError."""
    check(out)
    batch = torch.export.Dim("batch", min=1)
    with torch.no_grad(), _quiet():
        program = torch.onnx.export(
            net.eval(),
            example(net),
            dynamo=True,
            dynamic_shapes={name: {0: batch} for name in ("x", "t", "y")},
            input_names=["x", "t", "y"],
            output_names=["out"],
            verbose=False,
        )
    assert program is not None
    program.model.metadata_props[METADATA] = json.dumps(net.config.to_json())
    is_large = sum(p.numel() * p.element_size() for p in net.parameters()) > LARGEST_INSIDE
    # The .onnx names its weights file, so both are written under their final names in a folder.
    with partial_folder(out) as folder:
        program.save(folder / out.name, external_data=is_large)
        written = sorted(folder.iterdir(), key=lambda path: path == folder / out.name)  # the weights first
        for path in written:
            sync(path)
        for path in written:
            os.replace(path, out.with_name(path.name))
    return weights_file(out) if is_large else None


@contextmanager
def _quiet() -> Iterator[None]:
    """Silences the exporter's warnings about torchvision, which is not needed, and deprecations."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
