"""Sharded tensors, of which each rank writes and reads its own share.

Uses torch.distributed.checkpoint with its safetensors format, because its default one has a pickle,
`.metadata`. Takes 0.8 s to import, so only sharded runs do.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import async_save

from scaledit.errors import RunError, reading


def write(folder: Path, tensors: Mapping[str, Tensor], group: Any) -> Callable[[], None]:
    """Copies this rank's shares and starts to write them. The returned function waits until all ranks have
    written theirs; it raises RunError naming a rank that could not."""
    writer = HuggingFaceStorageWriter(str(folder), save_distributed=True)
    writing = async_save(dict(tensors), storage_writer=writer, process_group=group)
    assert isinstance(writing, Future)

    def wait() -> None:
        try:
            writing.result()
        except CheckpointException as error:
            rank, failure = next(iter(error.failures.items()))
            raise RunError(
                f"rank {rank} could not save its shard of {folder.parent}: {failure[0]}; earlier checkpoints "
                "are intact"
            ) from error

    return wait


def shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """The shapes of the full tensors by name, from the headers of the shards."""
    with reading(folder, "a checkpoint's shards", "it was not written by scaledit"):
        tensors = HuggingFaceStorageReader(str(folder)).read_metadata().state_dict_metadata
    return {name: tuple(t.size) for name, t in tensors.items() if isinstance(t, TensorStorageMetadata)}


def read(folder: Path, targets: Mapping[str, Tensor]) -> None:
    """Reads into tensors, which may be sharded over any number of ranks."""
    with (
        warnings.catch_warnings(),
        reading(folder, "a checkpoint's shards", "it was not written by scaledit"),
    ):
        warnings.filterwarnings("ignore", "torch.distributed is disabled")  # a single process may read
        load(dict(targets), storage_reader=HuggingFaceStorageReader(str(folder)))
