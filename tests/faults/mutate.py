"""Valid files made invalid, a little and in every way: a pure function of the bytes and a random.Random.

    bytes of any kind   bits, ranges, lengths, numbers            `corrupt`
    JSON, TOML, CSV     values, keys, nesting, numbers, encodings `json_text`, `toml_text`, `csv_text`
    safetensors, npz, pickles of torch, PNG                       their own headers, made to fit again

`Mutation.fits`: the file's own checksum was made anew, so that what it says now is simply another file.
"""

from __future__ import annotations

import io
import json
import pickletools
import random
import re
import struct
import zipfile
import zlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from scaledit.files.manifest import sealed

Random = random.Random
NUMBERS = (0, 1, 2, 127, 128, 255, 256, 32767, 65535, 1 << 16, (1 << 31) - 1, 1 << 31, (1 << 32) - 1)
HUGE = (1 << 40, (1 << 53) + 1, (1 << 63) - 1, 1 << 63, (1 << 64) - 1, 10**30)
"""Written into fields of 2, 4 and 8 bytes as far as they fit."""
WORDS = (
    b"-1",
    b"0",
    b"1",
    b"99999999999",
    b"-99999999999999999999",
    b"1e999",
    b"NaN",
    b"9" * 5000,
    b"0.5",
    b"",
)


class Mutation(NamedTuple):
    """data: of the corrupt file. how: in words. fits: see above."""

    data: bytes
    how: str
    fits: bool = False


Mutate = Callable[[bytes, Random], Mutation]


def corrupt(data: bytes, rng: Random) -> Mutation:
    """Bytes of any file: one damage, sometimes two."""
    how = []
    for _ in range(1 if rng.random() < 0.8 else 2):
        change = rng.choice(BYTES)
        data = change(data, rng)
        how.append(change.__name__.strip("_"))
    return Mutation(data, " and ".join(how))


def _range(data: bytes, rng: Random) -> tuple[int, int]:
    """A piece of the file, most often short; the ends of a file, where headers and directories are, more
    often than their share."""
    if not data:
        return 0, 0
    place = rng.random()
    if place < 0.3:
        at = rng.randrange(min(64, len(data)))
    elif place < 0.5:
        at = len(data) - 1 - rng.randrange(min(256, len(data)))
    else:
        at = rng.randrange(len(data))
    length = rng.choice((1, 1, 2, 4, 8, 16, 64, 512, len(data)))
    return at, min(len(data), at + rng.randint(1, length))


def _flipped_bits(data: bytes, rng: Random) -> bytes:
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 8))):
        if out:
            at, _ = _range(data, rng)
            out[at] ^= 1 << rng.randrange(8)
    return bytes(out)


def _overwritten(data: bytes, rng: Random) -> bytes:
    begin, end = _range(data, rng)
    kind = rng.randrange(3)
    new = (bytes(end - begin), b"\xff" * (end - begin), rng.randbytes(end - begin))[kind]
    return data[:begin] + new + data[end:]


def _deleted(data: bytes, rng: Random) -> bytes:
    begin, end = _range(data, rng)
    return data[:begin] + data[end:]


def _inserted(data: bytes, rng: Random) -> bytes:
    at, length = _range(data, rng)[0], rng.choice((1, 2, 4, 100))
    return data[:at] + (bytes(length) if rng.random() < 0.3 else rng.randbytes(length)) + data[at:]


def _duplicated(data: bytes, rng: Random) -> bytes:
    begin, end = _range(data, rng)
    return data[:end] + data[begin:end] * rng.choice((1, 1, 3)) + data[end:]


def _swapped(data: bytes, rng: Random) -> bytes:
    (a, b), (c, d) = sorted((_range(data, rng), _range(data, rng)))
    return data if b > c else data[:a] + data[c:d] + data[b:c] + data[a:b] + data[d:]


def _cut(data: bytes, rng: Random) -> bytes:
    where = rng.random()
    if where < 0.1:
        return b""
    if where < 0.4:
        return data[: rng.randrange(min(64, len(data) + 1))]
    if where < 0.6:
        return data[: max(0, len(data) - rng.randint(1, 64))]
    return data[: rng.randrange(len(data) + 1)]


def _begins_late(data: bytes, rng: Random) -> bytes:
    return data[rng.randint(1, 16) :]


def _longer(data: bytes, rng: Random) -> bytes:
    return data + rng.choice((b"\0", bytes(1024), b"\n", rng.randbytes(rng.randint(1, 600)), data))


def _odd_field(data: bytes, rng: Random) -> bytes:
    """A number, as a field of the file may hold one, in either order of bytes."""
    width = rng.choice((2, 4, 4, 8))
    if len(data) < width:
        return data
    at = min(_range(data, rng)[0], len(data) - width)
    value = rng.choice((*NUMBERS, *HUGE, len(data), len(data) - 1, len(data) + 1)) % (1 << 8 * width)
    order = rng.choice(("little", "big"))
    return data[:at] + value.to_bytes(width, order) + data[at + width :]


def _odd_digits(data: bytes, rng: Random) -> bytes:
    """A number written in digits, as headers of npy, tar and all text files have them."""
    found = list(re.finditer(rb"-?\d[\d.]*", data[:200_000]))
    if not found:
        return _odd_field(data, rng)
    one = rng.choice(found)
    return data[: one.start()] + rng.choice(WORDS) + data[one.end() :]


BYTES: tuple[Callable[[bytes, Random], bytes], ...] = (
    _flipped_bits,
    _flipped_bits,
    _overwritten,
    _deleted,
    _inserted,
    _duplicated,
    _swapped,
    _cut,
    _cut,
    _begins_late,
    _longer,
    _odd_field,
    _odd_field,
    _odd_digits,
)


# JSON


def _odd_value(rng: Random) -> Any:
    return rng.choice(
        (
            None,
            True,
            False,
            0,
            1,
            -1,
            3,
            0.5,
            -0.0,
            1e308,
            float("nan"),
            float("inf"),
            float("-inf"),
            10**9,
            10**18,
            -(10**18),
            10**400,
            "",
            "x",
            "0",
            "nan",
            "a" * 3000,
            "two\nlines \x1b[31m",
            "\x00",
            "\ud800",
            "../../etc/passwd",
            "/",
            ".",
            [],
            [[]],
            [1, "x", None],
            [10**9, 10**9, 10**9],
            {},
            {"": {}},
            {"x": [None]},
        )
    )


def changed(value: Any, rng: Random) -> Any:
    """A JSON value with another type, key or number somewhere inside."""
    value = json.loads(json.dumps(value))
    places: list[tuple[Any, Any]] = []

    def walk(inner: Any) -> None:
        keys = (
            inner.keys() if isinstance(inner, dict) else range(len(inner)) if isinstance(inner, list) else ()
        )
        for key in list(keys)[:200]:
            places.append((inner, key))
            walk(inner[key])

    walk(value)
    if not places or rng.random() < 0.03:
        return _odd_value(rng)
    # Whatever lies deep has many neighbors: the outer keys get their share all the same.
    holder, key = rng.choice(places) if rng.random() < 0.6 else rng.choice(places[:40])
    match rng.randrange(8):
        case 0 | 1 | 2:
            holder[key] = _odd_value(rng)
        case 3:
            del holder[key]
        case 4 if isinstance(holder, dict):
            holder[f"{key}x"] = holder.pop(key)
        case 4:
            holder.insert(key, _odd_value(rng))
        case 5 if isinstance(holder, dict):
            holder[rng.choice(("", "x", "sha256", "\ud800", "a" * 300))] = _odd_value(rng)
        case 5:
            holder.append(holder[key])
        case 6:
            other_holder, other = rng.choice(places)
            holder[key], other_holder[other] = other_holder[other], holder[key]
            try:  # a value must not be put into itself
                json.dumps(value)
            except (ValueError, RecursionError):
                return changed(rng.choice(({}, [], 0)), rng)
        case _ if isinstance(holder[key], bool) or not isinstance(holder[key], int | float):
            holder[key] = [holder[key]] if rng.random() < 0.5 else {"x": holder[key]}
        case _:
            holder[key] = rng.choice(
                (-holder[key], str(holder[key]), holder[key] + 0.5, holder[key] * 1000, 0)
            )
    return value


def json_value(data: bytes, rng: Random) -> Mutation:
    """Still JSON, with other values."""
    return Mutation(json.dumps(changed(json.loads(data), rng), indent=1).encode(), "another JSON value")


def resealed(data: bytes, rng: Random) -> Mutation:
    """Still sealed (parts.sealed), with other values."""
    value = json.loads(data)
    value.pop("sha256", None)
    new = changed(value, rng)
    if not isinstance(new, dict):
        return Mutation(json.dumps(new).encode(), "no sealed object")
    return Mutation(sealed(new), "other values, sealed anew", fits=True)


def as_text(data: bytes, rng: Random) -> Mutation:
    """A text file as other programs write it."""
    text = data.decode("utf-8", "replace")
    kind = rng.randrange(8)
    match kind:
        case 0:
            return Mutation(text.encode("utf-16"), "UTF-16")
        case 1:
            return Mutation(b"\xef\xbb\xbf" + data, "a byte order mark")
        case 2:
            return Mutation((text[:20] + "\u00e9" + text[20:]).encode("latin-1", "replace"), "Latin-1")
        case 3:
            at = rng.randrange(len(data) + 1)
            return Mutation(data[:at] + b"\0" + data[at:], "a NUL byte")
        case 4:
            at = rng.randrange(len(data) + 1)
            return Mutation(data[:at] + b"\xed\xa0\x80" + data[at:], "a surrogate in UTF-8")
        case 5:
            return Mutation(data.replace(b"\n", b"\r"), "old Macintosh's line ends")
        case 6:
            at = rng.randrange(len(text) + 1)
            odd = rng.choice(("\u2028", "\u202e", "\x85", "\x1b[2J", "\x0c"))
            return Mutation((text[:at] + odd + text[at:]).encode(), "odd white space")
        case _:
            return Mutation(text.encode("utf-32"), "UTF-32")


def json_text(data: bytes, rng: Random) -> Mutation:
    """A JSON file, corrupt as JSON, as text, or as bytes."""
    kind = rng.random()
    if kind < 0.5:
        return json_value(data, rng)
    if kind < 0.7:
        return corrupt(data, rng)
    if kind < 0.8:
        return as_text(data, rng)
    deep = rng.choice((100, 3000, 100_000))
    places = [m.end() for m in re.finditer(rb":\s*", data)] or [0]
    at = rng.choice(places)
    end = re.compile(rb"[,}\]\n]|$").search(data, at)
    assert end is not None
    new, how = rng.choice(
        (
            (b"[" * deep + b"]" * deep, "deep lists"),
            (b'{"a":' * deep + b"0" + b"}" * deep, "deep tables"),
            (b"[" * deep, "lists without an end"),
            (b"NaN", "NaN"),
            (b"-Infinity", "Infinity"),
            (b"9" * 5000, "a number of 5,000 digits"),
            (b"1e99999", "a number beyond floats"),
            (b'"\\ud800"', "half a surrogate"),
            (b'"\\u0000"', "an escaped NUL"),
            (b"1, " + b'"x": 2', "another key"),
        )
    )
    if rng.random() < 0.15:
        first = re.compile(rb'"[^"]+":').search(data)
        twice = b"{" + (first[0] if first else b'"x":') + b" 0,"
        return Mutation(data.replace(b"{", twice, 1), "a key that is there twice")
    return Mutation(data[:at] + new + data[end.start() :], how)


def json_lines(data: bytes, rng: Random) -> Mutation:
    """One line of many corrupt as JSON; or the file as text, or as bytes."""
    kind, lines = rng.random(), data.splitlines(keepends=True)
    if kind < 0.6:
        i = rng.randrange(len(lines))
        one = json_value if rng.random() < 0.7 else json_text
        new, how, _ = one(lines[i], rng)
        return Mutation(
            b"".join([*lines[:i], new.replace(b"\n", b" ") + b"\n", *lines[i + 1 :]]), f"a line: {how}"
        )
    if kind < 0.75:
        rng.shuffle(lines)
        return Mutation(b"".join(lines[: rng.randint(0, len(lines))]), "lines in another order")
    return as_text(data, rng) if kind < 0.85 else corrupt(data, rng)


# TOML, CSV

TOML_VALUES = """
nan inf -inf 0 -1 1 3 0.5 1e400 true false [] {} '' 'x' 1979-05-27 1979-05-27T07:32:00Z 07:32:00 0b1 1_000
0xffffffffffffffffffff 10000000000000 [[]] [[1,[2]]] {a={b=1}} [1,'x'] [nan] '../../x' "\\u0000" "\\ud800"
"\\n" ] 'a
""".split()  # noqa: SIM905


def toml_value(rng: Random) -> str:
    deep = rng.choice((50, 2000))
    more = (
        "9" * 5000,
        "[" * deep + "]" * deep,
        "{a=" * deep + "1" + "}" * deep,
        "'" + "a" * 3000 + "'",
        "'''\na\nb'''",
    )
    return rng.choice(TOML_VALUES) if rng.random() < 0.85 else rng.choice(more)


def toml_text(data: bytes, rng: Random) -> Mutation:
    kind, lines = rng.random(), data.decode().splitlines()
    valued = [i for i, line in enumerate(lines) if "=" in line and not line.lstrip().startswith("#")]
    if kind < 0.6 and valued:
        i = rng.choice(valued)
        key, _, old = lines[i].partition("=")
        match rng.randrange(6):
            case 0 | 1 | 2:
                lines[i], how = f"{key}= {toml_value(rng)}", "another value"
            case 3:
                lines[i], how = f"{key.strip()}.x ={old}", "a key below a value"
            case 4:
                other = rng.choice(("x", '""', '"a b"', "name", "extends", "trains"))
                lines[i], how = f"{other} ={old}", "another key"
            case _:
                lines[i], how = f"{key}= [{old}, {toml_value(rng)}]", "a list"
        return Mutation("\n".join(lines).encode("utf-8", "replace"), how)
    if kind < 0.8 and lines:
        i, j = rng.randrange(len(lines)), rng.randrange(len(lines))
        match rng.randrange(5):
            case 0:
                del lines[i]
            case 1:
                lines.insert(j, lines[i])
            case 2:
                lines[i], lines[j] = lines[j], lines[i]
            case 3:
                lines.insert(
                    j,
                    rng.choice(("[x]", "[[runs]]", "[model]", "[[model]]", "[train.x]", "[data]", "[]", "[")),
                )
            case _:
                lines.insert(j, f"x = {toml_value(rng)}")
        return Mutation("\n".join(lines).encode("utf-8", "replace"), "lines")
    return as_text(data, rng) if kind < 0.88 else corrupt(data, rng)


def csv_text(data: bytes, rng: Random) -> Mutation:
    kind = rng.random()
    if kind > 0.75:
        return as_text(data, rng) if kind < 0.85 else corrupt(data, rng)
    rows = [line.split(",") for line in data.decode().splitlines()]
    i = rng.randrange(len(rows))
    j = rng.randrange(len(rows[i]))
    odd = (
        *(word.decode() for word in WORDS),
        "inf",
        "-inf",
        "-5",
        "x",
        '"',
        '"a\nb"',
        "a" * 200_000,
        "None",
        "\x1b[1m",
    )
    match rng.randrange(6):
        case 0 | 1 | 2:
            rows[i][j], how = rng.choice(odd), "a cell"
        case 3:
            del rows[i][j]
            how = "a cell less"
        case 4:
            rows[i].insert(j, rng.choice(odd))
            how = "a cell more"
        case _:
            for row in rows:
                if j < len(row):
                    del row[j]
            how = "a column less"
    return Mutation(("\n".join(map(",".join, rows)) + "\n").encode(), how)


# Formats with headers of their own


def safetensors(data: bytes, rng: Random) -> Mutation:
    """Its header's JSON changed, its length made to fit; or the file as bytes."""
    if rng.random() < 0.4:
        return corrupt(data, rng)
    length = int.from_bytes(data[:8], "little")
    new, how, _ = (json_value if rng.random() < 0.6 else json_text)(data[8 : 8 + length], rng)
    new += b" " * (-len(new) % 8)
    said = len(new) if rng.random() < 0.9 else rng.choice((*NUMBERS, *(n for n in HUGE if n < 1 << 64)))
    return Mutation(said.to_bytes(8, "little") + new + data[8 + length :], f"a header: {how}")


BOMB = b"a\0\0" + zlib.compress(bytes(1 << 24))
"""A text of 16 MB."""


def png(data: bytes, rng: Random) -> Mutation:
    """A chunk changed, dropped, moved or repeated, its checksum made to fit; or the file as bytes."""
    if rng.random() < 0.7:
        return corrupt(data, rng)
    at, chunks = 8, []
    while at < len(data):
        length = int.from_bytes(data[at : at + 4], "big")
        chunks.append((data[at + 4 : at + 8], data[at + 8 : at + 8 + length]))
        at += 12 + length
    i = rng.randrange(len(chunks))
    kind, content = chunks[i]
    match rng.randrange(5):
        case 0 | 1:
            chunks[i] = (kind, corrupt(content, rng).data)
        case 2:
            del chunks[i]
        case 3:
            chunks.insert(rng.randrange(len(chunks) + 1), chunks[i])
        case _:
            other = rng.choice(
                (b"tRNS", b"PLTE", b"iCCP", b"eXIf", b"acTL", b"tEXt", b"zTXt", b"iTXt", b"gAMA")
            )
            chunks.insert(
                rng.randrange(len(chunks)), (other, rng.choice((b"", content, rng.randbytes(30), BOMB)))
            )
    out = data[:8]
    for kind, content in chunks:
        checksum = zlib.crc32(kind + content)
        out += len(content).to_bytes(4, "big") + kind + content + checksum.to_bytes(4, "big")
    return Mutation(out, "a chunk, its checksum made anew", fits=True)


def zipped(inside: Callable[[str], Mutate]) -> Mutate:
    """A .zip (.npz, .pt, .pt2) whose member was changed, its checksum made to fit; or the file as bytes.
    inside: how a member of a name is changed."""

    def mutate(data: bytes, rng: Random) -> Mutation:
        if rng.random() < 0.5:
            return corrupt(data, rng)
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            members = [(info.filename, archive.read(info)) for info in archive.infolist()]
        i = rng.randrange(len(members))
        name, content = members[i]
        compress = zipfile.ZIP_STORED
        match rng.randrange(10):
            case 0:
                del members[i]
                how = "a member less"
            case 1:
                members[i] = (
                    rng.choice(("x", f"../{name}", f"/{name}", name.upper(), "", "a\\b", "\x1b[2J")),
                    content,
                )
                how = "another name"
            case 2:
                members.append((name, b""))
                how = "a name twice"
            case 3:
                compress, how = (
                    rng.choice((zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)),
                    "compressed",
                )
            case 4:
                members[i], compress = (name, content + bytes(1 << 24)), zipfile.ZIP_DEFLATED
                how = "16 MB more, compressed"
            case _:
                members[i] = (name, inside(name)(content, rng).data)
                how = f"{name} changed, its checksum made anew"
        buffer = io.BytesIO()
        with _quiet(), zipfile.ZipFile(buffer, "w", compress) as archive:
            for name, content in members:
                archive.writestr(zipfile.ZipInfo(name), content, compress)
        return Mutation(buffer.getvalue(), how, fits=True)

    return mutate


def _quiet() -> Any:
    """zipfile warns of a name that is there twice."""
    import warnings

    return warnings.catch_warnings(action="ignore")


DESCRS = (
    "<f4",
    ">f4",
    "<f8",
    "<f2",
    "|u1",
    "|i1",
    "<i8",
    ">u2",
    "|b1",
    "|O",
    "<U5",
    "|S3",
    "<M8[s]",
    "<c16",
    "|V0",
    "x",
)


def npy(data: bytes, rng: Random) -> Mutation:
    """An array's header changed: type, order, shape; or another array; or its bytes."""
    kind = rng.random()
    if kind < 0.3:
        return corrupt(data, rng)
    if kind < 0.45:
        buffer = io.BytesIO()
        np.lib.format.write_array(buffer, _odd_array(data, rng), allow_pickle=True)
        return Mutation(buffer.getvalue(), "another array", fits=True)
    file = io.BytesIO(data)
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = read(file)
    sizes = (*shape, 0, -1, 1, 3, 10**6, 1 << 31, 1 << 62, 10**30)
    header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": fortran, "shape": shape}
    match rng.randrange(6):
        case 0:
            header["descr"] = rng.choice(DESCRS)
        case 1:
            header["fortran_order"] = not fortran
        case 2 | 3:
            header["shape"] = tuple(rng.choice(sizes) for _ in range(rng.randint(0, 5)))
        case 4:
            header[rng.choice(("x", "descr"))] = rng.choice(
                ([("a", "<f4"), ("b", "|O")], "", None, 1, [], "(99999999,)f8")
            )
        case _:
            del header[rng.choice(list(header))]
    text = f"{header}\n".encode()
    return Mutation(
        b"\x93NUMPY\x02\x00" + struct.pack("<I", len(text)) + text + data[file.tell() :],
        "a header",
        fits=True,
    )


def _odd_array(data: bytes, rng: Random) -> np.ndarray:
    array = np.lib.format.read_array(io.BytesIO(data), allow_pickle=False)
    with np.errstate(all="ignore"):
        numbers = array if array.dtype.kind in "fiub" else np.arange(4.0)
        match rng.randrange(10):
            case 0:
                return numbers.astype(rng.choice(("f2", ">f4", "f8", ">f8", "i8", "?", "c16", "O")))
            case 1:
                return numbers.T
            case 2:
                return np.asfortranarray(numbers)
            case 3:
                return numbers.reshape(-1)
            case 4:
                return numbers[: len(numbers) // 2] if numbers.ndim else numbers
            case 5:
                return -numbers.astype(np.float64)
            case 6:
                out = numbers.astype(np.float64).reshape(-1).copy()
                if out.size:
                    out[rng.randrange(out.size)] = rng.choice((np.nan, np.inf, -1e300, 1e300))
                return out.reshape(numbers.shape)
            case 7:
                return numbers.astype(np.float64) * 1e200
            case 8:
                return np.zeros_like(numbers)
            case _:
                return np.array(rng.choice(("", "{", "[]", "null", '{"n": -1}', '{"n": 1e999}', "\ud7ff")))


def pickle_code(data: bytes, rng: Random) -> Mutation:
    """The opcodes of a pickle: one dropped, repeated, moved, or with another number or name."""
    if rng.random() < 0.3:
        return corrupt(data, rng)
    steps = list(pickletools.genops(data))
    ends = [*(at for _, _, at in steps[1:]), len(data)]
    codes = [data[at:end] for (_, _, at), end in zip(steps, ends, strict=True) if at is not None]
    i, j = rng.randrange(len(codes)), rng.randrange(len(codes))
    match rng.randrange(6):
        case 0:
            del codes[i]
        case 1:
            codes.insert(i, codes[i])
        case 2:
            codes[i], codes[j] = codes[j], codes[i]
        case 3:
            codes[i] = codes[j]
        case 4:
            numbers = [
                k for k, (code, _, _) in enumerate(steps) if code.name in ("BININT1", "BININT2", "BININT")
            ]
            value = rng.choice((0, 1, -1, 3, 1 << 20, (1 << 31) - 1, -(1 << 31)))
            codes[rng.choice(numbers) if numbers else i] = b"J" + struct.pack("<i", value)
        case _:
            names = [k for k, (code, _, _) in enumerate(steps) if code.name in ("GLOBAL", "BINUNICODE")]
            k = rng.choice(names) if names else i
            word = rng.choice(
                (
                    b"cos\nsystem\n",
                    b"cbuiltins\nexec\n",
                    b"X\0\0\0\0",
                    b"X\1\0\0\0.",
                    b"ctorch\nDoubleStorage\n",
                )
            )
            codes[k] = word
    return Mutation(b"".join(codes), "pickle opcodes")


def one_of(ways: Mapping[Mutate, int]) -> Mutate:
    """Each as often as its weight says."""

    def mutate(data: bytes, rng: Random) -> Mutation:
        return rng.choices(list(ways), list(ways.values()))[0](data, rng)

    return mutate
