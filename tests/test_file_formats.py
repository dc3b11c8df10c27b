"""Files are complete or missing, are compared with their hashes, and have the same bytes in every version."""

from __future__ import annotations

import hashlib
import io
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from scaledit import checkpoint, images
from scaledit.autoencoders.cache import Part
from scaledit.data.latents import AutoencoderInfo, Index, ShardFile
from scaledit.errors import RunError
from scaledit.files import tensors
from scaledit.files.atomic import atomic_folder, atomic_path, partial_beside, partial_folder
from scaledit.files.manifest import FileHash, mismatch, read_sealed, sealed
from scaledit.interop.lazy_tensors import from_tensor, write_safetensors

PARTS = {
    "model": {"b.weight": torch.arange(6.0).reshape(2, 3), "a.bias": torch.tensor([0.5, -1.0])},
    "optimizer": {
        "step": torch.tensor(7),
        "half": torch.arange(5, dtype=torch.float16),
        "brain": torch.arange(3, dtype=torch.bfloat16).reshape(3, 1),
        "double": torch.tensor([1.0, 2.0], dtype=torch.float64),
        "on": torch.tensor([True, False, True]),
        "bytes": torch.arange(3, dtype=torch.uint8),
        "none": torch.empty(0, 4),
        "int": torch.tensor([-1], dtype=torch.int32),
    },
}
SHA256 = {
    "000000.json": "76977dcb875ceae4b5e0aca57f3f4d388690b441f240215907eff911d09400af",
    "exported.safetensors": "e672841f3ba301e085d035ef673259d57714817fc3a498462a12289df255506f",
    "index.json": "2783fdd22b3073f6bfbaafcf2e2e73a3e004e43cbce27c1c80db05db8a196ad8",
    "manifest.json": "95b072c801070c02c6b0363c74ced294ed9d117a247b204e083bdeca5b2c6fe8",
    "model.safetensors": "41630fd8dd6467180927059b59951f8c5f86e3da93d0301b2d5e19b8cdc4f245",
    "optimizer.safetensors": "9d0c3d7ad7793baa99de67fb049138af8abc9dd315a0543b7e5b2e46a7903b0a",
}
"""The hashes of what scaledit 0.1.0 wrote from the same values."""


def written(folder: Path) -> dict[str, str]:
    """Writes a file of each kind into `folder`, and returns {name: SHA-256}."""
    saved = checkpoint.save(folder / "checkpoints", 3, PARTS, {"name": "x"}, losses=[0.5], class_names=["a"])
    index = Index(
        autoencoder=AutoencoderInfo("kl", "0" * 64, "1" * 64, 0.18215, 4, 8),
        class_names=("ant", "bee"),
        image_size=(16, 16),
        shape=(8, 2, 2),
        dtype="float16",
        flip=True,
        counts=(2, 1),
        mean=(0.5, 0.0, -0.25, 1.5),
        std=(1.0, 0.5, 0.25, 2.0),
        skipped=("c.png is damaged",),
        shards=(ShardFile("000000.safetensors", 3, 1000, "2" * 64),),
    )
    index.write(folder)
    part = Part(index.shards[0], (2, 1), ((24.0, 0.5, 0.25, 1.0),) * 4, ("c.png is damaged",))
    part.write(folder / "parts" / "000000.json")
    with (folder / "exported.safetensors").open("wb") as file:
        write_safetensors(
            file, {key: from_tensor(value) for key, value in PARTS["model"].items()}, lambda _: None
        )
    paths = [*saved.iterdir(), folder / "index.json", folder / "parts/000000.json"]
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in (*paths, folder / "exported.safetensors")
    }


def test_files_have_the_same_bytes_in_every_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(checkpoint, "__version__", "0.1.0")
    assert written(tmp_path) == SHA256


def test_checkpoints_are_read_by_the_library_as_they_were_saved(tmp_path: Path):
    saved = checkpoint.open_checkpoint(checkpoint.save(tmp_path, 3, PARTS, {}))
    for name, values in PARTS.items():
        back = load_file(saved.folder / f"{name}.safetensors")
        assert back.keys() == values.keys() == saved.names(name)
        for key, value in values.items():
            assert back[key].dtype == value.dtype and torch.equal(back[key], value)


def test_a_header_says_where_each_tensor_begins(tmp_path: Path):
    """In files of the library, which sorts by type, and of scaledit."""
    save_file(PARTS["optimizer"], tmp_path / "x.safetensors")
    ours = checkpoint.save(tmp_path / "checkpoints", 3, PARTS, {}) / "optimizer.safetensors"
    for path in (tmp_path / "x.safetensors", ours):
        data, found = path.read_bytes(), tensors.header(path)
        assert found.keys() == PARTS["optimizer"].keys()
        for name, (dtype, shape, start) in found.items():
            value = PARTS["optimizer"][name]
            assert (tensors.DTYPES[dtype], shape) == (value.dtype, tuple(value.shape))
            assert data[start : start + value.nbytes] == bytes(tensors.bytes_of(value))


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (None, "is missing"),
        (b"abc", "has 3 bytes instead of 4"),
        (b"abce", "does not match its SHA-256"),
        (b"abcd", ""),
    ],
)
def test_a_file_is_compared_with_its_hash(data: bytes | None, says: str, tmp_path: Path):
    path = tmp_path / "x"
    if data is not None:
        path.write_bytes(data)
    assert mismatch(path, *FileHash.of_bytes(b"abcd")) == says
    assert mismatch(path, 4) == ("" if "SHA" in says else says)
    if not says:
        assert FileHash.of(path) == FileHash.of_bytes(b"abcd")


def test_a_seal_covers_every_byte(tmp_path: Path):
    path, data = tmp_path / "x.json", sealed({"a": [1, 2.5], "b": "c"})
    path.write_bytes(data)
    assert read_sealed(path, "a thing") == ({"a": [1, 2.5], "b": "c"}, True)
    for other in (data + b" ", data.replace(b"2.5", b"2.50"), b'{"a": [1, 2.5], "b": "c"}'):
        path.write_bytes(other)
        assert read_sealed(path, "a thing") == ({"a": [1, 2.5], "b": "c"}, False)
    for corrupt in (b"", b"[1]", b'{"a": 1, "a": 1}', b'{"a": ' + b"[" * 60 + b"]" * 60 + b"}"):
        path.write_bytes(corrupt)
        with pytest.raises(RunError, match=r"x\.json cannot be read as a thing: .*; mend it$"):
            read_sealed(path, "a thing", "mend it")


def test_a_folder_is_complete_or_as_it_was(tmp_path: Path):
    out = tmp_path / "out"
    for text in ("first", "second"):  # the second one in place of the first
        with atomic_folder(out) as folder:
            (folder / "inner").mkdir()
            (folder / "inner" / text).write_text(text)
            assert folder.parent == tmp_path and not (out / "inner" / text).exists()
        assert [path.name for path in (out / "inner").iterdir()] == [text]
        assert list(tmp_path.iterdir()) == [out]
    with pytest.raises(KeyboardInterrupt), atomic_folder(out) as folder:
        (folder / "third").write_text("third")
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == [out] and [path.name for path in out.iterdir()] == ["inner"]


def test_a_folder_whose_rename_fails_is_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    out, rename = tmp_path / "out", Path.rename

    def failing(path: Path, target: Path) -> Path:
        if path == partial:
            raise OSError(5, "Input/output error", str(path))
        return rename(path, target)

    out.mkdir()
    (out / "mine").write_text("mine")
    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises(OSError, match="Input/output error") as caught, atomic_folder(out) as partial:
        (partial / "new").write_text("new")
    assert caught.value.filename == str(out)
    assert list(tmp_path.iterdir()) == [out] and (out / "mine").read_text() == "mine"


def test_a_folder_is_on_the_disk_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Every file and folder in it and, after the rename, its parent folder."""
    synced: list[str] = []
    fsync = os.fsync

    def watched(descriptor: int) -> None:
        synced.append(Path(f"/proc/self/fd/{descriptor}").resolve().name)
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", watched)
    with atomic_folder(tmp_path / "out") as folder:
        (folder / "inner").mkdir()
        (folder / "inner" / "a").write_text("a")
        (folder / "b").write_text("b")
        assert synced == []
    assert sorted(synced[:-1]) == sorted(["a", "b", "inner", folder.name]) and synced[-1] == tmp_path.name


KILLED = """
import os, signal, sys
from pathlib import Path
from scaledit.files.atomic import atomic_folder
with atomic_folder(Path(sys.argv[1])) as folder:
    (folder / "half").write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_folders_of_killed_programs_are_removed(tmp_path: Path):
    out = tmp_path / "out"
    env = {**os.environ, "PYTHONPATH": str(Path(checkpoint.__file__).parents[1])}
    done = subprocess.run([sys.executable, "-c", KILLED, str(out)], env=env)
    assert done.returncode == -signal.SIGKILL
    assert len(list(tmp_path.iterdir())) == 1 and not out.exists()
    running = partial_beside(out)
    running.mkdir()
    with partial_folder(out):
        pass
    assert list(tmp_path.iterdir()) == [running]


def test_what_a_library_writes_under_a_path(tmp_path: Path):
    out = tmp_path / "out"
    out.write_text("before")
    with pytest.raises(ValueError, match="no"), atomic_path(out) as partial:
        partial.write_text("after")
        raise ValueError("no")
    assert out.read_text() == "before"
    with atomic_path(out) as partial:
        partial.write_text("after")
        assert out.read_text() == "before"
    assert out.read_text() == "after" and list(tmp_path.iterdir()) == [out]


def test_a_picture_is_complete_or_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path, image = tmp_path / "new" / "x.png", np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    images.save_png(path, image, {"seed": 1})
    with Image.open(path) as opened:
        assert json.loads(opened.text["scaledit"]) == {"seed": 1}  # pyright: ignore[reportAttributeAccessIssue]
        assert np.array_equal(np.asarray(opened), image)
    before = path.read_bytes()

    def failing(self: Image.Image, file: io.BufferedWriter, *args: object, **more: object) -> None:
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", failing)
    with pytest.raises(OSError, match="No space") as caught:
        images.save_png(path, image, {"seed": 2})
    assert caught.value.filename == str(path)
    assert path.read_bytes() == before and list(path.parent.iterdir()) == [path]
