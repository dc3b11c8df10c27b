"""Parts: a sampler, a schedule, an objective, ... Each is a frozen dataclass in the file that defines it, and
that one definition is its entry everywhere: the recipe's word, the command line's choice, the protocol, the
table's column, the figure's label.

    class Sampler(Part, kind="sampler", home="scaledit.diffusion.samplers"): ...   the kind: what each must do

    @dataclass(frozen=True)
    class DDIM(Sampler, name="ddim"):                                              a part of that kind
        steps: int = field(50, ge=1, doc="of the grid")

    sampler = "ddim"    sampler = {name = "ddim", eta = 0.5}    sampler = "my_parts:Midpoint"      in a recipe

All modules of a kind's home (a package, or one module) are searched for its parts, so a new part is one new
file. A name with a colon is an importable class of the user's own: MODULE:CLASS, the current folder included.
Imports no torch.
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import os
import pkgutil
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, TypeVar, Union, get_args, get_origin

from scaledit.errors import UsageError, did_you_mean, reason, shown
from scaledit.values import bounds_in_words, check_bounds, convert, field, hints, own_fields

__all__ = [
    "Allowed",
    "Part",
    "PartDescription",
    "build",
    "describe",
    "field",
    "find",
    "in_words",
    "names",
    "switched",
]

ANY = None
"""Of `Allowed`: every module may be imported."""


class Allowed(NamedTuple):
    """Which modules may be imported because a name asks for them. modules: their names, None for any (a
    recipe, an override or a call of the user's own); where: what named them, for the message."""

    modules: frozenset[str] | None = ANY
    where: str = ""

    @classmethod
    def only(cls, modules: Iterable[str], where: str) -> Allowed:
        """For what came from elsewhere: a folder, a checkpoint, a model of the Hub."""
        return cls(frozenset(modules), where)

    def check(self, module: str, name: str) -> None:
        """Raises UsageError where `module` may not be imported."""
        if self.modules is None or module in self.modules:
            return
        raise UsageError(
            f"{self.where or 'this config'} names {name!r}, which is code that is not scaledit's; "
            f"where you trust it, allow it by name: --allow-import {module} (in Python: "
            f"allow_import=[{module!r}])"
        )


YOURS = Allowed()


class Part:
    """The base of all parts. A direct subclass with `kind` is a kind; a subclass with `name` is a part.

    kind: the word for the kind in messages ("sampler"). home: the package or module whose classes are the
    built-in parts. needs: methods that a part must have of its own, for a user's class to be refused before
    anything runs. title: the part's name in captions and tables for people (the class's name unless given).
    """

    KIND: ClassVar[str] = ""
    HOME: ClassVar[str] = ""
    NEEDS: ClassVar[tuple[str, ...]] = ()
    NAME: ClassVar[str] = ""
    TITLE: ClassVar[str] = ""

    def __init_subclass__(
        cls,
        *,
        name: str = "",
        title: str = "",
        kind: str = "",
        home: str = "",
        needs: tuple[str, ...] = (),
        **rest: Any,
    ) -> None:
        super().__init_subclass__(**rest)
        cls.NAME = name  # not inherited: a subclass of a part is another
        if title or "TITLE" not in vars(cls):
            cls.TITLE = title or cls.__name__
        if kind:
            cls.KIND, cls.HOME, cls.NEEDS = kind, home, needs

    def __post_init__(self) -> None:
        self.check()

    def check(self, where: str = "") -> None:
        """Raises UsageError where a field is beyond its bounds, or fields do not go together. where: what
        stands before a field's name in the message."""
        check_bounds(self, where)

    @classmethod
    def part_name(cls) -> str:
        """The recipe's word for the part: its own name for scaledit's, MODULE:CLASS for others."""
        if cls.__module__.partition(".")[0] == "scaledit" and cls.NAME:
            return cls.NAME
        return f"{cls.__module__}:{cls.__qualname__}"

    def to_json(self) -> dict[str, Any]:
        """The part as plain values, whole: {"name": ..., field: value, ...}. `build` is its inverse."""
        fields = {one.name: _said(one, getattr(self, one.name)) for one in own_fields(type(self))}
        return {"name": self.part_name(), **{name: plain(value) for name, value in fields.items()}}

    def label(self) -> str:
        """The part for people: its name, and the fields that are not as they are by default."""
        changed = []
        for one in own_fields(type(self)):
            value = getattr(self, one.name)
            if value != one.default:
                said = value.label() if isinstance(value, Part) else _said(one, value)
                changed.append(f"{one.name} {said}")
        return ", ".join([self.part_name(), *changed])


Kind = TypeVar("Kind", bound=Part)


def _said(one: dataclasses.Field[Any], value: Any) -> Any:
    """The value of a field as a recipe has it: the field's own word for None."""
    return one.metadata.get("none") or None if value is None else value


def plain(value: Any) -> Any:
    """`value` for JSON: parts as tables, tuples as lists."""
    if isinstance(value, Part):
        return value.to_json()
    if isinstance(value, Mapping):
        return {key: plain(one) for key, one in value.items()}
    if isinstance(value, tuple | list):
        return [plain(one) for one in value]
    return value


def in_words(value: Any) -> str:
    """Plain values of parts, as protocols have them, for people: "ddim (steps 50, eta 0.0)", or "none"."""
    if isinstance(value, list | tuple):
        return ", ".join(map(in_words, value)) or "none"
    if not isinstance(value, Mapping) or not isinstance(value.get("name"), str):
        return str(value)
    fields = ", ".join(f"{key} {in_words(one)}" for key, one in value.items() if key != "name")
    return f"{value['name']} ({fields})" if fields else value["name"]


def members(kind: type[Kind]) -> dict[str, type[Kind]]:
    """{name: class} of scaledit's own parts of a kind, in the order of their files and places in them."""
    home = importlib.import_module(kind.HOME)
    modules = [home]
    if hasattr(home, "__path__"):
        found = sorted(one.name for one in pkgutil.iter_modules(home.__path__))
        modules += [importlib.import_module(f"{kind.HOME}.{name}") for name in found]
    parts: dict[str, type[Kind]] = {}
    for module in modules:
        for one in vars(module).values():
            if (
                inspect.isclass(one)
                and issubclass(one, kind)
                and one.NAME
                and one.__module__ == module.__name__
            ):
                parts[one.NAME] = one
    return parts


def names(kind: type[Part]) -> list[str]:
    """The names of scaledit's own parts of a kind."""
    return list(members(kind))


def find(kind: type[Kind], name: str, allowed: Allowed = YOURS) -> type[Kind]:
    """The class of a part: a name of `names(kind)`, or MODULE:CLASS.

    Raises UsageError for an unknown name (with the nearest), for a module that `allowed` does not hold or
    that cannot be imported, and for a class that is no part of that kind or lacks one of its methods.
    """
    if ":" in name:
        return _imported(kind, name, allowed)
    own = members(kind)
    if name not in own:
        raise UsageError(
            f"unknown {kind.KIND} {shown(name)} (one of your own is MODULE:CLASS){did_you_mean(name, own)}"
        )
    return own[name]


def _imported(kind: type[Kind], name: str, allowed: Allowed) -> type[Kind]:
    module_name, _, class_name = name.partition(":")
    if not all(word.isidentifier() for word in [*module_name.split("."), class_name]):
        raise UsageError(f"{shown(name)} is no name of a class; write MODULE:CLASS, as in my_parts:Midpoint")
    allowed.check(module_name, name)
    with _current_folder():
        try:
            module = importlib.import_module(module_name)
        except UsageError:
            raise
        except Exception as error:  # whatever the module does when it is loaded
            what = "is not there" if isinstance(error, ModuleNotFoundError) else "cannot be imported"
            raise UsageError(f"{name}: the module {module_name} {what}: {reason(error)}") from error
    part = getattr(module, class_name, None)
    if part is None:
        classes = [
            key for key, value in vars(module).items() if inspect.isclass(value) and issubclass(value, Part)
        ]
        raise UsageError(
            f"{name}: {module_name} has no class {class_name}{did_you_mean(class_name, classes)}"
        )
    _check_class(kind, part, name)
    return part


def _check_class(kind: type[Part], part: Any, name: str) -> None:
    """Raises UsageError where `part` is no usable class of that kind."""
    if not inspect.isclass(part) or not issubclass(part, kind):
        raise UsageError(f"{name} is no {kind.KIND}; derive it from {kind.__module__}.{kind.__name__}")
    own = vars(part).get("__dataclass_params__")  # a base class's would say nothing of the part's own fields
    if own is None or not own.frozen:
        raise UsageError(f"{name} is no frozen dataclass; write @dataclass(frozen=True) above the class")
    for method in kind.NEEDS:
        if getattr(part, method, None) is getattr(kind, method, None):
            raise UsageError(f"{name} lacks the method {method}, which each {kind.KIND} has")


@contextmanager
def _current_folder() -> Iterator[None]:
    """Modules of the current folder can be imported, as with `python -m`; the others come first."""
    folder = os.getcwd()
    added = folder not in sys.path
    if added:
        sys.path.append(folder)
    try:
        yield
    finally:
        if added:
            sys.path.remove(folder)


def build(
    kind: type[Kind], value: object, where: str, allowed: Allowed = YOURS, default: Kind | None = None
) -> Kind:
    """The part that a recipe or a caller names: a word, a table with `name` and fields, or a part itself.

    where: the key, for messages ("sample.sampler"). default: what a table without a name changes fields of.
    Raises UsageError for an unknown name or field, and for a value of the wrong kind or out of its bounds.
    """
    if isinstance(value, Part):
        if not isinstance(value, kind):
            raise UsageError(f"{where} must be a {kind.KIND}, got the part {value.part_name()!r}")
        return value
    table: Mapping[str, Any]
    if isinstance(value, str):
        table = {"name": value}
    elif isinstance(value, Mapping):
        table = value
    else:
        raise UsageError(
            f"{where} must be a {kind.KIND}'s name, or a table with its name; got {shown(value)}"
        )
    name = table.get("name")
    if name is None and default is not None:
        part: type[Kind] = type(default)
        start = {one.name: getattr(default, one.name) for one in own_fields(part)}
    else:
        if not isinstance(name, str):
            raise UsageError(f"{where} must name a {kind.KIND}: one of {', '.join(names(kind))}")
        try:
            part = find(kind, name, allowed)
        except UsageError as error:
            raise UsageError(f"{where}: {error}") from error.__cause__
        start = {}
    types = hints(part)
    fields: dict[str, Any] = {}
    for key, given in table.items():
        if key == "name":
            continue
        if key not in types:
            takes = (
                f"{part.part_name()} takes {', '.join(types)}"
                if types
                else f"{part.part_name()} takes no fields"
            )
            near = did_you_mean(str(key), types).partition("; known")[0] if types else ""
            raise UsageError(f"unknown key {where}.{key}: {takes}{near}")
        own = next(one for one in own_fields(part) if one.name == key)
        if (none := own.metadata.get("none")) and given == none:
            given = None
        inner = nested_of(allowed, start.get(key, own.default))
        fields[key] = convert(types[key], f"{where}.{key}", given, inner)
    missing = [
        one.name
        for one in own_fields(part)
        if one.default is dataclasses.MISSING and one.name not in {**start, **fields}
    ]
    if missing:
        raise UsageError(f"{where}: {part.part_name()} needs {', '.join(missing)}")
    try:
        return part(**{**start, **fields})
    except UsageError as error:
        said = str(error)
        bare = any(said.startswith(f"{key} ") for key in types)
        raise UsageError(f"{where}.{said}" if bare else f"{where}: {said}") from None


def nested_of(allowed: Allowed, default: Any = None):
    """What `values.convert` needs to make the parts inside of parts and sections."""

    def nested(kind: Any, key: str, value: Any) -> Any:
        part = part_kind(kind)
        if part is None:
            return NotImplemented
        if value is None and type(None) in get_args(kind):
            return None
        return build(part, value, key, allowed, default if isinstance(default, part) else None)

    return nested


def part_kind(kind: Any) -> type[Part] | None:
    """The kind of part that a type means, itself or in a union with None or str; else None."""
    if inspect.isclass(kind) and issubclass(kind, Part):
        return kind
    if get_origin(kind) is Union or type(kind).__name__ == "UnionType":
        for option in get_args(kind):
            if inspect.isclass(option) and issubclass(option, Part):
                return option
    return None


def inner_kinds(kind: type[Part]) -> dict[str, type[Part]]:
    """{field: kind of part} of the fields of a kind's parts that are parts of another kind."""
    found: dict[str, type[Part]] = {}
    for one in members(kind).values():
        for name, of in hints(one).items():
            inner = part_kind(of)
            if inner is not None and inner is not kind:
                found.setdefault(name, inner)
    return found


def switched(kind: type[Kind], table: object, name: str, allowed: Allowed = YOURS) -> dict[str, Any]:
    """The table of the part `name` in the place of another one's: the fields that both have are kept, but for
    parts inside that are as the other one has them by default (a sampler's times, say): those are chosen for
    it.

    table: what stood there, a word or a table (of plain values).
    """
    part = find(kind, name, allowed)
    before = dict(table) if isinstance(table, Mapping) else {}
    usual: dict[str, Any] = {}
    if before.get("name", name) != name:
        with suppress(UsageError):  # what stood there may itself be wrong, and is replaced
            usual = {
                one.name: plain(one.default)
                for one in own_fields(find(kind, before["name"], allowed))
                if isinstance(one.default, Part)
            }
    kept = {
        key: value
        for key, value in before.items()
        if key != "name" and key in hints(part) and not (key in usual and value == usual[key])
    }
    return {"name": name, **kept}


class FieldDescription(NamedTuple):
    """A field for people. default: "" where it must be given."""

    name: str
    default: str
    bounds: str
    doc: str


@dataclass(frozen=True)
class PartDescription:
    """A part for people: its name, the first sentence of its docstring, its fields."""

    name: str
    summary: str
    fields: tuple[FieldDescription, ...]


def describe(kind: type[Part]) -> list[PartDescription]:
    """All of scaledit's own parts of a kind, for --help and the documentation."""
    return [described(part) for part in members(kind).values()]


def described(part: type[Part]) -> PartDescription:
    """One part, a user's own too."""
    text = " ".join((inspect.getdoc(part) or "").split("\n\n")[0].split())
    fields = tuple(
        FieldDescription(
            one.name,
            "" if one.default is dataclasses.MISSING else _shown(_said(one, one.default)),
            bounds_in_words(one),
            one.metadata.get("doc", ""),
        )
        for one in own_fields(part)
    )
    return PartDescription(part.part_name(), text, fields)


def _shown(value: Any) -> str:
    if isinstance(value, Part):
        return value.part_name()
    if isinstance(value, tuple):
        return f"[{', '.join(map(_shown, value))}]"
    return str(value)
