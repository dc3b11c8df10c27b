"""What a PyTorch .pt file says it holds, read without running it: the child process of `interop.pickled`.

    zip directory -> unpickled into stand-ins -> {name: dtype, shape, strides, where in the file}

A pickle is a program. Python's own unpickler runs it here with `find_class` overridden, so that every name
that the pickle asks for becomes a class of this file: nothing is imported, nothing of another module is
called, and what comes out is numbers, strings, tuples, lists, dicts, sets and descriptions of tensors. A name
that stands for nothing is refused when the pickle calls it. No tensor is read. Standard library only: this
file is run as a script, under limits that it sets itself.

torch.load(weights_only=True) has an allow-list too, but refuses the pickle protocols 3 to 5, takes 2 s and
200 MB to import in the child, and maps the file: a mapped file that is cut meanwhile kills the process.

A trainer's file has more in it than weights. What is a DiT's state dict is told by what it holds, wherever it
lies; optimizers, schedulers, scalers, random states and counters are passed over, whatever they are called.
"""

from __future__ import annotations

import io
import itertools
import json
import os
import pickle
import struct
import sys
import zipfile
import zlib
from collections.abc import Callable, Iterable
from typing import Any, BinaryIO, NamedTuple, NoReturn, Self

MEMORY = 128 << 20
"""Bytes of address space for this process, above what the interpreter has when it starts."""
SECONDS = 2
"""Of processor time. The trainer checkpoint of an XL/2 takes 0.2."""
LARGEST_PICKLE = 2 << 20
"""Bytes: descriptions only. A trainer checkpoint of an XL/2 has 0.4 MB."""
MOST_TENSORS, MOST_AXES = 10_000, 8
MOST_DICTS, DEEPEST, MOST_PARTS = 10_000, 4, 64
"""Of a trainer's file, as far as state dicts are looked for."""
PATCHES = ("x_embedder.proj.weight", "pos_embed.proj.weight", "patch_embed.weight")
"""The patch embedding by the official programs' name, diffusers' and ours: what has one is a DiT's state
dict."""
POSITION = "pos_embed"
"""The one weight that lies in no module of the network; other names without a dot are no weights."""
WRAPPERS = ("module.", "_orig_mod.")
"""What DistributedDataParallel and torch.compile put before every key."""
ARGUMENTS = ("args", "config", "cfg", "hparams", "hyper_parameters")
"""Where trainers keep the arguments of the program, where those are a dict and not a Namespace."""
KNOWN_ARGUMENTS = (
    "model",
    "image_size",
    "vae",
    "num_classes",
    "class_dropout_prob",
    "class_dropout",
    "global_batch_size",
)
LEGACY = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # torch.save before 1.6

DTYPES = {"FloatStorage": "F32", "HalfStorage": "F16", "BFloat16Storage": "BF16"}
OTHER = {
    "DoubleStorage": "F64",
    "LongStorage": "I64",
    "IntStorage": "I32",
    "ShortStorage": "I16",
    "CharStorage": "I8",
    "ByteStorage": "U8",
    "BoolStorage": "BOOL",
}
"""Read, so that optimizer states do not stop the reading, but no weights."""
SIZE = {"F64": 8, "I64": 8, "F32": 4, "I32": 4, "F16": 2, "BF16": 2, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}


class Refused(Exception):
    """The file is of another kind, or says what cannot be true."""


class Corrupt(Exception):
    """The file was one of ours and is no longer."""


class Storage(NamedTuple):
    dtype: str
    key: str
    numel: int


class StandIn:
    """What a pickle gets for a name. Each kind says what a call of it makes; an object's state is ignored.

    All have a __setstate__, so that no pickle can set attributes: of an object it is called, of the class
    itself it is the function that lacks its object, which is an error.
    """

    __slots__ = ()

    def __setstate__(self, state: object) -> None:
        pass


class Unknown(StandIn):
    """A name that may be mentioned, as the factory of a defaultdict is, but not called."""

    __slots__ = ()
    name = ""

    def __new__(cls, *_: object, **__: object) -> NoReturn:
        raise Refused(f"would call {cls.name:.80}; that is no part of a state dict")


class Inert(StandIn):
    """A value of a kind that trainers keep beside weights and that is not needed: numpy's random state, say.
    What the pickle does to it is done to nothing."""

    __slots__ = ()

    def __new__(cls, *_: object, **__: object) -> Self:
        return super().__new__(cls)

    def append(self, item: object) -> None:
        pass

    def __setitem__(self, key: object, value: object) -> None:
        pass

    extend = add = append


class State(dict, StandIn):
    """collections.OrderedDict. Its attributes (_metadata, versions of modules) are not needed."""

    def __init__(self) -> None:
        super().__init__()


class Record(State):
    """argparse.Namespace: its attributes."""

    def __setstate__(self, state: object) -> None:
        if not isinstance(state, dict):
            raise Refused("holds a pickle that makes no sense")
        self.update(state)


class Tensor(StandIn):
    """torch._utils._rebuild_tensor_v2: a tensor's description."""

    __slots__ = ("offset", "shape", "storage", "strides")

    def __init__(self, storage: object, offset: object, shape: object, strides: object, *_: object):
        if not isinstance(storage, Storage):
            raise Refused("holds a tensor without storage")
        self.storage, (self.offset,) = storage, whole_numbers((offset,))
        self.shape, self.strides = whole_numbers(shape), whole_numbers(strides)
        if len(self.shape) != len(self.strides):
            raise Refused("holds a tensor with other strides than axes")


class Parameter(StandIn):
    """torch._utils._rebuild_parameter: its tensor."""

    def __new__(cls, tensor: object, *_: object) -> Any:
        if not isinstance(tensor, Tensor):
            raise Refused("holds a parameter that is no tensor")
        return tensor


class Size(StandIn):
    """torch.Size: a tuple."""

    def __new__(cls, values: object) -> Any:
        return whole_numbers(values)


STAND_INS: dict[str, type] = {
    "collections.OrderedDict": State,
    "argparse.Namespace": Record,
    "torch._utils._rebuild_tensor_v2": Tensor,
    "torch._utils._rebuild_parameter": Parameter,
    "torch.Size": Size,
    **dict.fromkeys(
        [
            *(
                f"numpy.{core}.multiarray.{name}"
                for core in ("core", "_core")
                for name in ("_reconstruct", "scalar")
            ),
            *("numpy.core.numeric._frombuffer", "numpy._core.numeric._frombuffer"),
            *("numpy.ndarray", "numpy.dtype", "_codecs.encode", "builtins.bytearray", "builtins.set"),
            *("builtins.frozenset", "builtins.complex", "builtins.slice"),
            *("collections.defaultdict", "collections.deque", "collections.Counter"),
            *(f"pathlib.{name}Path" for name in ("", "Posix", "PurePosix", "Windows", "PureWindows")),
            *(f"datetime.{name}" for name in ("datetime", "date", "time", "timedelta", "timezone")),
            *(
                "torch.device",
                "torch.Generator",
                "easydict.EasyDict",
                "ml_collections.config_dict.ConfigDict",
            ),
            *(
                "omegaconf.dictconfig.DictConfig",
                "omegaconf.listconfig.ListConfig",
                "omegaconf.nodes.AnyNode",
            ),
            *("omegaconf.base.ContainerMetadata", "omegaconf.base.Metadata"),
        ],
        Inert,
    ),
}
"""All that a pickle may call, by name."""


def whole_numbers(values: object) -> tuple[int, ...]:
    if not isinstance(values, tuple) or len(values) > MOST_AXES:
        raise Refused("holds a tensor whose shape is no shape")
    for value in values:
        if type(value) is not int or not 0 <= value < 1 << 62:
            raise Refused("holds a tensor whose shape is no shape")
    return values


class Unpickler(pickle.Unpickler):
    """Makes stand-ins only. Reads every protocol, 0 to 5."""

    def find_class(self, module: str, name: str) -> type:
        name = f"{module.replace('__builtin__', 'builtins')}.{name}"
        return STAND_INS.get(name) or type("Unknown", (Unknown,), {"__slots__": (), "name": name})

    def persistent_load(self, pid: object) -> Storage:
        """('storage', torch.FloatStorage, '0', 'cpu', 1024)"""
        if not (isinstance(pid, tuple) and len(pid) == 5 and pid[0] == "storage"):
            raise Refused("refers to something outside itself")
        kind, key, numel = getattr(pid[1], "name", ""), pid[2], pid[4]
        known = {f"torch.{name}": dtype for name, dtype in {**DTYPES, **OTHER}.items()}
        if kind not in known:
            raise Refused(f"holds storage of the kind {kind:.60}, which no DiT has")
        if not isinstance(key, str) or not key.isascii() or not key.isalnum():
            raise Refused("names a storage by what is no name")
        return Storage(known[kind], key, whole_numbers((numel,))[0])


class Members(NamedTuple):
    """Of the zip: the pickle's bytes, and {storage key: (first byte, bytes, CRC-32)}; 0 for a CRC that
    torch.save was told to leave out (torch.serialization.set_crc32_options)."""

    pickle: bytes
    storages: dict[str, tuple[int, int, int]]


def members(file: BinaryIO, size: int) -> Members:
    """Raises Refused where the archive is not as torch.save writes it: all stored, nothing compressed."""
    try:
        listed = zipfile.ZipFile(file).infolist()
    except (zipfile.BadZipFile, NotImplementedError, ValueError, struct.error, UnicodeDecodeError):
        raise Corrupt("begins as a zip and does not end as one: it is cut off") from None
    pickles = [
        info for info in listed if info.filename.count("/") == 1 and info.filename.endswith("/data.pkl")
    ]
    if len(pickles) != 1 or len({info.filename for info in listed}) != len(listed):
        raise Refused("is a zip, but not one that torch.save wrote")
    prefix = pickles[0].filename.removesuffix("data.pkl")
    spans: list[tuple[int, int]] = []

    def span(info: zipfile.ZipInfo) -> tuple[int, int]:
        if info.compress_type != zipfile.ZIP_STORED or info.compress_size != info.file_size:
            raise Refused(f"has a compressed member ({info.filename:.60}); torch.save compresses nothing")
        if info.header_offset < 0:
            raise Corrupt("is a zip with a piece missing")
        file.seek(info.header_offset)
        header = file.read(30)
        if len(header) < 30 or header[:4] != b"PK\3\4" or header[6] & 1:
            raise Refused(f"has a member without a header ({info.filename:.60})")
        name, extra = struct.unpack("<HH", header[26:30])
        start = info.header_offset + 30 + name + extra
        if start + info.file_size > size:
            raise Corrupt(f"is cut off: {info.filename:.60} would end behind the file's last byte")
        spans.append((start, start + info.file_size))
        return start, info.file_size

    storages: dict[str, tuple[int, int, int]] = {}
    for info in listed:
        if info.filename.startswith(f"{prefix}data/"):
            storages[info.filename.removeprefix(f"{prefix}data/")] = (*span(info), info.CRC)
        elif info.filename == f"{prefix}byteorder":
            start, length = span(info)
            file.seek(start)
            if file.read(min(length, 8)) != b"little":
                raise Refused("was written on a big-endian machine")
    start, length = span(pickles[0])
    spans.sort()
    if any(end > start for (_, end), (start, _) in itertools.pairwise(spans)):
        raise Refused("has members that overlap")
    if length > LARGEST_PICKLE:
        raise Refused(f"has a pickle of {length >> 20} MiB: descriptions of tensors are not that long")
    file.seek(start)
    data = file.read(length)
    if pickles[0].CRC not in (0, zlib.crc32(data)):
        raise Corrupt(f"is corrupt: {pickles[0].filename:.60} does not match its CRC-32")
    return Members(data, storages)


def described(name: str, tensor: Tensor, storages: dict[str, tuple[int, int, int]]) -> dict[str, Any]:
    """A tensor's entry in the answer, after checking that the file has what it claims."""
    storage = tensor.storage
    if storage.dtype not in DTYPES.values():
        raise Refused(f"has {name} as {storage.dtype}; weights are F32, F16 or BF16")
    if storage.key not in storages:
        raise Corrupt(f"lacks the bytes of {name}")
    start, length, crc = storages[storage.key]
    item = SIZE[storage.dtype]
    numel, extent = 1, 1
    for count, stride in zip(tensor.shape, tensor.strides, strict=True):
        numel *= count
        extent += max(count - 1, 0) * stride
    if storage.numel * item != length:
        raise Refused(
            f"claims {storage.numel * item / 2**30:.3g} GiB for the storage of {name} and has {length} bytes"
        )
    if numel and (tensor.offset + extent > storage.numel or numel > extent):
        raise Refused(f"claims shape {list(tensor.shape)} for {name}, which its storage does not hold")
    return {
        "dtype": storage.dtype,
        "shape": tensor.shape,
        "strides": tensor.strides,
        "start": start + tensor.offset * item,
        "storage": (start, length, crc),
    }


def grouped(keys: Iterable[str]) -> dict[str, dict[str, str]]:
    """The networks in a state dict: {part: {name in the network: key}}. The part "" is the whole of it,
    wrapped or not; another is what its keys begin with, as in "ema" for ema.module.pos_embed. {} where there
    is no DiT."""
    keys = list(keys)
    prefixes = {
        key[: len(key) - len(patches)]
        for key in keys
        for patches in PATCHES
        if key == patches or key.endswith(f".{patches}")
    }
    ordered, parts = sorted(prefixes, key=len, reverse=True), {}
    for prefix in ordered:
        words = prefix
        for wrapper in WRAPPERS:
            words = words.replace(wrapper, "")
        part = words.removesuffix(".") if words.removesuffix(".") not in parts else prefix.removesuffix(".")
        parts[part] = {}
        for key in keys:
            if key.startswith(prefix) and next(p for p in ordered if key.startswith(p)) == prefix:
                parts[part][key.removeprefix(prefix)] = key
    return parts


def state_dicts(value: dict[Any, Any]) -> dict[str, dict[str, Any]]:
    """{part: {name: tensor, or what stands in its place}} of every DiT in nested dicts, by where it lies: ""
    is the dict itself, "ema" or "state_dict.model" one in it."""
    parts: dict[str, dict[str, Any]] = {}
    queue: list[tuple[str, dict[Any, Any], int]] = [("", value, 0)]
    for where, inner, depth in queue:  # grows while it is gone through
        if len(queue) > MOST_DICTS or len(parts) > MOST_PARTS:
            raise Refused(f"has more than {MOST_DICTS} dicts or {MOST_PARTS} networks in it")
        for part, names in grouped(key for key in inner if isinstance(key, str)).items():
            path = ".".join(word for word in (where, part) if word)
            parts[path] = {name: inner[key] for name, key in names.items() if is_weight(name)}
        if depth < DEEPEST:
            for key, item in inner.items():
                if isinstance(key, str) and isinstance(item, dict):
                    queue.append((f"{where}.{key}" if where else key, item, depth + 1))
    return parts


def is_weight(name: str) -> bool:
    """Whether `name` is that of a weight in a network: not a counter that lies beside them."""
    return "." in name or name == POSITION


def of_another_network(value: dict[Any, Any]) -> dict[str, dict[str, Any]]:
    """As `state_dicts`, where there is no DiT: what has tensors under names, so that what it lacks can be
    said."""
    if any(isinstance(inner, Tensor) for inner in value.values()):
        value = {"": value}
    return {
        part: inner
        for part, inner in value.items()
        if isinstance(part, str)
        and isinstance(inner, dict)
        and not isinstance(inner, Record)
        and any(isinstance(tensor, Tensor) and isinstance(name, str) for name, tensor in inner.items())
    }


def sorted_out(value: object, storages: dict[str, tuple[int, int, int]], size: int) -> dict[str, Any]:
    """{"parts": {part: {name: entry}}, "args": {...}}; the part "" is a bare state dict."""
    if isinstance(value, Record) or not isinstance(value, dict):
        raise Refused("holds no state dict")
    parts: dict[str, Any] = {}
    for part, inner in (state_dicts(value) or of_another_network(value)).items():
        if len(inner) > MOST_TENSORS:
            raise Refused(f"has more than {MOST_TENSORS} tensors")
        for name, tensor in inner.items():
            if not isinstance(name, str) or not isinstance(tensor, Tensor):
                raise Refused(f"has {name!s:.60} among its weights, which is no tensor")
        parts[part[:100]] = {name: described(name[:100], tensor, storages) for name, tensor in inner.items()}
        if sum(SIZE[t.storage.dtype] * prod(t.shape) for t in inner.values()) > size:
            raise Refused("has weights that share bytes: together they claim more than the file has")
    return {"parts": parts, "args": arguments_of(value)}


def arguments_of(value: dict[Any, Any]) -> dict[str, Any]:
    """What the program that wrote the file says of itself in its arguments, as far as it helps: a Namespace,
    or a dict where trainers keep one, with dicts in it."""
    found: dict[str, Any] = {}
    places = [inner for inner in value.values() if isinstance(inner, Record)]
    places += [value[key] for key in ARGUMENTS if isinstance(value.get(key), dict)]
    places += [inner for place in places for inner in place.values() if isinstance(inner, dict)]
    for place in places:
        for key in KNOWN_ARGUMENTS:
            if isinstance(place.get(key), str | int | float):
                found.setdefault(key, place[key])
    return found


def prod(values: tuple[int, ...]) -> int:
    out = 1
    for value in values:
        out *= value
    return out


def limit() -> None:
    """No more memory, processor time, files written or child processes than reading needs."""
    try:
        import resource
    except ImportError:  # not on Windows: there only the interpreter's own rules and the parent's clock hold
        return
    try:  # some systems map hundreds of megabytes of locales at the start
        with open("/proc/self/statm") as file:
            present = int(file.read().split()[0]) * resource.getpagesize()
    except OSError:
        present = 64 << 20
    limits = (
        (resource.RLIMIT_AS, present + MEMORY),
        (resource.RLIMIT_CPU, SECONDS),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_CORE, 0),
    )
    for what, most in limits:
        try:
            resource.setrlimit(what, (most, most))
        except (ValueError, OSError):  # macOS has no such limit on memory; a lower one is in force already
            continue


def read(path: str) -> dict[str, Any]:
    """Raises Refused, Corrupt."""
    size = os.path.getsize(path)
    with open(path, "rb") as file:
        start = file.read(len(LEGACY))
        if start == LEGACY:
            raise Refused(
                "is in torch's format of before 1.6; save it again with a newer torch: "
                'torch.save(torch.load(FILE, weights_only=True), "new.pt")'
            )
        if not start.startswith(b"PK"):
            raise Refused("is no file of torch.save")
        data, storages = members(file, size)
    return {"size": size, **sorted_out(Unpickler(io.BytesIO(data)).load(), storages, size)}


def main(path: str, say: Callable[[str], object]) -> None:
    try:
        limit()
        answer = read(path)
    except Refused as error:
        answer = {"refused": str(error)}
    except Corrupt as error:
        answer = {"corrupt": str(error)}
    except (MemoryError, RecursionError):
        answer = {"refused": f"needs more than {MEMORY >> 20} MiB to be read, which no checkpoint does"}
    except OSError as error:
        answer = {"refused": f"cannot be opened: {error.strerror}"}
    except Exception as error:  # a pickle that is none: wrong types on the stack, a memo that is not there
        answer = {"refused": f"holds a pickle that makes no sense ({type(error).__name__})"}
    say(json.dumps(answer))


if __name__ == "__main__":
    main(sys.argv[1], sys.stdout.write)
