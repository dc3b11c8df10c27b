"""Parts: samplers, schedules, objectives, ... Each part is a frozen dataclass in the file that defines it.
That one definition gives the recipe key, the choice on the command line, the entry in protocols, the column
of tables and the label in plots.

    class Sampler(Part, kind="sampler", home="scaledit.diffusion.samplers"): ...   a kind: the interface

    @dataclass(frozen=True)
    class DDIM(Sampler, name="ddim"):                                              a part of that kind
        steps: int = field(50, ge=1, doc="of the grid")

    sampler = "ddim"    sampler = {name = "ddim", eta = 0.5}    sampler = "my_parts:Midpoint"      in a recipe

The parts of a kind are found by importing its home (a package or a module), so a new part is one new file. A
name with a colon, MODULE:CLASS, is a class written by the user; the current folder is on the import path.
Imports no torch.
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import os
import pkgutil
import sys
import types
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, TypeVar, Union, get_args, get_origin

from scaledit.errors import UsageError, did_you_mean, listed, reason, shown
from scaledit.values import bounds_in_words, check_bounds, convert, field, hints, is_written, own_fields

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


class Allowed(NamedTuple):
    """Which modules may be imported because a config names them.

    modules: their names, or None for any module (a recipe, an override or a call written by the user).
    where: what names the modules, for error messages.
    """

    modules: frozenset[str] | None = None
    where: str = ""

    @classmethod
    def only(cls, modules: Iterable[str], where: str) -> Allowed:
        """For configs that came from elsewhere: a folder, a checkpoint, a model of the Hub."""
        return cls(frozenset(modules), where)

    def check(self, module: str, name: str) -> None:
        """Raises UsageError if `module` may not be imported."""
        if self.modules is None or module in self.modules:
            return
        raise UsageError(
            f"{self.where or 'this config'} names {name!r}, which is code from outside scaledit; if you "
            f"trust it, allow it with --allow-import {module} (in Python: "
            f"allow_import=[{module!r}])"
        )


YOURS = Allowed()


class Part:
    """The base class of all parts. A direct subclass with `kind` is a kind, a subclass with `name` is a part.

    kind: the kind's name in messages ("sampler"). home: the package or module that holds the built-in parts.
    needs: methods that every part must override ("a|b": at least one of them); a user's class without them is
    refused before anything runs.
    title: the part's name in captions and tables; the class name by default.
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
        cls.NAME = name  # never inherited: a subclass of a part is another part
        if title or "TITLE" not in vars(cls):
            cls.TITLE = title or cls.__name__
        if kind:
            cls.KIND, cls.HOME, cls.NEEDS = kind, home, needs

    def __post_init__(self) -> None:
        self.check()

    def check(self, where: str = "") -> None:
        """Raises UsageError if a field is out of its bounds or fields contradict each other. where: prefix of
        the field's name in messages."""
        check_bounds(self, where)

    @classmethod
    def part_name(cls) -> str:
        """The part's name in recipes: NAME for scaledit's own parts, MODULE:CLASS for others."""
        if cls.__module__.partition(".")[0] == "scaledit" and cls.NAME:
            return cls.NAME
        return f"{cls.__module__}:{cls.__qualname__}"

    def to_json(self) -> dict[str, Any]:
        """The part with its fields as plain values: {"name": ..., field: value, ...}, without `added` ones at
        their defaults. `build` is the inverse."""
        values = {
            item.name: plain(_recipe_value(item, value))
            for item in own_fields(type(self))
            if is_written(item, value := getattr(self, item.name))
        }
        return {"name": self.part_name(), **values}

    def label(self) -> str:
        """The part's name and the fields that differ from their defaults, for people."""
        changed = []
        for item in own_fields(type(self)):
            value = getattr(self, item.name)
            if value != item.default:
                text = value.label() if isinstance(value, Part) else _recipe_value(item, value)
                changed.append(f"{item.name} {text}")
        return ", ".join([self.part_name(), *changed])


Kind = TypeVar("Kind", bound=Part)


def _recipe_value(item: dataclasses.Field[Any], value: Any) -> Any:
    """The value of a field as a recipe writes it: None by the word that the field has for it."""
    return item.metadata.get("none") or None if value is None else value


def plain(value: Any) -> Any:
    """`value` as JSON holds it: parts as tables, tuples as lists."""
    if isinstance(value, Part):
        return value.to_json()
    if isinstance(value, Mapping):
        return {key: plain(inner) for key, inner in value.items()}
    if isinstance(value, tuple | list):
        return [plain(inner) for inner in value]
    return value


def in_words(value: Any) -> str:
    """The plain values of parts in a protocol as text: "ddim (steps 50, eta 0.0)", or "none"."""
    if isinstance(value, list | tuple):
        return ", ".join(map(in_words, value)) or "none"
    if not isinstance(value, Mapping) or not isinstance(value.get("name"), str):
        return str(value)
    fields = ", ".join(f"{key} {in_words(inner)}" for key, inner in value.items() if key != "name")
    return f"{value['name']} ({fields})" if fields else value["name"]


def members(kind: type[Kind]) -> dict[str, type[Kind]]:
    """{name: class} of scaledit's own parts of a kind, ordered by file and by place within it."""
    home = importlib.import_module(kind.HOME)
    modules = [home]
    if hasattr(home, "__path__"):
        submodules = sorted(module.name for module in pkgutil.iter_modules(home.__path__))
        modules += [importlib.import_module(f"{kind.HOME}.{name}") for name in submodules]
    return {
        cls.NAME: cls
        for module in modules
        for cls in vars(module).values()
        if inspect.isclass(cls) and issubclass(cls, kind) and cls.NAME and cls.__module__ == module.__name__
    }


def names(kind: type[Part]) -> list[str]:
    """The names of scaledit's own parts of a kind."""
    return list(members(kind))


def find(kind: type[Kind], name: str, allowed: Allowed = YOURS) -> type[Kind]:
    """The class of the part `name`: one of `names(kind)`, or MODULE:CLASS.

    Raises UsageError if the name is unknown (the closest match is suggested), if the module is not `allowed`
    or cannot be imported, and if the class is not a part of that kind or lacks one of its methods.
    """
    if ":" in name:
        return _imported(kind, name, allowed)
    classes = members(kind)
    if name not in classes:
        raise UsageError(
            f"unknown {kind.KIND} {shown(name)} (write MODULE:CLASS for one of your own)"
            f"{did_you_mean(name, classes)}"
        )
    return classes[name]


def _imported(kind: type[Kind], name: str, allowed: Allowed) -> type[Kind]:
    module_name, _, class_name = name.partition(":")
    if not all(word.isidentifier() for word in [*module_name.split("."), class_name]):
        raise UsageError(
            f"{shown(name)} is not the name of a class; write MODULE:CLASS, as in my_parts:Midpoint"
        )
    allowed.check(module_name, name)
    with _current_folder():
        try:
            module = importlib.import_module(module_name)
        except UsageError:
            raise
        except Exception as error:  # the module may raise anything
            wrong = "cannot be found" if isinstance(error, ModuleNotFoundError) else "cannot be imported"
            raise UsageError(f"{name}: the module {module_name} {wrong}: {reason(error)}") from error
    part = getattr(module, class_name, None)
    if part is None:
        classes = [
            key for key, value in vars(module).items() if inspect.isclass(value) and issubclass(value, Part)
        ]
        raise UsageError(
            f"{name}: the module {module_name} has no class {class_name}{did_you_mean(class_name, classes)}"
        )
    _check_class(kind, part, name)
    return part


def _a(kind: type[Part]) -> str:
    """The kind with its article."""
    if kind.KIND in ("times", "guidance"):
        return kind.KIND
    return f"{'an' if kind.KIND[0] in 'aeiou' or kind.KIND == 'MLP' else 'a'} {kind.KIND}"


def _check_class(kind: type[Part], part: Any, name: str) -> None:
    """Raises UsageError if `part` is not a usable class of that kind."""
    if not inspect.isclass(part) or not issubclass(part, kind):
        raise UsageError(f"{name} is not {_a(kind)}; derive it from {kind.__module__}.{kind.__name__}")
    # Not an inherited one, which says nothing about the class's own fields.
    params = vars(part).get("__dataclass_params__")
    if params is None or not params.frozen:
        raise UsageError(f"{name} is not a frozen dataclass; write @dataclass(frozen=True) above the class")
    for method in kind.NEEDS:
        either = method.split("|")
        if all(getattr(part, word, None) is getattr(kind, word, None) for word in either):
            raise UsageError(f"{name} lacks the method {listed(either, 'or')}, which each {kind.KIND} needs")


@contextmanager
def _current_folder() -> Iterator[None]:
    """Makes modules of the current folder importable, after all others."""
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
    """Builds the part that a recipe or a caller names by a word, by a table with `name` and fields, or by the
    part itself.

    where: the key, for messages ("sample.sampler"). default: the part whose fields a table without a name
    changes. Raises UsageError for an unknown name or field and for a value of the wrong type or out of
    bounds."""
    if isinstance(value, Part):
        if not isinstance(value, kind):
            raise UsageError(f"{where} must be {_a(kind)}, got the part {value.part_name()!r}")
        return value
    table: Mapping[str, Any]
    if isinstance(value, str):
        table = {"name": value}
    elif isinstance(value, Mapping):
        table = value
    else:
        raise UsageError(
            f"{where} must be the name of {_a(kind)}, or a table with its name; got {shown(value)}"
        )
    name = table.get("name")
    if name is None and default is not None:
        part: type[Kind] = type(default)
        start = {item.name: getattr(default, item.name) for item in own_fields(part)}
    else:
        if not isinstance(name, str):
            raise UsageError(f"{where} must name {_a(kind)}: one of {', '.join(names(kind))}")
        try:
            part = find(kind, name, allowed)
        except UsageError as error:
            raise UsageError(f"{where}: {error}") from error.__cause__
        start = {}
    types, items = hints(part), {item.name: item for item in own_fields(part)}
    values = dict(start)
    for key, given in table.items():
        if key == "name":
            continue
        if key not in types:
            near = did_you_mean(str(key), types).partition("; known")[0] if types else ""
            fields = f"the field{'s' if len(types) > 1 else ''} {', '.join(types)}" if types else "no fields"
            raise UsageError(f"unknown key {where}.{key}: {part.part_name()} has {fields}{near}")
        if (none := items[key].metadata.get("none")) and given == none:
            given = None
        inner = nested_of(allowed, start.get(key, items[key].default))
        values[key] = convert(types[key], f"{where}.{key}", given, inner)
    missing = [
        key for key, item in items.items() if item.default is dataclasses.MISSING and key not in values
    ]
    if missing:
        raise UsageError(f"{where}: {part.part_name()} needs {', '.join(missing)}")
    try:
        return part(**values)
    except UsageError as error:
        message = str(error)
        names_field = any(message.startswith(f"{key} ") for key in types)
        raise UsageError(f"{where}.{message}" if names_field else f"{where}: {message}") from None


def nested_of(allowed: Allowed, default: Any = None):
    """The function with which `values.convert` builds the parts inside other parts and sections."""

    def nested(kind: Any, key: str, value: Any) -> Any:
        part = part_kind(kind)
        if part is None:
            return NotImplemented
        if value is None and type(None) in get_args(kind):
            return None
        return build(part, value, key, allowed, default if isinstance(default, part) else None)

    return nested


def part_kind(kind: Any) -> type[Part] | None:
    """The kind of part that a type annotation holds, alone or in a union; None if it holds none."""
    options = get_args(kind) if get_origin(kind) in (Union, types.UnionType) else (kind,)
    return next((option for option in options if inspect.isclass(option) and issubclass(option, Part)), None)


def inner_kinds(kind: type[Part]) -> dict[str, type[Part]]:
    """{field: kind} of those fields of a kind's parts that are parts of another kind."""
    inner: dict[str, type[Part]] = {}
    for member in members(kind).values():
        for name, annotation in hints(member).items():
            if (other := part_kind(annotation)) is not None and other is not kind:
                inner.setdefault(name, other)
    return inner


def switched(kind: type[Kind], table: object, name: str, allowed: Allowed = YOURS) -> dict[str, Any]:
    """The table of the part `name` when it replaces another part. Fields that both parts have are kept,
    except inner parts at their default (the times of a sampler, say), which were chosen for the replaced
    part.

    table: the replaced part, a word or a table of plain values.
    """
    part = find(kind, name, allowed)
    before = dict(table) if isinstance(table, Mapping) else {}
    defaults: dict[str, Any] = {}
    if before.get("name", name) != name:
        with suppress(UsageError):  # the replaced part may itself be wrong
            defaults = {
                item.name: plain(item.default)
                for item in own_fields(find(kind, before["name"], allowed))
                if isinstance(item.default, Part)
            }
    shared = {
        key: value
        for key, value in before.items()
        if key != "name" and key in hints(part) and not (key in defaults and value == defaults[key])
    }
    return {"name": name, **shared}


class FieldDescription(NamedTuple):
    """A field for people. default: "" if the field is required."""

    name: str
    default: str
    bounds: str
    doc: str


@dataclass(frozen=True)
class PartDescription:
    """A part for people: its name, the first paragraph of its docstring, its fields."""

    name: str
    summary: str
    fields: tuple[FieldDescription, ...]


def describe(kind: type[Part]) -> list[PartDescription]:
    """Describes scaledit's own parts of a kind, for --help and the documentation."""
    return [described(part) for part in members(kind).values()]


def described(part: type[Part]) -> PartDescription:
    """Describes one part, scaledit's or a user's."""
    text = " ".join((inspect.getdoc(part) or "").split("\n\n")[0].split())
    fields = tuple(
        FieldDescription(
            item.name,
            "" if item.default is dataclasses.MISSING else default_text(_recipe_value(item, item.default)),
            bounds_in_words(item),
            item.metadata.get("doc", ""),
        )
        for item in own_fields(part)
    )
    return PartDescription(part.part_name(), text, fields)


def default_text(value: Any) -> str:
    """A default as recipes write it, without quotes."""
    if isinstance(value, Part):
        return value.part_name()
    if isinstance(value, tuple):
        return f"[{', '.join(map(default_text, value))}]"
    return str(value).lower() if isinstance(value, bool) else str(value)
