"""Which images each file of an encoding holds, and what stays when the folder of images has changed.

    begun     the images in order, S per file                                    S = per_file
    grown     the kept files as they are, then the other images, S per file

A file is kept while each of its images is in the folder unchanged. The plan is a function of the request and
of the records of the kept files, so every process that shares the work has the same one. A record lists the
size, the time of change and the SHA-256 of each image file; the bytes are compared only if one of the first
two differs.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, TypeGuard

from scaledit.data.files import ImageFiles, Readable
from scaledit.data.latents import ShardFile
from scaledit.data.names import encoded
from scaledit.errors import UsageError, counted, reading, shown
from scaledit.files.atomic import atomic_bytes
from scaledit.files.manifest import read_sealed, sealed, sha256_of

KEPT, FIRST, REST = "kept", "first_new", "sha256_of_new"
GROWN = (KEPT, FIRST, REST)
"""Keys of a request that has grown."""


class ImageFile(NamedTuple):
    """An image file when it was encoded. label: into the class names of its record. size: in bytes. modified:
    in nanoseconds. sha256: of its bytes, "" if they could not be read. used: whether it was encoded; it was
    left out otherwise."""

    name: str
    label: int
    size: int
    modified: int
    sha256: str
    used: bool

    def is_in(self, folder: Path) -> bool:
        """Whether `folder` has this file with the same bytes."""
        now = stamp(folder / self.name)
        return (self.sha256 != "" and (self.size, self.modified) == now) or sha256(
            folder / self.name
        ) == self.sha256


def stamp(path: Path) -> tuple[int, int]:
    """The size of a file and when it was changed; zeros if there is none."""
    try:
        status = path.stat()
    except OSError:
        return 0, 0
    return status.st_size, status.st_mtime_ns


def image_file(source: ImageFiles, i: int) -> ImageFile:
    """Image i of a folder as it is now."""
    path = source.source.path / source.names[i]
    return ImageFile(source.names[i], int(source.source.labels[i]), *stamp(path), sha256(path), used=True)


def is_folder(source: Readable) -> TypeGuard[ImageFiles]:
    """Whether the images are files that can be added and replaced one by one."""
    return isinstance(source, ImageFiles) and source.source.kind == "folder"


def sha256(path: Path) -> str:
    """The SHA-256 of a file, "" if it cannot be read."""
    try:
        return sha256_of(path)
    except OSError:
        return ""


class Part(NamedTuple):
    """The record of a file of latents. counts: images per class. sums: for each channel the number of
    values, and the sums of means, squared means and variances, which add up over files to the statistics in
    the index. skipped: images left out, with the reason. images: those of a folder, in order, with those left
    out; empty for other sources and in records of earlier versions. class_names: what the labels in the file
    mean."""

    file: ShardFile
    counts: tuple[int, ...]
    sums: tuple[tuple[float, ...], ...]
    skipped: tuple[str, ...]
    images: tuple[ImageFile, ...] = ()
    class_names: tuple[str, ...] = ()

    def write(self, path: Path) -> None:
        path.parent.mkdir(exist_ok=True)
        value = {**self._asdict(), "file": self.file.to_json()}
        if not self.images:
            del value["images"], value["class_names"]
        atomic_bytes(path, sealed(value))

    @classmethod
    def read(cls, path: Path) -> tuple[Part, bool]:
        """A record, and whether its seal is intact. Raises OSError, RunError for what is no record."""
        kind = "a record of encoded images"
        with reading(path, kind):
            value, intact = read_sealed(path, kind)
            images = tuple(ImageFile(*image) for image in value.get("images", ()))
            names = tuple(value.get("class_names", ()))
            part = cls(
                file=ShardFile.from_json(value["file"]),
                counts=tuple(value["counts"]),
                sums=tuple(tuple(row) for row in value["sums"]),
                skipped=tuple(value["skipped"]),
                images=images,
                class_names=names,
            )
            left_out = sum(image.used is False for image in images)
            possible = all(
                isinstance(image.name, str) and type(image.label) is int and 0 <= image.label < len(names)
                for image in images
            )
            if images and not (possible and left_out == len(part.skipped)):
                raise ValueError("its images are not those of its file")
        return part, intact


ELSEWHERE = "encode into another --out"
Records = Mapping[int, Part]
"""The records of the files that exist whole, by number."""
Slot = int | str
"""Of an image in a file: its number in the source, or why it was left out when the file was written."""


@dataclass(frozen=True)
class Plan:
    """request: what request.json contains. slots: of each file, by number. kept: the records of the files
    that stay. is_new: whether the request has to be written."""

    request: Mapping[str, Any]
    slots: Mapping[int, Sequence[Slot]]
    kept: Records
    is_new: bool


def begun(source: Readable, settings: Mapping[str, Any], per_file: int) -> Plan:
    """The plan of a folder in which nothing is encoded yet, or of one that has not grown."""
    request = {**settings, "images": len(source.names), "source": source.fingerprint}
    return Plan(request, _chunks(range(len(source.names)), per_file), {}, False)


def _chunks(indices: Sequence[int], per_file: int, first: int = 0) -> dict[int, Sequence[Slot]]:
    return {
        first + k: indices[k * per_file : (k + 1) * per_file] for k in range(-(-len(indices) // per_file))
    }


def planned(
    source: Readable,
    settings: Mapping[str, Any],
    per_file: int,
    found: Mapping[str, Any],
    records: Records,
    retry: bool,
    update: bool,
    first: int,
    out: Path,
) -> Plan:
    """The plan for `source` in a folder whose request is `found`.

    settings: what must not differ (`begin_or_join` compares it). records: of the files that exist whole.
    retry: try images again that were left out and have not changed since. update: encode the files again
    whose images were removed or replaced. first: the number of the first new file.

    Raises UsageError if there are such images and `update` is False, or if the source has changed and its
    images are not known one by one.
    """
    request = {**settings, "images": len(source.names), "source": source.fingerprint}
    is_same = found.get("source") == request["source"]
    if not is_folder(source):
        if is_same:
            return replace(begun(source, settings, per_file), request=found)
        raise UsageError(
            f"{out} contains encoded images of another request (source: {shown(found.get('source'))} -> "
            f"{source.fingerprint!r}); only an encoding of a folder of images can grow; {ELSEWHERE}"
        )
    folder = _Folder(source)
    if is_same and REST not in found:
        current: Plan | None = replace(begun(source, settings, per_file), request=found)
    else:
        current = folder.grown(found, records, per_file) if is_same else None
    mine = records if current is None else {k: part for k, part in records.items() if k in current.slots}
    if any(not part.images for part in mine.values()):
        if current is not None:
            return current
        raise UsageError(
            f"{source.source.path} has changed, and {out} does not record its images one by one, as "
            f"encodings of earlier versions do not; {ELSEWHERE}"
        )
    stale = {k: problem for k, part in mine.items() if (problem := folder.problem(part))}
    if stale and not update:
        more = f" (and images of {counted(len(stale) - 1, 'more file')})" if len(stale) > 1 else ""
        raise UsageError(
            f"{out} contains {next(iter(stale.values()))}{more}; --update encodes the files of such images "
            "again, or choose another --out"
        )
    if current is not None and not stale and folder.rest(mine, retry) == awaited(current, mine):
        return current
    kept = folder.kept(mine, stale)
    rest = folder.rest(kept, retry)
    grown = {KEPT: list(kept), FIRST: first, REST: folder.digest(rest)}
    return Plan({**request, **grown}, folder.slots(kept, rest, per_file, first), kept, True)


def awaited(plan: Plan, records: Records) -> list[int]:
    """The images of the files that do not exist yet, in order."""
    return sorted(
        slot for k, slots in plan.slots.items() if k not in records for slot in slots if isinstance(slot, int)
    )


class _Folder:
    """The images of a folder, by name."""

    def __init__(self, source: ImageFiles):
        self.source, self.path = source, source.source.path
        self.number = {name: i for i, name in enumerate(source.names)}
        self.labels = source.source.labels.tolist()

    def class_of(self, i: int) -> str:
        return self.source.class_names[self.labels[i]]

    def problem(self, part: Part) -> str:
        """Why a file of latents does not hold what the folder has; "" if it does."""
        is_one = len(part.class_names) == len(self.source.class_names) == 1  # named after the folder
        for image in part.images:
            if not image.used:
                continue
            i = self.number.get(image.name)
            if i is None:
                return f"an image that is gone from {self.path}: {image.name}"
            if not is_one and self.class_of(i) != part.class_names[image.label]:
                return f"an image that has changed its class: {image.name}"
            if not image.is_in(self.path):
                return f"another image under the name {image.name}"
        return ""

    def waiting(self, records: Records, retry: bool) -> set[str]:
        """The names of images that were left out last time and are not to be tried again."""
        last: dict[str, ImageFile] = {}
        for k in sorted(records):
            last |= {image.name: image for image in records[k].images}
        left_out = [image for image in last.values() if not image.used and image.name in self.number]
        return {image.name for image in left_out if not retry and image.is_in(self.path)}

    def rest(self, kept: Records, retry: bool) -> list[int]:
        """The images that no kept file holds, without those that stay left out."""
        done = {image.name for part in kept.values() for image in part.images if image.used}
        done |= self.waiting(kept, retry)
        return [i for i, name in enumerate(self.source.names) if name not in done]

    def kept(self, records: Records, stale: Collection[int]) -> dict[int, Part]:
        """The records of the files that stay. A file with an image of an earlier one does not: an update that
        was interrupted may have left both."""
        kept, done = {}, set[str]()
        for k, part in sorted(records.items()):
            names = {image.name for image in part.images if image.used}
            if k not in stale and done.isdisjoint(names):
                kept[k], done = part, done | names
        return kept

    def digest(self, rest: Sequence[int]) -> str:
        return hashlib.sha256(b"\0".join(encoded(self.source.names[i]) for i in rest)).hexdigest()

    def grown(self, found: Mapping[str, Any], records: Records, per_file: int) -> Plan | None:
        """The plan of a request that has grown; None if the records of its kept files are not whole, or an
        image that was left out is tried again or not as was planned."""
        numbers, first = found.get(KEPT), found.get(FIRST)
        if type(first) is not int or not isinstance(numbers, list) or any(k not in records for k in numbers):
            return None
        kept = {k: records[k] for k in numbers}
        for retry in (False, True):
            rest = self.rest(kept, retry)
            if self.digest(rest) == found[REST]:
                return Plan(found, self.slots(kept, rest, per_file, first), kept, False)
        return None

    def slots(
        self, kept: Records, rest: Sequence[int], per_file: int, first: int
    ) -> dict[int, Sequence[Slot]]:
        return {k: list(self._slots(part)) for k, part in kept.items()} | _chunks(rest, per_file, first)

    def _slots(self, part: Part) -> Iterator[Slot]:
        reasons = iter(part.skipped)
        for image in part.images:
            yield self.number.get(image.name, -1) if image.used else next(reasons)
