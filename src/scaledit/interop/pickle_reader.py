"""Describes the tensors of a PyTorch .pt file without running it: the child process of `interop.pickled`.

    zip directory -> unpickled into stand-ins -> {name: dtype, shape, strides, position in the file}

A pickle is a program. Python's own unpickler runs it with `find_class` overridden, so that every name the
pickle asks for becomes a class of this file: nothing is imported, no function of another module is called,
and the result consists of numbers, strings, tuples, lists, dicts, sets and descriptions of tensors. Calling
an unknown name is refused. Tensors are not read. This file is run as a script under limits that it sets for
itself, and uses the standard library only.

torch.load(weights_only=True) has an allow-list too, but refuses pickle protocols 3 to 5, takes 2 s and 200 MB
to import in the child, and maps the file: a mapped file that is truncated meanwhile kills the process.

The file of a trainer holds more than weights. The state dict of a DiT is recognized by its keys, wherever it
is nested; optimizers, schedulers, scalers, random states and counters are skipped, whatever they are called.
"""

from __future__ import annotations

import io
import itertools
import json
import math
import os
import pickle
import struct
import sys
import zipfile
import zlib
from collections.abc import Callable, Iterable
from typing import Any, BinaryIO, NamedTuple, NoReturn, Self

MEMORY = 128 << 20
"""Bytes of address space for this process, on top of what the interpreter has when it starts."""
SECONDS = 2
"""Limit on processor time; the trainer checkpoint of an XL/2 takes 0.2."""
LARGEST_PICKLE = 2 << 20
"""Bytes. A pickle of descriptions is short: 0.4 MB for the trainer checkpoint of an XL/2."""
MOST_TENSORS, MOST_AXES = 10_000, 8
MOST_DICTS, DEEPEST, MOST_PARTS = 10_000, 4, 64
"""Limits of the search for state dicts: dicts visited, nesting, networks."""
PATCHES = ("x_embedder.proj.weight", "pos_embed.proj.weight", "patch_embed.weight")
"""The patch embedding in the official, diffusers' and scaledit's layout: a dict with one is a DiT's."""
POSITION = "pos_embed"
"""The only weight whose name has no dot."""
WRAPPERS = ("module.", "_orig_mod.")
"""Prefixes that DistributedDataParallel and torch.compile put before every key."""
ARGUMENTS = ("args", "config", "cfg", "hparams", "hyper_parameters")
"""Keys under which trainers store the program's arguments as a dict instead of a Namespace."""
KNOWN_ARGUMENTS = ("model", "image_size", "vae", "num_classes", "class_dropout_prob", "class_dropout")
LEGACY = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # torch.save before 1.6

WEIGHTS = {"FloatStorage": "F32", "HalfStorage": "F16", "BFloat16Storage": "BF16"}
OTHER = {
    "DoubleStorage": "F64",
    "LongStorage": "I64",
    "IntStorage": "I32",
    "ShortStorage": "I16",
    "CharStorage": "I8",
    "ByteStorage": "U8",
    "BoolStorage": "BOOL",
}
"""Not weights; accepted because optimizer states and counters have them."""
DTYPES = {f"torch.{name}": dtype for name, dtype in {**WEIGHTS, **OTHER}.items()}
SIZE = {"F64": 8, "I64": 8, "F32": 4, "I32": 4, "F16": 2, "BF16": 2, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}
INVALID = "holds an invalid pickle"


class Refused(Exception):
    """The file is of another kind, or makes an impossible claim."""


class Corrupt(Exception):
    """The file was written by torch.save and has been damaged since."""


class Storage(NamedTuple):
    dtype: str
    key: str
    numel: int


class StandIn:
    """What a pickle gets for a name: subclasses decide what calling it makes. State is ignored.

    All define __setstate__, so that no pickle can set attributes: called on an object it does nothing, and
    called on the class itself it lacks its object and raises.
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
    """A value that is not needed, such as numpy's random state; operations on it do nothing."""

    __slots__ = ()

    def __new__(cls, *_: object, **__: object) -> Self:
        return super().__new__(cls)

    def append(self, item: object) -> None:
        pass

    def __setitem__(self, key: object, value: object) -> None:
        pass

    extend = add = append


class State(dict, StandIn):
    """collections.OrderedDict, without its attributes (_metadata, the versions of modules)."""

    def __init__(self) -> None:
        super().__init__()


class Record(State):
    """argparse.Namespace, as a dict of its attributes."""

    def __setstate__(self, state: object) -> None:
        if not isinstance(state, dict):
            raise Refused(INVALID)
        self.update(state)


class Tensor(StandIn):
    """torch._utils._rebuild_tensor_v2: the description of a tensor."""

    __slots__ = ("offset", "shape", "storage", "strides")

    def __init__(self, storage: object, offset: object, shape: object, strides: object, *_: object):
        if not isinstance(storage, Storage):
            raise Refused("holds a tensor without storage")
        self.storage, (self.offset,) = storage, sizes((offset,))
        self.shape, self.strides = sizes(shape), sizes(strides)
        if len(self.shape) != len(self.strides):
            raise Refused("holds a tensor whose strides and shape differ in length")


class Parameter(StandIn):
    """torch._utils._rebuild_parameter: its tensor."""

    def __new__(cls, tensor: object, *_: object) -> Any:
        if not isinstance(tensor, Tensor):
            raise Refused("holds a parameter that is not a tensor")
        return tensor


class Size(StandIn):
    """torch.Size: a tuple."""

    def __new__(cls, values: object) -> Any:
        return sizes(values)


INERT = """
    numpy.core.multiarray._reconstruct numpy.core.multiarray.scalar numpy.core.numeric._frombuffer
    numpy._core.multiarray._reconstruct numpy._core.multiarray.scalar numpy._core.numeric._frombuffer
    numpy.ndarray numpy.dtype _codecs.encode
    builtins.bytearray builtins.set builtins.frozenset builtins.complex builtins.slice
    collections.defaultdict collections.deque collections.Counter
    pathlib.Path pathlib.PosixPath pathlib.PurePosixPath pathlib.WindowsPath pathlib.PureWindowsPath
    datetime.datetime datetime.date datetime.time datetime.timedelta datetime.timezone
    torch.device torch.Generator easydict.EasyDict ml_collections.config_dict.ConfigDict
    omegaconf.dictconfig.DictConfig omegaconf.listconfig.ListConfig omegaconf.nodes.AnyNode
    omegaconf.base.ContainerMetadata omegaconf.base.Metadata
"""
STAND_INS: dict[str, type] = {
    "collections.OrderedDict": State,
    "argparse.Namespace": Record,
    "torch._utils._rebuild_tensor_v2": Tensor,
    "torch._utils._rebuild_parameter": Parameter,
    "torch.Size": Size,
    **dict.fromkeys(INERT.split(), Inert),
}
"""Everything that a pickle may call, by name."""


def sizes(values: object) -> tuple[int, ...]:
    if not isinstance(values, tuple) or len(values) > MOST_AXES:
        raise Refused("holds a tensor with an invalid shape")
    for value in values:
        if type(value) is not int or not 0 <= value < 1 << 62:
            raise Refused("holds a tensor with an invalid shape")
    return values


class Unpickler(pickle.Unpickler):
    """Makes stand-ins only. Reads every protocol, 0 to 5."""

    def find_class(self, module: str, name: str) -> type:
        name = f"{module.replace('__builtin__', 'builtins')}.{name}"
        return STAND_INS.get(name) or type("Unknown", (Unknown,), {"__slots__": (), "name": name})

    def persistent_load(self, pid: object) -> Storage:
        """pid: ("storage", torch.FloatStorage, "0", "cpu", 1024)."""
        if not (isinstance(pid, tuple) and len(pid) == 5 and pid[0] == "storage"):
            raise Refused("refers to something outside itself")
        kind, key, numel = getattr(pid[1], "name", ""), pid[2], pid[4]
        if kind not in DTYPES:
            raise Refused(f"holds storage of the kind {kind:.60}, which no DiT has")
        if not isinstance(key, str) or not key.isascii() or not key.isalnum():
            raise Refused("has a storage with an invalid key")
        return Storage(DTYPES[kind], key, sizes((numel,))[0])


Storages = dict[str, tuple[int, int, int]]
"""{storage key: (first byte, number of bytes, CRC-32)}. The CRC is 0 if torch.save omitted it
(torch.serialization.set_crc32_options)."""


def members(file: BinaryIO, size: int) -> tuple[bytes, Storages]:
    """The pickle and the storages of the archive. Raises Refused unless the archive is as torch.save writes
    it: every member stored, none compressed. Raises Corrupt if it is truncated or the pickle does not match
    its CRC-32."""
    try:
        infos = zipfile.ZipFile(file).infolist()
    except (zipfile.BadZipFile, NotImplementedError, ValueError, struct.error, UnicodeDecodeError):
        raise Corrupt("is truncated: it begins as a zip file and has no zip directory") from None
    pickles = [
        info for info in infos if info.filename.count("/") == 1 and info.filename.endswith("/data.pkl")
    ]
    if len(pickles) != 1 or len({info.filename for info in infos}) != len(infos):
        raise Refused("is a zip, but not one that torch.save wrote")
    prefix = pickles[0].filename.removesuffix("data.pkl")
    spans: list[tuple[int, int]] = []

    def span(info: zipfile.ZipInfo) -> tuple[int, int]:
        """(first byte, number of bytes)."""
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
            raise Corrupt(f"is truncated: {info.filename:.60} would end beyond the end of the file")
        spans.append((start, start + info.file_size))
        return start, info.file_size

    storages: Storages = {}
    for info in infos:
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
    return data, storages


def describe_tensor(name: str, tensor: Tensor, storages: Storages) -> dict[str, Any]:
    """The entry of a tensor in the answer, after checking that the file holds what it claims."""
    storage = tensor.storage
    if storage.dtype not in WEIGHTS.values():
        raise Refused(f"has {name} as {storage.dtype}; weights are F32, F16 or BF16")
    if storage.key not in storages:
        raise Corrupt(f"lacks the bytes of {name}")
    start, length, crc = storages[storage.key]
    item = SIZE[storage.dtype]
    numel = math.prod(tensor.shape)
    strided = zip(tensor.shape, tensor.strides, strict=True)
    extent = 1 + sum(max(count - 1, 0) * stride for count, stride in strided)
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


def networks(keys: Iterable[str]) -> dict[str, dict[str, str]]:
    """The DiTs among the keys of one dict: {part: {name within the network: key}}.

    part: the prefix of its keys without wrappers, "ema" for ema.module.pos_embed, "" if there is none.
    """
    keys = list(keys)
    prefixes = {
        key[: len(key) - len(patches)]
        for key in keys
        for patches in PATCHES
        if key == patches or key.endswith(f".{patches}")
    }
    ordered, parts = sorted(prefixes, key=len, reverse=True), {}
    for prefix in ordered:
        part = prefix
        for wrapper in WRAPPERS:
            part = part.replace(wrapper, "")
        part = part.removesuffix(".") if part.removesuffix(".") not in parts else prefix.removesuffix(".")
        parts[part] = {
            key.removeprefix(prefix): key
            for key in keys
            if key.startswith(prefix) and next(p for p in ordered if key.startswith(p)) == prefix
        }
    return parts


def state_dicts(value: dict[Any, Any]) -> dict[str, dict[str, Any]]:
    """{part: {name: tensor or other value}} of every DiT in nested dicts. part: the path to it, "" for the
    dict itself, "ema" or "state_dict.model" for a dict in it."""
    parts: dict[str, dict[str, Any]] = {}
    queue: list[tuple[str, dict[Any, Any], int]] = [("", value, 0)]
    for path, inner, depth in queue:  # grows during the iteration
        if len(queue) > MOST_DICTS or len(parts) > MOST_PARTS:
            raise Refused(f"has more than {MOST_DICTS} dicts or {MOST_PARTS} networks in it")
        for part, names in networks(key for key in inner if isinstance(key, str)).items():
            # A name without a dot is a counter beside the weights.
            weights = {name: inner[key] for name, key in names.items() if "." in name or name == POSITION}
            parts[".".join(filter(None, (path, part)))] = weights
        if depth < DEEPEST:
            for key, item in inner.items():
                if isinstance(key, str) and isinstance(item, dict):
                    queue.append((f"{path}.{key}" if path else key, item, depth + 1))
    return parts


def other_networks(value: dict[Any, Any]) -> dict[str, dict[str, Any]]:
    """All dicts with named tensors in a file without a DiT, so that an error can name a missing key."""
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


def describe(value: object, storages: Storages, size: int) -> dict[str, Any]:
    """{"parts": {part: {name: entry}}, "args": {...}}; the part "" is a bare state dict."""
    if isinstance(value, Record) or not isinstance(value, dict):
        raise Refused("contains no state dict")
    parts: dict[str, Any] = {}
    for part, inner in (state_dicts(value) or other_networks(value)).items():
        if len(inner) > MOST_TENSORS:
            raise Refused(f"has more than {MOST_TENSORS} tensors")
        for name, tensor in inner.items():
            if not isinstance(name, str) or not isinstance(tensor, Tensor):
                raise Refused(f"has {name!s:.60} among its weights, which is not a tensor")
        parts[part[:100]] = {
            name: describe_tensor(name[:100], tensor, storages) for name, tensor in inner.items()
        }
        if sum(SIZE[t.storage.dtype] * math.prod(t.shape) for t in inner.values()) > size:
            raise Refused("has weights that share bytes: together they claim more than the file has")
    return {"parts": parts, "args": arguments_in(value)}


def arguments_in(value: dict[Any, Any]) -> dict[str, Any]:
    """KNOWN_ARGUMENTS of the file's program: in a Namespace, under ARGUMENTS, or nested in these."""
    arguments: dict[str, Any] = {}
    sources = [inner for inner in value.values() if isinstance(inner, Record)]
    sources += [value[key] for key in ARGUMENTS if isinstance(value.get(key), dict)]
    sources += [inner for source in sources for inner in source.values() if isinstance(inner, dict)]
    for source in sources:
        for key in KNOWN_ARGUMENTS:
            if isinstance(source.get(key), str | int | float):
                arguments.setdefault(key, source[key])
    return arguments


def limit() -> None:
    """Limits memory, processor time, written files and core dumps to what reading needs."""
    try:
        import resource
    except ImportError:  # Windows: only the interpreter's rules and the parent's timeout apply
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
    for kind, most in limits:
        try:
            resource.setrlimit(kind, (most, most))
        except (ValueError, OSError):  # macOS does not limit memory, or a lower limit is in force
            continue


def read(path: str) -> dict[str, Any]:
    """What `describe` returns, and "size", the bytes of the file. Raises Refused and Corrupt."""
    size = os.path.getsize(path)
    with open(path, "rb") as file:
        start = file.read(len(LEGACY))
        if start == LEGACY:
            raise Refused(
                "is in the format of torch before 1.6; save it again with a newer torch: "
                'torch.save(torch.load(FILE, weights_only=True), "new.pt")'
            )
        if not start.startswith(b"PK"):
            raise Refused("was not written by torch.save")
        data, storages = members(file, size)
    return {"size": size, **describe(Unpickler(io.BytesIO(data)).load(), storages, size)}


def main(path: str, write: Callable[[str], object]) -> None:
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
    except Exception as error:  # wrong types on the stack, a missing memo entry, ...
        answer = {"refused": f"{INVALID} ({type(error).__name__})"}
    write(json.dumps(answer))


if __name__ == "__main__":
    main(sys.argv[1], sys.stdout.write)
