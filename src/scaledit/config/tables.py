"""Tables of a config while it is put together: recipes laid over each other, then overrides, all as plain
values; `section` makes the dataclasses of them at the end.

    {"sample": {"sampler": {"name": "ddpm", "steps": 250}}}    sample.sampler=ddim    sample.sampler.eta=0.5
    {"sample": {"sampler": {"name": "ddim", "steps": 250, "eta": 0.5}}}

Whole parts are set before the fields of parts, so that the order of keys does not matter; of two that set
the same, the last one wins. A part that takes another one's place keeps the fields that both have
(part.switched).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar, get_args, get_origin, get_type_hints

from scaledit import part
from scaledit.config import old
from scaledit.config.sections import DataConfig
from scaledit.data.datasets import DataSet
from scaledit.errors import UsageError, shown
from scaledit.models.config import DiTConfig
from scaledit.part import YOURS, Allowed, Part, nested_of, part_kind, plain
from scaledit.values import convert, hints, known, own_fields

Table = dict[str, Any]
Section = TypeVar("Section")

BESIDES: Mapping[type, tuple[str, ...]] = {DiTConfig: ("name", "image_size")}
"""Keys of a section that are no fields of its dataclass: a model may be named instead."""


class Assignment(NamedTuple):
    """path: ("sample", "sampler", "steps"). value: plain."""

    path: tuple[str, ...]
    value: Any

    @property
    def key(self) -> str:
        return ".".join(self.path)

    @property
    def is_of_a_field(self) -> bool:
        """Whether it sets a part's field, and so comes after what sets whole parts."""
        of_data = self.path[0] == "data" and self.path[1:] != ("name",)
        return of_data or (len(self.path) > 2 and self.path[-1] != "name") or old.is_field(self.path)


def section_types(kind: type) -> dict[str, type]:
    """{section: dataclass} of a kind of config."""
    types = get_type_hints(kind)
    return {one.name: types[one.name] for one in dataclasses.fields(kind) if one.name != "name"}


def part_keys(kind: type, sections: Iterable[str]) -> list[tuple[str, type[Part]]]:
    """("section.key", kind of part) of the keys of these sections that name parts."""
    types = section_types(kind)
    return [
        (f"{section}.{key}", found)
        for section in types
        if section in sections
        for key, of in hints(types[section]).items()
        if (found := part_kind(of) or parts_kind(of)) is not None
    ]


def parts_kind(kind: Any) -> type[Part] | None:
    """The kind of part of which a type is a tuple; else None."""
    items = get_args(kind) if get_origin(kind) is tuple else ()
    return part_kind(items[0]) if items and items[-1] is Ellipsis else None


def assignments(table: object) -> list[Assignment]:
    """What the tables of a recipe or a config.json set. Raises UsageError for what is no table of tables."""
    if not isinstance(table, Mapping):
        raise UsageError(f"a config is a table of sections, got {shown(table)}")
    found = []
    for section, values in table.items():
        if section == "name":
            continue
        if not isinstance(values, Mapping):
            raise UsageError(f"{shown(section)[1:-1]} must be a table of keys, got {shown(values)}")
        found += [Assignment((section, key), value) for key, value in values.items()]
    return found


def assign(kind: type, table: Table, made: Iterable[Assignment], allowed: Allowed = YOURS) -> None:
    """Sets keys of a table of tables, old ones under their new names.

    kind: of the config that the table is for. allowed: which modules may be imported, where a part is named
    MODULE:CLASS. Raises UsageError for an unknown section, key or part.
    """
    for one in sorted(made, key=lambda one: one.is_of_a_field):  # stable
        for path, value in old.modern(one.path, one.value, table):
            _assign(kind, table, path, value, allowed)


def _assign(kind: type, table: Table, path: tuple[str, ...], value: Any, allowed: Allowed) -> None:
    types = section_types(kind)
    section, name, *rest = path
    known(section, list(types), "section")
    of = types[section]
    if of is DataConfig and _assign_data(table.setdefault(section, {}), path[1:], value, allowed):
        return
    keys = [*hints(of), *BESIDES.get(of, ())]
    known(f"{section}.{name}", [f"{section}.{key}" for key in keys], "key")
    values = table.setdefault(section, {})
    key = ".".join(path)
    if name not in hints(of):
        values[name] = value
        return
    default = next((one.default for one in own_fields(of) if one.name == name), None)
    current = values.get(name, None if default is dataclasses.MISSING else default)
    values[name] = _set(hints(of)[name], current, rest, value, key, allowed)


def _assign_data(values: Table, path: Sequence[str], value: Any, allowed: Allowed) -> bool:
    """Sets keys of [data] that are a user's own set's; whether this was one."""
    if list(path) == ["name"] and isinstance(value, str) and ":" in value:
        shared = {key: values[key] for key in DataConfig.SHARED if key in values}
        others = {key: inner for key, inner in values.items() if key not in shared}
        kept = part.switched(DataSet, others, value, allowed) if others else {"name": value}
        values.clear()
        values.update({**shared, **kept})
        return True
    if ":" in str(values.get("name", "")) and len(path) == 1 and path[0] != "name":
        values[path[0]] = value
        return True
    return False


def _set(kind: Any, current: Any, path: Sequence[str], value: Any, key: str, allowed: Allowed) -> Any:
    """What stands in a field of type `kind` after `path` in it has been set: plain values, or a part that a
    caller has made."""
    current = plain(current)
    one, several = part_kind(kind), parts_kind(kind)
    if one is not None:
        return _set_part(one, current, path, value, key, allowed)
    if several is not None:
        return _set_parts(several, current, path, value, key, allowed)
    if path:
        raise UsageError(
            f"unknown key {key}: {key.removesuffix('.' + '.'.join(path))} is no part with fields"
        )
    return value


def _set_part(
    kind: type[Part], current: Any, path: Sequence[str], value: Any, key: str, allowed: Allowed
) -> Any:
    if list(path) == ["name"]:
        path = ()
    if path:
        return _set_field(kind, current, path, value, key, allowed)
    if isinstance(value, str):
        return _switched(kind, current, value, key, allowed)
    if not isinstance(value, Mapping):
        return value  # a part, or what `part.build` says what is wrong with
    if isinstance(name := value.get("name"), str):
        current = _switched(kind, current, name, key, allowed)
    for field, inner in value.items():
        if field != "name":
            current = _set_field(kind, current, (field,), inner, f"{key}.{field}", allowed)
        elif not isinstance(inner, str):
            return value
    return current


def _set_field(
    kind: type[Part], current: Any, path: Sequence[str], value: Any, key: str, allowed: Allowed
) -> Table:
    table = {"name": current} if isinstance(current, str) else dict(current or {})
    field, *rest = path
    types: Mapping[str, Any] = {}
    default = None
    if isinstance(name := table.get("name"), str):
        of = part.find(kind, name, allowed)
        types = hints(of)
        default = next((one.default for one in own_fields(of) if one.name == field), None)
    start = table.get(field, None if default is dataclasses.MISSING else default)
    table[field] = _set(types.get(field), start, rest, value, key, allowed)
    return table


def _switched(kind: type[Part], current: Any, name: str, key: str, allowed: Allowed) -> Table:
    table = {"name": current} if isinstance(current, str) else current
    try:
        return part.switched(kind, table, name, allowed)
    except UsageError as error:
        raise UsageError(f"{key.removesuffix('.name')}: {error}") from error.__cause__


def _set_parts(
    kind: type[Part], current: Any, path: Sequence[str], value: Any, key: str, allowed: Allowed
) -> Any:
    """A list of parts: all of it, or one by its place or its name, which is added where it is not there."""
    if not path and isinstance(value, Mapping) and "name" not in value and value:
        for which, fields in value.items():  # classifier_free.scale = 2, as TOML has it
            for field, inner in fields.items() if isinstance(fields, Mapping) else ():
                names = (which, field)
                current = _set_parts(kind, current, names, inner, f"{key}.{which}.{field}", allowed)
            if not isinstance(fields, Mapping):
                raise UsageError(f"{key}.{which} must be a table of the part's fields, got {shown(fields)}")
        return current
    if not path:
        value = [value] if isinstance(value, str | Mapping | Part) else value
        if not isinstance(value, list | tuple):
            return value
        return [_set_part(kind, None, (), one, f"{key}.{i}", allowed) for i, one in enumerate(value)]
    items = list(current or [])
    which, *rest = path
    place = _place(kind, items, which, key.removesuffix("." + ".".join(path)), allowed)
    if place == len(items):
        items.append({"name": which})
    items[place] = _set_part(kind, items[place], rest, value, key, allowed)
    return items


def _place(kind: type[Part], items: Sequence[Any], which: str, key: str, allowed: Allowed) -> int:
    """Of the part `which` in a list; the list's length where it is to be added."""
    if which.isdecimal():
        if int(which) >= len(items):
            holds = f"{len(items)} part{'' if len(items) == 1 else 's'}"
            raise UsageError(f"unknown key {key}.{which}: {key} holds {holds}, counted from 0")
        return int(which)
    for i, one in enumerate(items):
        if name_of(one) == which:
            return i
    try:
        part.find(kind, which, allowed)
    except UsageError as error:
        raise UsageError(f"{key}: {error}") from error.__cause__
    return len(items)


def name_of(one: Any) -> Any:
    """The name of a part as plain values: a word, or a table."""
    return one.get("name") if isinstance(one, Mapping) else one


def section(kind: type[Section], where: str, values: object, allowed: Allowed = YOURS) -> Section:
    """A section's dataclass from its table. Raises UsageError for an unknown key, for values of the wrong
    kind and for those beyond their bounds."""
    return kind(**fields(kind, where, values, allowed))


def fields(kind: type, where: str, values: object, allowed: Allowed = YOURS) -> Table:
    """The checked values of a section's keys that are in its table."""
    if not isinstance(values, Mapping):
        raise UsageError(f"{where} must be a table of keys, got {shown(values)}")
    if kind is DataConfig:
        values = DataConfig.with_own(values)
    types = hints(kind)
    defaults = {one.name: one.default for one in own_fields(kind)}
    found = {}
    for key, value in values.items():
        known(f"{where}.{key}", [f"{where}.{name}" for name in types], "key")
        if kind is DataConfig and key == "own":
            found[key] = dict(value)
            continue
        inner = nested_of(allowed, defaults[key])
        found[key] = convert(types[key], f"{where}.{key}", value, inner)
    return found


def modules(value: Any) -> frozenset[str]:
    """The modules outside of scaledit whose parts a config, a section or a part (or plain values of one)
    names."""
    if isinstance(value, Part):
        value = value.to_json()
    elif isinstance(value, DataConfig):
        value = {"name": value.name}
    elif dataclasses.is_dataclass(value):
        value = [getattr(value, one.name) for one in dataclasses.fields(value)]
    if isinstance(value, Mapping):
        name = value.get("name")
        own = [name.partition(":")[0]] if isinstance(name, str) and ":" in name else []
        return frozenset(own).union(*map(modules, value.values()))
    if isinstance(value, list | tuple):
        return frozenset().union(*map(modules, value))
    return frozenset()
