"""Merging recipes and overrides: tables of plain values, from which `section` builds the dataclasses at the
end.

    {"sample": {"sampler": {"name": "ddpm", "steps": 250}}}    sample.sampler=ddim    sample.sampler.eta=0.5
    {"sample": {"sampler": {"name": "ddim", "steps": 250, "eta": 0.5}}}

Parts are set before the fields of parts, so the order of keys does not matter. If two assignments set the
same key, the last one wins. A part that replaces another keeps the fields that both have (part.switched)."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar, get_args, get_origin, get_type_hints

from scaledit import part
from scaledit.config import aliases, old
from scaledit.config.sections import DataConfig, EvaluateConfig
from scaledit.data.datasets import DataSet
from scaledit.errors import UsageError, closest, did_you_mean, listed, shown
from scaledit.models.config import DiTConfig
from scaledit.part import YOURS, Allowed, Part, nested_of, part_kind, plain
from scaledit.values import convert, expanded, hints, known, own_fields

Table = dict[str, Any]
Section = TypeVar("Section")

BESIDES: Mapping[type, tuple[str, ...]] = {DiTConfig: ("name", "image_size")}
"""Keys of a section that are not fields of its dataclass: a model may be named instead of described."""


class Assignment(NamedTuple):
    """path: ("sample", "sampler", "steps"). value: plain."""

    path: tuple[str, ...]
    value: Any

    @property
    def key(self) -> str:
        return ".".join(self.path)

    @property
    def sets_a_field(self) -> bool:
        """Whether it sets a field of a part, and so comes after the assignments of parts."""
        in_data = self.path[0] == "data" and self.path[1:] != ("name",)
        return in_data or (len(self.path) > 2 and self.path[-1] != "name") or old.is_field(self.path)


@functools.cache
def section_types(kind: type) -> Mapping[str, type]:
    """{section: dataclass} of a kind of config."""
    types = get_type_hints(kind)
    return {one.name: types[one.name] for one in dataclasses.fields(kind) if one.name != "name"}


def part_keys(kind: type, sections: Iterable[str]) -> list[tuple[str, type[Part]]]:
    """("section.key", kind of part) for each key of these sections that names a part."""
    types = section_types(kind)
    return [
        (f"{section}.{key}", part_type)
        for section in types
        if section in sections
        for key, annotation in hints(types[section]).items()
        if (part_type := part_kind(annotation) or parts_kind(annotation)) is not None
    ]


def parts_kind(kind: Any) -> type[Part] | None:
    """The kind of part that a tuple type holds; None for other types."""
    items = get_args(kind) if get_origin(kind) is tuple else ()
    return part_kind(items[0]) if items and items[-1] is Ellipsis else None


def assignments(table: object) -> list[Assignment]:
    """The assignments that a recipe or a config.json makes. Raises UsageError if it is not a table of
    tables."""
    if not isinstance(table, Mapping):
        raise UsageError(f"a config must be a table of sections, got {shown(table)}")
    result = []
    for section, values in table.items():
        if section == "name":
            continue
        if not isinstance(values, Mapping):
            raise UsageError(f"{shown(section)[1:-1]} must be a table of keys, got {shown(values)}")
        result += [Assignment((section, key), value) for key, value in values.items()]
    return result


def assign(kind: type, table: Table, changes: Iterable[Assignment], allowed: Allowed = YOURS) -> None:
    """Sets keys of a table of tables; keys of earlier versions are set under their new names.

    kind: the type of config that the table is for. allowed: which modules may be imported for a part named
    MODULE:CLASS. Raises UsageError for an unknown section, key or part.
    """
    for change in sorted(changes, key=lambda change: change.sets_a_field):  # a stable sort
        for path, value in old.modern(change.path, change.value, table):
            _assign(kind, table, path, value, allowed)


def _assign(kind: type, table: Table, path: tuple[str, ...], value: Any, allowed: Allowed) -> None:
    types = section_types(kind)
    section, name, *rest = path
    if section not in types:
        raise UsageError(_unknown_section(kind, section, name))
    cls = types[section]
    if cls is DataConfig and _assign_data(table.setdefault(section, {}), path[1:], value, allowed):
        return
    keys = [*hints(cls), *BESIDES.get(cls, ())]
    if name not in keys:
        raise UsageError(_unknown_key(kind, section, name, keys))
    values = table.setdefault(section, {})
    if name not in hints(cls):
        values[name] = value
        return
    current = values.get(name, _default(cls, name))
    values[name] = _set(hints(cls)[name], current, rest, value, ".".join(path), allowed)


@functools.cache
def all_keys(kind: type) -> tuple[str, ...]:
    """Every key of a kind of config: 'section.key', and 'section.key.field' for the fields of built-in
    parts."""
    types = section_types(kind)
    keys = [
        f"{section}.{name}" for section, cls in types.items() for name in [*hints(cls), *BESIDES.get(cls, ())]
    ]
    fields = [
        f"{key}.{field}"
        for key, part_type in part_keys(kind, types)
        for member in part.members(part_type).values()
        for field in hints(member)
    ]
    return tuple(dict.fromkeys(key for key in (*keys, *fields) if key != "data.own"))


def _unknown_section(kind: type, section: str, name: str) -> str:
    """The message about a section that does not exist."""
    types = section_types(kind)
    near = closest(section, types)
    meant = "" if near and name in hints(types[near]) else aliases.hint(all_keys(kind), name, near)
    return f"unknown section {shown(section)}{meant or did_you_mean(section, types)}"


def _unknown_key(kind: type, section: str, name: str, keys: Sequence[str]) -> str:
    """The message about a key that the section does not have."""
    meant = aliases.hint(all_keys(kind), name, section)
    own = f"; the keys of [{section}] are {listed(sorted(keys), 'and')}"
    return f"unknown key {shown(f'{section}.{name}')}{meant or own}"


def without_section(kind: type, name: str, value: str) -> str:
    """The message about `name`=`value`, an override that names no section."""
    meant = aliases.hint(all_keys(kind), name, value=f"={value}")
    example = "; an override is section.key=value, as in train.steps=100"
    return f"{shown(f'{name}={value}')} names no section{meant or example}"


def _default(cls: type, name: str) -> Any:
    """The default of a field, None if it has none."""
    default = next((item.default for item in own_fields(cls) if item.name == name), None)
    return None if default is dataclasses.MISSING else default


def _assign_data(values: Table, path: Sequence[str], value: Any, allowed: Allowed) -> bool:
    """Sets a key of [data] that belongs to a data set defined by the user. Returns whether it was one."""
    if list(path) == ["name"] and isinstance(value, str) and ":" in value:
        shared = {key: values[key] for key in DataConfig.SHARED if key in values}
        others = {key: inner for key, inner in values.items() if key not in shared}
        fields = part.switched(DataSet, others, value, allowed) if others else {"name": value}
        values.clear()
        values.update({**shared, **fields})
        return True
    if ":" in str(values.get("name", "")) and len(path) == 1 and path[0] != "name":
        values[path[0]] = value
        return True
    return False


def _set(kind: Any, current: Any, path: Sequence[str], value: Any, key: str, allowed: Allowed) -> Any:
    """The new value of a field of type `kind` after `path` inside it is set: plain values, or a part that the
    caller has built."""
    current = plain(current)
    if (part_type := part_kind(kind)) is not None:
        return _set_part(part_type, current, path, value, key, allowed)
    if (part_type := parts_kind(kind)) is not None:
        return _set_parts(part_type, current, path, value, key, allowed)
    if path:
        raise UsageError(
            f"unknown key {key}: {key.removesuffix('.' + '.'.join(path))} is not a part with fields"
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
        return value  # a part, or a value that `part.build` will refuse
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
    annotation = default = None
    if isinstance(name := table.get("name"), str):
        cls = part.find(kind, name, allowed)
        annotation, default = hints(cls).get(field), _default(cls, field)
    table[field] = _set(annotation, table.get(field, default), rest, value, key, allowed)
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
    """Sets a list of parts, or one of them by index or name; a part that is not in the list is added."""
    if not path and isinstance(value, Mapping) and "name" not in value and value:
        for which, fields in value.items():  # TOML: guidance.classifier_free.scale = 2
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
        return [_set_part(kind, None, (), item, f"{key}.{i}", allowed) for i, item in enumerate(value)]
    items = list(current or [])
    which, *rest = path
    place = _place(kind, items, which, key.removesuffix("." + ".".join(path)), allowed)
    if place == len(items):
        place = _end(kind, items, which, allowed)
        items.insert(place, {"name": which})
    items[place] = _set_part(kind, items[place], rest, value, key, allowed)
    return items


def _end(kind: type[Part], items: Sequence[Any], which: str, allowed: Allowed) -> int:
    """Where the part `which` is added to a list: at its end, but guidance goes before the parts at the end
    that change the guidance before them."""
    end = len(items)
    if not _modifies(kind, which, allowed):
        while end and _modifies(kind, name_of(items[end - 1]), allowed):
            end -= 1
    return end


def _modifies(kind: type[Part], name: Any, allowed: Allowed) -> bool:
    return isinstance(name, str) and getattr(part.find(kind, name, allowed), "modifies", False)


def _place(kind: type[Part], items: Sequence[Any], which: str, key: str, allowed: Allowed) -> int:
    """The index of the part `which` in a list; the list's length if it is to be added."""
    if which.isdecimal():
        if int(which) >= len(items):
            holds = f"{len(items)} part{'' if len(items) == 1 else 's'}"
            raise UsageError(f"unknown key {key}.{which}: {key} has {holds}, counted from 0")
        return int(which)
    for i, item in enumerate(items):
        if name_of(item) == which:
            return i
    try:
        part.find(kind, which, allowed)
    except UsageError as error:
        raise UsageError(f"{key}: {error}") from error.__cause__
    return len(items)


def name_of(item: Any) -> Any:
    """The name of a part given as plain values: a word, or a table."""
    return item.get("name") if isinstance(item, Mapping) else item


def section(kind: type[Section], where: str, values: object, allowed: Allowed = YOURS) -> Section:
    """Builds a section's dataclass from its table. Raises UsageError for an unknown key and for a value of
    the wrong type or out of bounds."""
    return kind(**fields(kind, where, values, allowed))


def fields(kind: type, where: str, values: object, allowed: Allowed = YOURS) -> Table:
    """The values of a section's table, checked against the types of its dataclass."""
    if not isinstance(values, Mapping):
        raise UsageError(f"{where} must be a table of keys, got {shown(values)}")
    if kind is DataConfig:
        values = DataConfig.with_own(values)
    types = hints(kind)
    defaults = {item.name: item.default for item in own_fields(kind)}
    paths = {item.name: item.metadata.get("path", False) for item in own_fields(kind)}
    checked = {}
    for key, value in values.items():
        known(f"{where}.{key}", [f"{where}.{name}" for name in types], "key")
        if kind is DataConfig and key == "own":
            checked[key] = dict(value)
            continue
        inner = nested_of(allowed, defaults[key])
        checked[key] = convert(types[key], f"{where}.{key}", value, inner)
        if paths[key] and isinstance(checked[key], str):
            checked[key] = expanded(checked[key])
    return checked


def modules(value: Any) -> frozenset[str]:
    """The modules outside scaledit that a config, a section or a part (or its plain values) names."""
    if isinstance(value, Part):
        value = value.to_json()
    elif isinstance(value, DataConfig):
        value = {"name": value.name}
    elif isinstance(value, EvaluateConfig):
        metrics = value.metrics.split(",") if isinstance(value.metrics, str) else value.metrics
        names = [value.reference, value.extractor, *map(name_of, metrics)]
        value = [{"name": name.strip()} for name in names] + list(value.guidance)
    elif dataclasses.is_dataclass(value):
        value = [getattr(value, item.name) for item in dataclasses.fields(value)]
    if isinstance(value, Mapping):
        name = value.get("name")
        own = [name.partition(":")[0]] if isinstance(name, str) and ":" in name else []
        return frozenset(own).union(*map(modules, value.values()))
    if isinstance(value, list | tuple):
        return frozenset().union(*map(modules, value))
    return frozenset()
