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
from scaledit.data.names import suffix_of
from scaledit.data.sources import Source, check_size, numbered
from scaledit.data.unused import LeftOut, first
from scaledit.errors import UsageError, reading

IMAGE_COLUMNS = ("image", "img", "jpg", "png", "pixels")
LABEL_COLUMNS = ("label", "labels", "class", "cls", "fine_label")
GROUPS_KEPT = 4
"""Row groups kept in memory, so that reading in order decodes each only once."""
MAGIC = b"ARROW1"
"""The first bytes of an Arrow file. An Arrow stream, which `datasets` writes, begins differently."""


def open_tables(path: Path, files: list[Path], split: str, left: LeftOut) -> Source:
    """The images in the tables `files`, which belong to `split`. path: of the set. left: files that are not
    used. Raises UsageError if a file is corrupt, has no columns of images and labels, or its labels are not
    classes."""
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        raise UsageError(f'{path} needs pyarrow: pip install "scaledit[parquet]"') from None

    def opened(file: Path) -> Any:
        with reading(file, _kind(file), error=UsageError):
            if suffix_of(file.name) == ".parquet":
                return pq.ParquetFile(file)
            mapped = pa.memory_map(str(file))
            is_file = mapped.read(len(MAGIC)) == MAGIC
            mapped.seek(0)
            return (pa.ipc.open_file(mapped) if is_file else pa.ipc.open_stream(mapped)).read_all()

    def read_group(k: int, group: int, column: str) -> Any:
        if isinstance(tables[k], pq.ParquetFile):
            return tables[k].read_row_group(group, columns=[column])[column]
        return tables[k][column]

    tables = [opened(file) for file in files]
    schemas = [t.schema_arrow if isinstance(t, pq.ParquetFile) else t.schema for t in tables]
    image = _column(schemas[0], IMAGE_COLUMNS, "images", path)
    label = _column(schemas[0], LABEL_COLUMNS, "labels", path)
    _check_images(pa, schemas[0].field(image), path)
    _check_labels(pa, schemas[0].field(label), path)
    labels: list[Any] = []
    groups: list[tuple[int, int]] = []  # (file, row group)
    starts: list[int] = []  # the first row of each group
    for k, (table, file) in enumerate(zip(tables, files, strict=True)):
        if not schemas[k].equals(schemas[0]):
            raise UsageError(f"{file} has different columns from {files[0]}")
        with reading(file, _kind(file), error=UsageError):
            if not isinstance(table, pq.ParquetFile):
                # Arrow follows wrong offsets, even out of the file.
                table.select([image, label]).validate(full=True)
            for group in range(getattr(table, "num_row_groups", 1)):
                groups.append((k, group))
                starts.append(len(labels))
                labels += read_group(k, group, label).to_pylist()
    if not labels:
        raise UsageError(f"{path} contains no images")
    if None in labels:
        raise UsageError(f"{path}: row {labels.index(None)} has no {label}")
    numbers, class_names = numbered(labels, _class_names(schemas[0], label, files[0]), path)
    ends = [*starts[1:], len(labels)]
    names = [
        f"{files[k].name}:{row}" if len(files) > 1 else f"row {row}"
        for (k, _), start, end in zip(groups, starts, ends, strict=True)
        for row in range(start, end)
    ]
    lock = threading.Lock()

    @lru_cache(maxsize=GROUPS_KEPT)
    def images(k: int, group: int) -> Any:
        return read_group(k, group, image)

    def read(i: int) -> bytes:
        at = int(np.searchsorted(starts, i, side="right")) - 1
        with lock, reading(names[i], f"a row of {files[groups[at][0]].name}", error=BadImage):
            value = images(*groups[at])[i - starts[at]].as_py()
        data = value.get("bytes") if isinstance(value, dict) else value
        if not isinstance(data, bytes):
            raise BadImage(f"{names[i]} has no bytes; save the dataset with its images embedded")
        check_size(len(data), names[i])
        return data

    kind = "Parquet" if suffix_of(files[0].name) == ".parquet" else "Arrow"
    notes = _notes(path, files, image, label, schemas[0].names)
    words = isinstance(labels[0], str)
    return Source(path, kind, class_names, names, numbers, read, left.unused(), notes, split, by_name=words)


def _kind(file: Path) -> str:
    return "a Parquet file" if suffix_of(file.name) == ".parquet" else "an Arrow file"


def _notes(path: Path, files: list[Path], image: str, label: str, columns: list[str]) -> tuple[str, ...]:
    """Notes on similar columns that are not read, and on folders that are read as one set."""
    notes = []
    others = [name for name in columns if name not in (image, label)]
    similar = [name for name in others if name in IMAGE_COLUMNS + LABEL_COLUMNS or "label" in name.lower()]
    if similar:
        notes.append(f"{path}: the columns {image} and {label} are read; not read: {', '.join(similar)}")
    folders = sorted({str(file.parent.relative_to(path)) for file in files if file != path})
    if len(folders) > 1:
        notes.append(f"{path}: the tables of its folders {first(folders)} are read as one set")
    return tuple(notes)


def _column(schema: Any, names: tuple[str, ...], content: str, path: Path) -> str:
    for name in names:
        count = schema.names.count(name)
        if count > 1:
            raise UsageError(f"{path} has {count} columns named {name}; rename all but one")
        if count:
            return name
    raise UsageError(
        f"{path} has no column of {content} ({' or '.join(names)}); it has {', '.join(schema.names)}"
    )


def _check_images(pa: Any, field: Any, path: Path) -> None:
    """Raises UsageError if a column cannot hold encoded images."""
    kind, types = field.type, pa.types
    if types.is_struct(kind):
        kind = kind.field("bytes").type if kind.get_field_index("bytes") >= 0 else None
    if kind is not None and types.is_dictionary(kind):
        kind = kind.value_type
    binary = (types.is_binary, types.is_large_binary, types.is_binary_view, types.is_fixed_size_binary)
    if kind is None or not any(holds(kind) for holds in (*binary, types.is_null)):
        raise UsageError(
            f"{path}: its column {field.name} is {field.type!s:.60}, not encoded images (bytes, or a "
            "struct that has bytes); save the dataset with its images embedded"
        )


def _check_labels(pa: Any, field: Any, path: Path) -> None:
    """Raises UsageError if a column holds neither whole numbers nor words."""
    types = pa.types
    kind = field.type.value_type if types.is_dictionary(field.type) else field.type
    words = (types.is_string, types.is_large_string, types.is_string_view)
    if not any(holds(kind) for holds in (*words, types.is_integer, types.is_null)):
        raise UsageError(
            f"{path}: its column {field.name} is {field.type!s:.60}; labels are whole numbers or words, "
            "one per image"
        )


def _class_names(schema: Any, label: str, file: Path) -> dict[int, str] | None:
    """The class names that `datasets` writes into the schema's metadata."""
    metadata = (schema.metadata or {}).get(b"huggingface")
    if metadata is None:
        return None
    with reading(file, f"what datasets says of {label}", error=UsageError):
        value = json.loads(metadata)
        try:
            names = value["info"]["features"][label]["names"]
        except (KeyError, TypeError):
            return None
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise ValueError("the names of its classes are not a list of words")
    return dict(enumerate(names))
