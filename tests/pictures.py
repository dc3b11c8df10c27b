"""The same twelve labelled pictures as files of every layout that scaledit reads."""

from __future__ import annotations

import io
import json
import tarfile
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image

CLASSES = ("bark", "chelsea", "sky")
N = 12
LABELS = [i % 3 for i in range(N)]


def picture(i: int, width: int = 44, height: int = 36) -> np.ndarray:
    """A smooth color picture, (H, W, 3) uint8."""
    rng = np.random.default_rng(i)
    coarse = Image.fromarray(rng.integers(0, 256, (4, 5, 3), dtype=np.uint8))
    return np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC))


def encoded(i: int) -> tuple[str, bytes]:
    """(suffix, bytes): every third a JPEG."""
    kind = "jpeg" if i % 3 == 1 else "png"
    buffer = io.BytesIO()
    Image.fromarray(picture(i)).save(buffer, format=kind)
    return (".jpg" if kind == "jpeg" else ".png"), buffer.getvalue()


def order() -> list[int]:
    """Class after class, as a tree is read."""
    return sorted(range(N), key=lambda i: (LABELS[i], i))


def tree(path: Path) -> Path:
    for i in range(N):
        suffix, data = encoded(i)
        (path / CLASSES[LABELS[i]]).mkdir(parents=True, exist_ok=True)
        (path / CLASSES[LABELS[i]] / f"{i:03d}{suffix}").write_bytes(data)
    return path


def shards(path: Path) -> Path:
    """Two WebDataset shards whose keys begin anew, with names of the classes beside them."""
    path.mkdir()
    for k, some in enumerate((order()[:7], order()[7:])):
        with tarfile.open(path / f"{k:04d}.tar", "w") as archive:
            for key, i in enumerate(some):
                suffix, data = encoded(i)
                for name, content in ((suffix, data), (".cls", str(LABELS[i]).encode())):
                    entry = tarfile.TarInfo(f"{key:04d}{name}")
                    entry.size = len(content)
                    archive.addfile(entry, io.BytesIO(content))
    (path / "classes.txt").write_text("\n".join(CLASSES) + "\n")
    return path


def tar_tree(path: Path) -> Path:
    """A tree in one tar, below a folder of its own."""
    inner = tree(path.with_suffix(".tmp"))
    with tarfile.open(path, "w") as archive:
        archive.add(inner, arcname="dataset")
    return path


def zipped(path: Path) -> Path:
    inner = tree(path.with_suffix(".tmp"))
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(inner.rglob("*.*")):
            archive.write(file, f"dataset/{file.relative_to(inner)}")
    return path


def _table():
    import pyarrow as pa

    rows = [{"bytes": encoded(i)[1], "path": f"{i}{encoded(i)[0]}"} for i in order()]
    table = pa.table({"image": rows, "label": [LABELS[i] for i in order()]})
    features = {"label": {"names": list(CLASSES), "_type": "ClassLabel"}, "image": {"_type": "Image"}}
    return table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})


def parquet(path: Path) -> Path:
    """Two files of several row groups, as on the Hugging Face hub."""
    import pyarrow.parquet as pq

    (path / "data").mkdir(parents=True)
    table = _table()
    pq.write_table(table.slice(0, 8), path / "data" / "train-00000-of-00002.parquet", row_group_size=3)
    pq.write_table(table.slice(8), path / "data" / "train-00001-of-00002.parquet", row_group_size=3)
    return path


def arrow(path: Path) -> Path:
    """As datasets' save_to_disk writes."""
    import pyarrow as pa

    path.mkdir()
    table = _table()
    file = path / "data-00000-of-00001.arrow"
    with pa.OSFile(str(file), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=5)
    return path


LAYOUTS = {
    "tree": lambda at: tree(at / "tree"),
    "tar shards": lambda at: shards(at / "shards"),
    "a tar": lambda at: tar_tree(at / "one.tar"),
    "a zip": lambda at: zipped(at / "one.zip"),
    "parquet": lambda at: parquet(at / "parquet"),
    "arrow": lambda at: arrow(at / "arrow"),
}
