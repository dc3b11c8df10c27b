"""Hostile and broken files are refused with a one-line error, quickly, in little memory, and never run."""

from __future__ import annotations

import io
import json
import os
import pickle
import struct
import subprocess
import sys
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from layouts import OPTIONS, config, convert, official_state, random_dit
from scaledit import load
from scaledit.errors import UsageError
from scaledit.files.manifest import sealed
from scaledit.interop import pickle_reader
from scaledit.interop import pickled as pickled_module
from scaledit.interop.convert import open_model
from scaledit.interop.infer import Hints

MEGABYTES = 300
"""What the project promises for any refusal, above the imports' own."""
ELEMENTS = 9 << 28
"""Float32: 9 GiB."""
Make = Callable[[Path], object]
Refusals = dict[str, tuple[str, float]]


def archive(path: Path, data: bytes, storages: dict[str, bytes], compress: int = zipfile.ZIP_STORED) -> None:
    """A .pt file around any pickle."""
    with zipfile.ZipFile(path, "w", compress) as file:
        file.writestr("archive/data.pkl", data)
        file.writestr("archive/byteorder", b"little")
        for key, value in storages.items():
            file.writestr(f"archive/data/{key}", value)
        file.writestr("archive/version", b"3\n")


class _Call:
    """Pickles as a call of any function."""

    def __init__(self, function: object, *arguments: object):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


class _Pickler(pickle.Pickler):
    def persistent_id(self, obj: object):
        return obj.id if isinstance(obj, _Storage) else None


class _Storage:
    def __init__(self, numel: int, key: str = "0"):
        self.id = ("storage", torch.FloatStorage, key, "cpu", numel)


def pickled(value: object) -> bytes:
    file = io.BytesIO()
    _Pickler(file, protocol=2).dump(value)
    return file.getvalue()


def tensor(shape: tuple[int, ...], strides: tuple[int, ...], numel: int, offset: int = 0) -> _Call:
    return _Call(
        torch._utils._rebuild_tensor_v2, _Storage(numel), offset, shape, strides, False, OrderedDict()
    )


def canary(path: Path) -> None:
    touch = _Call(os.system, f"touch {path.parent / 'canary'}")
    archive(path, pickled({"model": touch, "x": tensor((1,), (1,), 1)}), {"0": b"0000"})


def canary_in_build(path: Path) -> None:
    """An object whose state would be set, and whose class is a builtin's exec."""
    data = pickled({"a": _Call(exec, f"open({str(path.parent / 'canary')!r}, 'w')")})
    archive(path, data, {})


def bare_pickle(path: Path) -> None:
    path.write_bytes(pickle.dumps(_Call(os.system, f"touch {path.parent / 'canary'}")))


def storage_bomb(path: Path) -> None:
    archive(path, pickled({"x": tensor((ELEMENTS,), (1,), ELEMENTS)}), {"0": b"\0" * 1024})


def stride_bomb(path: Path) -> None:
    archive(path, pickled({"x": tensor((ELEMENTS,), (0,), 256)}), {"0": b"\0" * 1024})


def shared_bomb(path: Path) -> None:
    one = tensor((256,), (1,), 256)
    archive(path, pickled({f"x{i}": one for i in range(9 << 10)}), {"0": b"\0" * 1024})


def offset_bomb(path: Path) -> None:
    archive(path, pickled({"x": tensor((4,), (1,), 256, offset=254)}), {"0": b"\0" * 1024})


def zip_bomb(path: Path) -> None:
    """1 GiB of zeros in a megabyte."""
    data = pickled({"x": tensor((1 << 28,), (1,), 1 << 28)})
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as file:
        file.writestr("archive/data.pkl", data)
        with file.open("archive/data/0", "w", force_zip64=True) as member:
            for _ in range(64):
                member.write(bytes(16 << 20))


def pickle_bomb(path: Path) -> None:
    """A compressed pickle that unpacks to 1 GiB."""
    with (
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as file,
        file.open("archive/data.pkl", "w", force_zip64=True) as member,
    ):
        for _ in range(64):
            member.write(b"N" * (16 << 20))


def long_pickle(path: Path) -> None:
    archive(path, b"\x80\x02" + b"N" * (32 << 20) + b".", {})


def endless_pickle(path: Path) -> None:
    """Two million opcodes."""
    archive(path, b"\x80\x02" + b"N" * ((2 << 20) - 8) + b".", {})


def colliding(path: Path) -> None:
    """A dict whose keys all have the same hash: quadratic work."""
    keys = b"".join(b"\x8a\x0a" + ((2**61 - 1) * i).to_bytes(10, "little") + b"N" for i in range(1, 150_000))
    archive(path, b"\x80\x02}(" + keys + b"u.", {})


def doubling(path: Path) -> None:
    """Lists of lists: 2^60 leaves for whoever walks them."""
    value: object = []
    for _ in range(60):
        value = [value, value]
    archive(path, pickled({"model": {"x": value}}), {})


def memory_bomb(path: Path) -> None:
    """Two million small dicts."""
    archive(path, b"\x80\x02" + b"}" * ((2 << 20) - 8) + b".", {})


def many_members(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as file:
        for i in range(30_000):
            file.writestr(f"archive/data/{i}", b"")


def overlapping(path: Path) -> None:
    """Two names for the same bytes, so that the sum is more than the file."""
    archive(path, pickled({"x": tensor((256,), (1,), 256)}), {"0": b"\0" * 1024, "1": b"\1" * 1024})
    data = bytearray(path.read_bytes())
    first, second = (data.find(f"archive/data/{i}".encode()) - 30 for i in (0, 1))
    entry = data.rfind(b"archive/data/1") - 46
    assert struct.unpack_from("<I", data, entry + 42)[0] == second
    struct.pack_into("<I", data, entry + 42, first)
    path.write_bytes(data)


def far_memo(path: Path) -> None:
    """A memo whose last index is 2^32 - 1: 32 GiB of pointers."""
    archive(path, b"\x80\x02Nr\xff\xff\xff\xff.", {})


def deep_key(path: Path) -> None:
    """A dict's key of 500,000 tuples in each other: hashing it overflows the stack."""
    archive(path, b"\x80\x02})" + b"\x85" * 500_000 + b"Ns.", {})


def dotted(path: Path) -> None:
    """Protocol 4 may ask for attributes of what it names."""
    name = b"__setstate__.__globals__.__getitem__"
    archive(
        path, b"\x80\x04\x8c\x05torch" + b"\x8c" + bytes([len(name)]) + name + b"\x93\x8c\x02os\x85R.", {}
    )


def extension(path: Path) -> None:
    archive(path, b"\x80\x02\x82\x01)R.", {})


def changed_class(path: Path) -> None:
    """The state of a class, not of an object: its attributes would be set."""
    archive(path, b"\x80\x02ctorch\nSize\nN}X\x08\x00\x00\x00__init__Ns\x86b.", {})


def truncated(path: Path) -> None:
    torch.save(official_state(random_dit(config())), path)
    path.write_bytes(path.read_bytes()[:-1000])


def hollow(path: Path) -> None:
    """The directory is whole, the middle is gone."""
    torch.save(official_state(random_dit(config())), path)
    data = path.read_bytes()
    path.write_bytes(data[:5000] + data[15000:])


def missing(path: Path) -> None:
    state = official_state(random_dit(config()))
    del state["blocks.1.attn.qkv.bias"]
    torch.save(state, path)


def extra(path: Path) -> None:
    torch.save({**official_state(random_dit(config())), "blocks.1.attn.q_norm.weight": torch.ones(8)}, path)


def wrong_shape(path: Path) -> None:
    torch.save({**official_state(random_dit(config())), "blocks.1.mlp.fc2.weight": torch.ones(16, 63)}, path)


def wrong_dtype(path: Path) -> None:
    torch.save({**official_state(random_dit(config())), "blocks.1.mlp.fc2.bias": torch.ones(16).long()}, path)


def no_tensor(path: Path) -> None:
    torch.save({**official_state(random_dit(config())), "blocks.1.mlp.fc2.bias": "none"}, path)


def other_position(path: Path) -> None:
    torch.save({**official_state(random_dit(config())), "pos_embed": torch.ones(1, 16, 16)}, path)


def legacy(path: Path) -> None:
    state = official_state(random_dit(config()))
    torch.save(state, path, _use_new_zipfile_serialization=False)


def text(path: Path) -> None:
    path.write_text("<html>404</html>")


PICKLES: dict[Make, str] = {
    canary: "would call posix.system; that is no part of a state dict",
    canary_in_build: "exec; that is no part of a state dict",
    bare_pickle: "was not written by torch.save",
    storage_bomb: "claims 9 GiB for the storage of x and has 1024 bytes",
    stride_bomb: "claims shape [2415919104] for x",
    shared_bomb: "together they claim more than the file has",
    offset_bomb: "claims shape [4] for x",
    zip_bomb: "has a compressed member (archive/data/0)",
    pickle_bomb: "has a compressed member (archive/data.pkl)",
    long_pickle: "has a pickle of 32 MiB",
    endless_pickle: "contains no state dict",
    colliding: "needs more than 2 s of processor time",
    doubling: "contains no state dict",
    memory_bomb: "needs more than",
    many_members: "not one that torch.save wrote",
    overlapping: "has members that overlap",
    far_memo: "needs more than",
    deep_key: "needs more than",
    dotted: "would call torch.__setstate__.__globals__.__getitem__; that is no part of a state dict",
    extension: "holds an invalid pickle",
    changed_class: "holds an invalid pickle",
    truncated: "is truncated",
    hollow: "is a zip with a piece missing",
    missing: "missing: blocks.1.attn.qkv.bias",
    extra: "unknown: blocks.1.attn.q_norm.weight",
    wrong_shape: "blocks.1.mlp.fc2.weight has the shape (16, 63), but this config needs (16, 64)",
    wrong_dtype: "has blocks.1.mlp.fc2.bias as I64; weights are F32, F16 or BF16",
    no_tensor: "has blocks.1.mlp.fc2.bias among its weights, which is not a tensor",
    other_position: "another position embedding",
    legacy: "save it again with a newer torch",
    text: "was not written by torch.save",
}


@pytest.fixture(scope="module")
def refusals(tmp_path_factory: pytest.TempPathFactory) -> Refusals:
    """(message, MiB above the imports) of opening each file, all in one process. The child's memory is what
    the system gives it, pickle_reader.MEMORY at most."""
    folder = tmp_path_factory.mktemp("hostile")
    for make in PICKLES:
        make(folder / f"{make.__name__}.pt")
    code = (
        "import json, sys\n"
        "from pathlib import Path\n"
        "from scaledit.cli import main\n"
        "from scaledit.errors import RunError, UsageError\n"
        "from scaledit.interop.convert import open_model\n"
        "from scaledit.interop.infer import Hints\n"
        "from scaledit.machine import peak_memory\n"
        "try: open_model(Path(sys.argv[1]) / 'text.pt', Hints(heads=2))\n"
        "except UsageError: pass\n"
        "before = peak_memory()\n"
        "for name in sys.argv[2:]:\n"
        "    message = 'accepted'\n"
        "    try: open_model(Path(sys.argv[1]) / name, Hints(heads=2))\n"
        "    except (UsageError, RunError) as error: message = str(error)\n"
        "    above = (peak_memory() - before) / 2**20\n"
        "    print(json.dumps([name, message, above]), flush=True)\n"
    )
    names = [f"{make.__name__}.pt" for make in PICKLES]
    done = subprocess.run(
        [sys.executable, "-c", code, str(folder), *names], capture_output=True, text=True, check=True
    )
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert not (folder / "canary").exists()
    return {name.removesuffix(".pt"): (message, above) for name, message, above in answers}


LONG = (endless_pickle, doubling, many_members)
"""For which a slow machine may need more than the processor time that there is, as for `colliding` all do."""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process's own peak of memory")
@pytest.mark.parametrize("make", PICKLES, ids=lambda make: make.__name__)
def test_refused_in_little_memory_and_never_run(make: Make, refusals: Refusals):
    message, above = refusals[make.__name__]
    assert PICKLES[make] in message or (make in LONG and "processor time" in message)
    assert message != "accepted" and "\n" not in message
    assert above < MEGABYTES - pickle_reader.MEMORY / 2**20


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have not all of these limits")
def test_refused_soon_because_the_system_sees_to_it():
    """The reader is held to its processor time by the kernel, and to the clock by who asks; that both end it,
    `colliding` and the next test show."""
    code = (
        "import resource, runpy, sys; reader = runpy.run_path(sys.argv[1]); reader['limit']()\n"
        "print(*resource.getrlimit(resource.RLIMIT_CPU), *resource.getrlimit(resource.RLIMIT_FSIZE))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, pickle_reader.__file__], capture_output=True, text=True, check=True
    )
    most = str(pickle_reader.SECONDS)
    assert done.stdout.split() == [most, most, "0", "0"]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="a pipe with a name is needed")
def test_a_reader_that_never_answers_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    os.mkfifo(tmp_path / "x.pt")  # it waits for somebody to write
    monkeypatch.setattr(pickled_module, "WALL_SECONDS", 0.1)
    assert pickled_module._describe(tmp_path / "x.pt") == {"refused": "takes more than 0.1 s to be read"}


@pytest.mark.parametrize("name", [*pickle_reader.STAND_INS, "torch.FloatStorage", "posix.system"])
def test_a_pickle_cannot_change_what_stands_for_a_name(name: str):
    """BUILD with (None, {attribute: value}) sets attributes of what has no __setstate__ of its own."""
    module, _, name = name.rpartition(".")
    data = f"c{module}\n{name}\nN".encode() + b"}X\x01\x00\x00\x00xNs\x86b."
    with pytest.raises(TypeError, match="__setstate__"):
        pickle_reader.Unpickler(io.BytesIO(data)).load()


def header(path: Path, entries: dict[str, object] | bytes, data: bytes) -> None:
    text = entries if isinstance(entries, bytes) else json.dumps(entries).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)


def entry(shape: list[int], begin: int, end: int, dtype: str = "F32") -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


@pytest.mark.parametrize(
    ("entries", "data", "says"),
    [
        ({"x": entry([ELEMENTS], 0, 4 * ELEMENTS)}, bytes(64), "x.safetensors cannot be read .* not fully"),
        ({"x": entry([16], 0, 64)}, bytes(60), "not fully covered"),
        ({"x": entry([16], 0, 64)}, bytes(68), "not fully covered"),
        ({"x": entry([ELEMENTS], 0, 64)}, bytes(64), "invalid shape, data type, or offset for tensor"),
        ({"x": entry([16], 0, 64), "y": entry([16], 0, 64)}, bytes(64), "invalid offset for tensor"),
        ({"x": entry([16], 4, 68)}, bytes(68), "invalid offset for tensor"),
        ({"x": entry([1 << 62, 1 << 62], 0, 0)}, b"", "overflow"),
        ({"x": entry([8], 0, 64, "F64")}, bytes(64), "has x as F64; weights are F32, F16, BF16"),
        ({"x": entry([128], 0, 64, "F4")}, bytes(64), "x is F4, not "),
        ({"x": entry([-1, -16], 0, 64)}, bytes(64), "invalid value: integer `-1`"),
        (b"{" * 100_000, b"", "invalid JSON in header"),
        (b'{"x": ' + b"[" * 100_000, b"", "invalid JSON in header"),
        (b"no", b"", "x.safetensors cannot be read as a safetensors file: .*; use another copy"),
    ],
)
def test_a_safetensors_header_is_held_against_the_file(
    entries: dict[str, object] | bytes, data: bytes, says: str, tmp_path: Path
):
    header(tmp_path / "x.safetensors", entries, data)
    with pytest.raises(UsageError, match=says) as caught:
        open_model(tmp_path / "x.safetensors", Hints(heads=2))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("claim", "says"),
    [
        ({"depth": 10**9}, "declares 1000000000 blocks"),
        ({"input_size": 10**7}, "too many"),
        ({"hidden_size": 1 << 20}, "does not fit its config"),
    ],
)
def test_a_folder_that_claims_a_huge_network(claim: dict[str, int], says: str, tmp_path: Path):
    """A manifest proves that a folder is whole, not that it means well."""
    torch.save(official_state(random_dit(config())), tmp_path / "in.pt")
    convert(tmp_path / "in.pt", tmp_path / "out", "--to", "scaledit", *OPTIONS)
    manifest = json.loads((tmp_path / "out/manifest.json").read_bytes())
    del manifest["sha256"]
    manifest["config"]["model"] |= claim
    (tmp_path / "out/manifest.json").write_bytes(sealed(manifest))
    with pytest.raises(UsageError, match=says):
        load(tmp_path / "out")


def test_a_shard_index_names_only_its_neighbors(tmp_path: Path):
    folder = tmp_path / "model/transformer"
    folder.mkdir(parents=True)
    (tmp_path / "secret.safetensors").write_bytes(b"")
    settings = {"_class_name": "DiTTransformer2DModel", "num_attention_heads": 2, "sample_size": 8}
    (folder / "config.json").write_text(json.dumps(settings))
    index = {"weight_map": {"x": "../../secret.safetensors"}}
    (folder / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(UsageError, match="is not a file beside it"):
        open_model(tmp_path / "model")
