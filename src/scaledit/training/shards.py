"""Tensors that several ranks hold a share of, written and read by each for itself.

torch.distributed.checkpoint, with its safetensors writer: its default one adds `.metadata`, which is a
pickle. Takes 0.8 s to import; only runs with shards do.
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
    """Begins to write this rank's shares, after copying them, and gives what waits until all ranks have
    written theirs. Its RunError names a rank that could not."""
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
    """Of the whole tensors, by name, as the headers of the shards tell."""
    with reading(folder, "a checkpoint's shards", "it was not written by scaledit"):
        found = HuggingFaceStorageReader(str(folder)).read_metadata().state_dict_metadata
    return {
        name: tuple(tensor.size)
        for name, tensor in found.items()
        if isinstance(tensor, TensorStorageMetadata)
    }


def read(folder: Path, targets: Mapping[str, Tensor]) -> None:
    """Fills tensors, whole or shared by any number of ranks."""
    with (
        warnings.catch_warnings(),
        reading(folder, "a checkpoint's shards", "it was not written by scaledit"),
    ):
        warnings.filterwarnings("ignore", "torch.distributed is disabled")  # one process reads alone
        load(dict(targets), storage_reader=HuggingFaceStorageReader(str(folder)))
