"""Corrupt files through a reader, each in a process of its own: what came out, and in how much memory.

    valid files --READER, number--> a corrupt copy --read, in a fork--> a value, a refusal, or a failure

    python tests/faults/fuzz.py READER NUMBER [FOLDER]     one input again, here, with its traceback

An input is a function of the reader's name and the number alone; those that fail are kept. Right is what was
written, or UsageError, RunError, or OSError with an errno, whose message is one line. Everything else fails:
another exception, a value that differs where the format has a checksum, a process that dies, 500 MB, more
address space than LIMIT.
"""

from __future__ import annotations

import contextlib
import gc
import hashlib
import json
import os
import random
import resource
import shutil
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, is_dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from mutate import Mutate, Mutation

MEGABYTES = 500
LIMIT = 3 << 30
"""Bytes of address space above what the process begins with."""
SECONDS = 60
"""Of processor time, after which an input is taken for one that hangs; on the wall ten times as long."""
LONGEST = 4000
"""Characters of a message."""

Value = Mapping[str, str]
"""What a reader found: digests by name."""
Rule = Literal["all", "each", "none"]
"""What must be as it was written: all that is found, with nothing missing; each thing that is found; nothing,
as the format has no checksum."""


@dataclass(frozen=True)
class Reader:
    """What reads a kind of files.

    make: puts valid files into an empty folder. files: which are corrupt, by pattern, and how. read: of the
    folder, raising what a reader may raise. count: inputs in a full run. same: what must hold of a value.
    """

    make: Callable[[Path], object]
    files: Mapping[str, Mutate]
    read: Callable[[Path], Value]
    count: int
    same: Rule = "all"


class Case(NamedTuple):
    """An input: which file was corrupt, and how."""

    file: str
    mutation: Mutation


def damage(reader: Reader, name: str, number: int, folder: Path) -> Case:
    """Damages one file of a copy of the reader's folder; now and then it is gone, empty, or a folder."""
    rng = random.Random(f"{name} {number}")
    pattern = rng.choice(list(reader.files))
    path = rng.choice(sorted(p for p in folder.glob(pattern) if p.is_file()))
    shown = str(path.relative_to(folder))
    if rng.random() < 0.02:
        path.unlink()
        how = rng.choice(("missing", "a folder", "a link to itself", "a link to nothing"))
        if how == "a folder":
            path.mkdir()
        elif how != "missing":
            path.symlink_to(path if how == "a link to itself" else path.with_name("nothing"))
        return Case(shown, Mutation(b"", how, fits=True))
    mutation = reader.files[pattern](path.read_bytes(), rng)
    path.write_bytes(mutation.data)
    return Case(shown, mutation)


def run(name: str, numbers: range, base: str, results: str) -> None:
    """Goes through the inputs of a reader, and writes a line of JSON for each failure, then one of how many
    of each kind there were. base: where valid files are made once and kept."""
    with _said_to(Path(results).with_suffix(".output")), open(results, "w") as file:
        from readers import READERS

        reader, original = READERS[name], made(name, Path(base))
        counts = {"as written": 0, "refused": 0, "another file": 0}
        largest, expected = 0.0, {}
        try:  # this loads whatever reading needs, before the forks
            expected = read(reader, original, Path(base))
        except Exception as error:
            wrong = {"number": None, "file": "all", "how": "intact", "wrong": f"{error!r}"}
            file.write(json.dumps({**wrong, "where": _where(error)}) + "\n")
            numbers = range(0)
        gc.freeze()
        for number, answer in _answers(reader, name, original, numbers):
            largest = max(largest, answer.get("megabytes", 0.0))
            wrong = judged(reader, answer, expected)
            if wrong:
                about = {key: answer.get(key, "") for key in ("file", "how", "where")}
                kept = original.with_name(f"{original.name}.{number}")
                _placed(reader, name, number, original, kept)
                file.write(json.dumps({"number": number, **about, "wrong": wrong, "kept": str(kept)}) + "\n")
            elif "refused" in answer:
                counts["refused"] += 1
            else:
                counts["as written" if answer["value"] == expected else "another file"] += 1
        file.write(json.dumps({"counts": counts, "megabytes": largest}) + "\n")


def made(name: str, base: Path) -> Path:
    """The reader's valid files."""
    from readers import READERS

    folder = base / name.replace(" ", "-")
    if not folder.exists():
        partial = base / f"{folder.name}.partial"
        partial.mkdir(parents=True)
        READERS[name].make(partial)
        partial.rename(folder)
    return folder


def read(reader: Reader, original: Path, base: Path) -> Value:
    """Of the valid files, in a copy at the place where the corrupt ones will lie."""
    place = base / f"{original.name}.input"
    shutil.copytree(original, place)
    try:
        return dict(reader.read(place))
    finally:
        shutil.rmtree(place)


def judged(reader: Reader, answer: Mapping[str, Any], expected: Value) -> str:
    """What is wrong with an answer, "" where nothing is."""
    if answer.get("megabytes", 0) > MEGABYTES:
        return f"took {answer['megabytes']:.0f} MB"
    if "failed" in answer:
        return answer["failed"]
    if "refused" in answer or answer["fits"] or reader.same == "none":
        return ""
    found = answer["value"]
    if reader.same == "each":
        other = [key for key in found if found[key] != expected.get(key)]
    else:
        other = [key for key in {**expected, **found} if found.get(key) != expected.get(key)]
    return f"another value: {other[0]} is not what was written" if other else ""


TOGETHER = 20
"""Inputs per process, each with its own limits. If one ends the process, the others run in a new process."""


def _answers(reader: Reader, name: str, original: Path, numbers: range) -> Iterator[tuple[int, dict]]:
    """(number, answer) of each, read in forks of this process."""
    left, place = list(numbers), original.with_name(f"{original.name}.input")
    while left:
        out, into = os.pipe()
        child = os.fork()
        if child == 0:
            code = 1
            try:
                os.close(out)
                with os.fdopen(into, "w") as pipe:
                    for number in left[:TOGETHER]:
                        about = _placed(reader, name, number, original, place)
                        _limited()
                        pipe.write(json.dumps({**about, **answered(reader, place)}) + "\n")
                        pipe.flush()
                code = 0
            finally:
                os._exit(code)
        os.close(into)
        with os.fdopen(out) as pipe:
            answers = [json.loads(line) for line in pipe.read().splitlines() if line.endswith("}")]
        _, status = os.waitpid(child, 0)
        if status != 0:
            number = left[len(answers)]
            code = os.waitstatus_to_exitcode(status)
            how = f"ended by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"
            answers.append({**_placed(reader, name, number, original, place), "failed": how})
        yield from zip(left, answers, strict=False)
        left = left[len(answers) :]
    shutil.rmtree(place, ignore_errors=True)


def _placed(reader: Reader, name: str, number: int, original: Path, place: Path) -> dict[str, Any]:
    """Puts an input there, and says what was done to it."""
    shutil.rmtree(place, ignore_errors=True)
    shutil.copytree(original, place)
    case = damage(reader, name, number, place)
    return {"file": case.file, "how": case.mutation.how, "fits": case.mutation.fits}


def _limited() -> None:
    """Limits memory, processor time and wall time for one input, and resets VmHWM."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = pages * resource.getpagesize() + LIMIT
    resource.setrlimit(resource.RLIMIT_AS, (most, resource.RLIM_INFINITY))
    spent = resource.getrusage(resource.RUSAGE_SELF)
    resource.setrlimit(
        resource.RLIMIT_CPU, (int(spent.ru_utime + spent.ru_stime) + SECONDS, resource.RLIM_INFINITY)
    )
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.alarm(10 * SECONDS)


def _resident(which: str) -> float:
    """Megabytes of this process: VmRSS now, VmHWM at most."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{which}:"):
            return int(line.split()[1]) / 1024
    return 0.0


def answered(reader: Reader, folder: Path) -> dict[str, Any]:
    """{"value"}, {"refused"} or {"failed", "where"}, and the megabytes that it took."""
    from scaledit.errors import RunError, UsageError

    before = _resident("VmRSS")
    try:
        answer: dict[str, Any] = {"value": dict(reader.read(folder))}
    except Exception as error:
        refusal = isinstance(error, UsageError | RunError) or (
            isinstance(error, OSError) and error.errno is not None
        )
        message = _without_names(str(error), folder)
        causes = _causes(error)
        if not refusal:
            reason = message.splitlines()[0][:200] if message else ""
            answer = {"failed": f"{type(error).__name__}: {reason}", "where": _where(error)}
        elif "\n" in message or "\r" in message:
            answer = {"failed": f"a message of several lines: {message[:300]!r}", "where": _where(error)}
        elif len(message) > LONGEST:
            answer = {
                "failed": f"a message of {len(message)} characters: {message[:100]}",
                "where": _where(error),
            }
        elif not message:
            answer = {"failed": f"{type(error).__name__} without a message", "where": _where(error)}
        elif any(isinstance(cause, MemoryError) for cause in causes):
            answer = {
                "failed": f"asked for more than {LIMIT >> 20} MB: {message[:200]}",
                "where": _where(error),
            }
        else:
            answer = {"refused": message}
    return {**answer, "megabytes": max(0.0, _resident("VmHWM") - before)}


def _without_names(message: str, folder: Path) -> str:
    """File names may hold line breaks, which the command line escapes; a parser's words may not."""
    for path in folder.rglob("*"):
        if "\n" in path.name:
            message = message.replace(path.name, "NAME")
    return message


def _causes(error: BaseException | None) -> list[BaseException]:
    found: list[BaseException] = []
    while error is not None and error not in found:
        found.append(error)
        error = error.__cause__ or error.__context__
    return found


def _where(error: BaseException) -> str:
    """The last line of scaledit's own that the error went through."""
    own = [f for f in traceback.extract_tb(error.__traceback__) if "/scaledit/" in f.filename]
    last = (own or traceback.extract_tb(error.__traceback__))[-1]
    return f"{last.filename.rpartition('/scaledit/')[2]}:{last.lineno} {last.name}"


@contextlib.contextmanager
def _said_to(path: Path):
    """What the libraries print goes to a file."""
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    kept = os.dup(1), os.dup(2)
    os.dup2(file, 1)
    os.dup2(file, 2)
    try:
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os.dup2(kept[0], 1)
        os.dup2(kept[1], 2)


def digest(value: Any) -> str:
    """Of any value that readers give."""
    sha = hashlib.sha256()

    def add(inner: Any) -> None:
        sha.update(f"{type(inner).__name__}:".encode())
        if isinstance(inner, np.ndarray):
            sha.update(f"{inner.dtype.str}{inner.shape}".encode())
            sha.update(np.ascontiguousarray(inner).tobytes())
        elif type(inner).__module__ == "torch":
            sha.update(f"{inner.dtype}{tuple(inner.shape)}".encode())
            sha.update(
                inner.detach().contiguous().reshape(-1).view(sys.modules["torch"].uint8).numpy().tobytes()
            )
        elif is_dataclass(inner) and not isinstance(inner, type):
            add(asdict(inner))
        elif isinstance(inner, Mapping):
            for key in sorted(inner, key=str):
                add(key)
                add(inner[key])
        elif isinstance(inner, list | tuple):
            for one in inner:
                add(one)
        elif isinstance(inner, bytes):
            sha.update(inner)
        else:
            sha.update(repr(inner).encode("utf-8", "backslashreplace"))
        sha.update(b";")

    add(value)
    return sha.hexdigest()[:16]


def again(name: str, number: int, folder: Path) -> None:
    """One input in this process."""
    from readers import READERS

    reader, original = READERS[name], made(name, folder)
    expected = read(reader, original, folder)
    place = folder / f"{original.name}.input"
    shutil.copytree(original, place)
    case = damage(reader, name, number, place)
    print(f"{name} {number}: {place / case.file}: {case.mutation.how}")
    kept = folder / "corrupt"
    shutil.rmtree(kept, ignore_errors=True)
    shutil.copytree(place, kept, symlinks=True)
    try:
        found = reader.read(place)
    except Exception:
        traceback.print_exc()
    else:
        print(f"read: {found}\nof the original: {expected}")
    finally:
        shutil.rmtree(place)
    print(f"the corrupt files are in {kept}")


if __name__ == "__main__":
    import tempfile

    here = Path(__file__).resolve().parent
    sys.path[:0] = [str(here), str(here.parent)]
    again(
        sys.argv[1],
        int(sys.argv[2]),
        Path(sys.argv[3] if len(sys.argv) > 3 else tempfile.mkdtemp(prefix="scaledit-fuzz-")),
    )
