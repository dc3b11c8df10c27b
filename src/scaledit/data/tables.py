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
from scaledit.data.unused import SHOWN, LeftOut
from scaledit.errors import UsageError, reading

IMAGE_COLUMNS = ("image", "img", "jpg", "png", "pixels")
LABEL_COLUMNS = ("label", "labels", "class", "cls", "fine_label")
GROUPS_KEPT = 4
"""Row groups held in memory: reading in order decodes each once."""
MAGIC = b"ARROW1"
"""How an Arrow file begins; a stream, which `datasets` writes, does not."""


def open_tables(path: Path, files: list[Path], *, split: str = "", left: LeftOut | None = None) -> Source:
    """split: what the files are of. Raises UsageError for files that are corrupt, have no columns of images
    and labels, or labels that are no classes."""
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

    handles = [opened(file) for file in files]
    schemas = [h.schema_arrow if isinstance(h, pq.ParquetFile) else h.schema for h in handles]
    image, label = (_column(schemas[0], names, what, path) for names, what in _WANTED)
    _check_images(pa, schemas[0].field(image), path)
    _check_labels(pa, schemas[0].field(label), path)
    labels: list[Any] = []
    groups: list[tuple[int, int]] = []  # (file, row group), and where its rows start
    starts: list[int] = []
    for k, (handle, file) in enumerate(zip(handles, files, strict=True)):
        if not schemas[k].equals(schemas[0]):
            raise UsageError(f"{file} has other columns than {files[0]}")
        with reading(file, _kind(file), error=UsageError):
            if isinstance(handle, pq.ParquetFile):
                for group in range(handle.num_row_groups):
                    groups.append((k, group))
                    starts.append(len(labels))
                    labels += handle.read_row_group(group, columns=[label])[label].to_pylist()
            else:
                # Offsets that point elsewhere would be followed, out of the file too.
                handle.select([image, label]).validate(full=True)
                groups.append((k, 0))
                starts.append(len(labels))
                labels += handle[label].to_pylist()
    if not labels:
        raise UsageError(f"{path} holds no images")
    if any(one is None for one in labels):
        raise UsageError(f"{path}: row {labels.index(None)} has no {label}")
    found, classes = numbered(labels, _class_names(schemas[0], label, files[0]), path)
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
        with lock, reading(names[i], f"a row of {files[groups[at][0]].name}", error=BadImage):
            value = column(*groups[at])[i - starts[at]].as_py()
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
    others = [name for name in schemas[0].names if name not in (image, label)]
    return Source(
        path,
        "Parquet" if suffix_of(files[0].name) == ".parquet" else "Arrow",
        classes,
        names,
        found,
        read,
        unused=left.found() if left is not None else (),
        notes=_notes(path, files, image, label, others),
        split=split,
        by_name=isinstance(labels[0], str),
    )


_WANTED = ((IMAGE_COLUMNS, "images"), (LABEL_COLUMNS, "labels"))


def _kind(file: Path) -> str:
    return "a Parquet file" if suffix_of(file.name) == ".parquet" else "an Arrow file"


def _notes(path: Path, files: list[Path], image: str, label: str, others: list[str]) -> tuple[str, ...]:
    """On columns that are not read though they might have been meant, and on folders read as one."""
    notes = []
    alike = [name for name in others if name in IMAGE_COLUMNS + LABEL_COLUMNS or "label" in name.lower()]
    if alike:
        notes.append(f"{path}: the columns {image} and {label} are read, {' and '.join(alike)} not")
    folders = sorted({str(file.parent.relative_to(path)) for file in files if file != path})
    if len(folders) > 1:
        more = ", ..." if len(folders) > SHOWN else ""
        notes.append(
            f"{path}: the tables of its folders {', '.join(folders[:SHOWN])}{more} are read as one set"
        )
    return tuple(notes)


def _column(schema: Any, names: tuple[str, ...], what: str, path: Path) -> str:
    for name in names:
        count = schema.names.count(name)
        if count > 1:
            raise UsageError(f"{path} has {count} columns named {name}; rename all but one")
        if count:
            return name
    raise UsageError(
        f"{path} has no column of {what} ({' or '.join(names)}); it has {', '.join(schema.names)}"
    )


def _check_images(pa: Any, field: Any, path: Path) -> None:
    """Raises UsageError for a column that cannot hold encoded images."""
    kind = field.type
    if pa.types.is_struct(kind):
        kind = kind.field("bytes").type if kind.get_field_index("bytes") >= 0 else None
    if kind is not None and pa.types.is_dictionary(kind):
        kind = kind.value_type
    if kind is None or not _is_binary(pa, kind):
        raise UsageError(
            f"{path}: its column {field.name} is {_short(field.type)}, not encoded images (bytes, or a "
            "struct that has bytes); save the dataset with its images embedded"
        )


def _is_binary(pa: Any, kind: Any) -> bool:
    types = pa.types
    return (
        types.is_binary(kind)
        or types.is_large_binary(kind)
        or types.is_binary_view(kind)
        or types.is_fixed_size_binary(kind)
        or types.is_null(kind)
    )


def _check_labels(pa: Any, field: Any, path: Path) -> None:
    """Raises UsageError for a column of what is neither whole numbers nor words."""
    kind = field.type.value_type if pa.types.is_dictionary(field.type) else field.type
    types = pa.types
    words = types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind)
    if not (words or types.is_integer(kind) or types.is_null(kind)):
        raise UsageError(
            f"{path}: its column {field.name} is {_short(field.type)}; labels are whole numbers or words, "
            "one per image"
        )


def _short(kind: Any) -> str:
    text = str(kind)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _class_names(schema: Any, label: str, file: Path) -> dict[int, str] | None:
    """The names that `datasets` writes into the schema's metadata."""
    about = (schema.metadata or {}).get(b"huggingface")
    if about is None:
        return None
    with reading(file, f"what datasets says of {label}", error=UsageError):
        said = json.loads(about)
        try:
            names = said["info"]["features"][label]["names"]
        except (KeyError, TypeError):
            return None
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise ValueError("the names of its classes are no list of words")
    return dict(enumerate(names))
