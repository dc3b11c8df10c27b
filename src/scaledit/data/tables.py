"""Images in tables: Parquet files, and folders that Hugging Face's `datasets` saved (Arrow).

    image  struct {bytes, path}, or plain bytes      label  whole numbers (named in the schema), or words

Needs pyarrow: pip install "scaledit[parquet]".
"""

from __future__ import annotations

import json
import threading
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from scaledit.data.decode import BadImage
from scaledit.data.sources import Source, check_size, numbered
from scaledit.errors import UsageError

SUFFIXES = (".parquet", ".arrow")
IMAGE_COLUMNS = ("image", "img", "jpg", "png", "pixels")
LABEL_COLUMNS = ("label", "labels", "class", "cls", "fine_label")
GROUPS_KEPT = 4
"""Row groups held in memory: reading in order decodes each once."""


def open_tables(path: Path, files: list[Path]) -> Source:
    """Raises UsageError for files that are damaged or have no image and label columns."""
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        raise UsageError(f'{path} needs pyarrow: pip install "scaledit[parquet]"') from None

    def opened(file: Path) -> Any:
        try:
            if file.suffix == ".parquet":
                return pq.ParquetFile(file)
            return pa.ipc.open_stream(pa.memory_map(str(file))).read_all()
        except (pa.ArrowException, OSError) as error:
            raise UsageError(f"{file} cannot be read: {str(error).splitlines()[0]}") from None

    handles = [opened(file) for file in files]
    schemas = [h.schema_arrow if isinstance(h, pq.ParquetFile) else h.schema for h in handles]
    image, label = (_column(schemas[0], names, what, path) for names, what in _WANTED)
    labels: list[Any] = []
    groups: list[tuple[int, int]] = []  # (file, row group), and where its rows start
    starts: list[int] = []
    for k, (handle, file) in enumerate(zip(handles, files, strict=True)):
        if not schemas[k].equals(schemas[0]):
            raise UsageError(f"{file} has other columns than {files[0]}")
        if isinstance(handle, pq.ParquetFile):
            for group in range(handle.num_row_groups):
                groups.append((k, group))
                starts.append(len(labels))
                labels += handle.read_row_group(group, columns=[label])[label].to_pylist()
        else:
            groups.append((k, 0))
            starts.append(len(labels))
            labels += handle[label].to_pylist()
    if not labels:
        raise UsageError(f"{path} holds no images")
    if any(one is None for one in labels):
        raise UsageError(f"{path}: row {labels.index(None)} has no {label}")
    found, classes = numbered(labels, _class_names(schemas[0], label), path)
    lock = threading.Lock()

    @lru_cache(maxsize=GROUPS_KEPT)
    def column(k: int, group: int) -> Any:
        handle = handles[k]
        table = (
            handle.read_row_group(group, columns=[image]) if isinstance(handle, pq.ParquetFile) else handle
        )
        return table[image]

    def read(i: int) -> bytes:
        at = int(np.searchsorted(starts, i, side="right")) - 1
        try:
            with lock:
                value = column(*groups[at])[i - starts[at]].as_py()
        except (pa.ArrowException, OSError) as error:
            raise BadImage(f"{names[i]} is damaged: {str(error).splitlines()[0]}") from None
        data = value.get("bytes") if isinstance(value, dict) else value
        if not isinstance(data, bytes):
            raise BadImage(f"{names[i]} holds no bytes; save the dataset with its images embedded")
        check_size(len(data), names[i])
        return data

    ends = [*starts[1:], len(labels)]
    names = [
        f"{files[k].name}:{row}" if len(files) > 1 else f"row {row}"
        for (k, _), first, end in zip(groups, starts, ends, strict=True)
        for row in range(first, end)
    ]
    return Source(path, "Parquet" if files[0].suffix == ".parquet" else "Arrow", classes, names, found, read)


_WANTED = ((IMAGE_COLUMNS, "images"), (LABEL_COLUMNS, "labels"))


def _column(schema: Any, names: tuple[str, ...], what: str, path: Path) -> str:
    for name in names:
        if name in schema.names:
            return name
    raise UsageError(
        f"{path} has no column of {what} ({' or '.join(names)}); it has {', '.join(schema.names)}"
    )


def _class_names(schema: Any, label: str) -> dict[int, str] | None:
    """The names that `datasets` writes into the schema's metadata."""
    try:
        feature = json.loads(schema.metadata[b"huggingface"])["info"]["features"][label]
        return dict(enumerate(map(str, feature["names"])))
    except (KeyError, ValueError, TypeError):
        return None
