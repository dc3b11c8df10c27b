"""An ablation: switches, each judged alone on a baseline and removed from the full set.

    alone(s)    R(s)  against  R(s) + s          R(s): what s requires, and what that requires ...
    removed(s)  F - D(s) - s  against  F - D(s)  D(s): the switches of the full set F that require s

A comparison is a pair of sets of switches that differ in s only. Without requirements, the pairs are baseline
against s, and full without s against full. This module knows the switches and the sets, not the runs
(`ablated_runs`) and not the results (`ablation_verdicts`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, NamedTuple

from scaledit.errors import UsageError, did_you_mean, listed, shown

Set = frozenset[str]
BASELINE, FULL = "baseline", "full"
ALONE, REMOVED, REFERENCE, BAR, RATE = "alone", "removed", "reference", "bar", "rate"
"""Roles of the rows of a table, with BASELINE and FULL: what the run is for."""
WITH = "base"
"""The role of a set that is only compared with: the requirements of a switch, or full without dependents."""
CLASSES = ("block", "objective", "times", "guidance", "optimizer", "average", "sampler", "data")
NAME = re.compile(r"[a-z][a-z0-9_]*")
MOST_SWITCHES = 40


@dataclass(frozen=True)
class Switch:
    """A set of changes to a recipe that is judged as a whole.

    title: in figures and tables. kind: its class, one of CLASSES. gain, source: what was reported elsewhere,
    and where. set: {'section.key': value}, which replace values. add: {'section.key': [parts]}, which are
    appended to lists of parts. requires, exclusive: names of other switches. rates: learning rates to choose
    from for sets with this switch; empty: those of the study. own_rate: whether such sets choose their own.
    """

    name: str
    title: str
    kind: str
    gain: str = ""
    source: str = ""
    set: Mapping[str, Any] = field(default_factory=dict)
    add: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    requires: tuple[str, ...] = ()
    exclusive: tuple[str, ...] = ()
    rates: tuple[float, ...] = ()
    own_rate: bool = False


class Pair(NamedTuple):
    """Two sets that differ in `switch` only. role: ALONE or REMOVED."""

    switch: str
    role: Literal["alone", "removed"]
    without: Set
    having: Set


@dataclass(frozen=True)
class Ablation:
    """switches: in the order of the study. full: the names in the full set. removes: whether switches are
    also removed from the full set. judged: the switches that get a verdict; those that they require are run,
    too.

    Raises UsageError for names that do not exist, requirements in a circle, and sets that cannot be.
    """

    switches: Mapping[str, Switch]
    full: Set
    judged: tuple[str, ...]
    removes: bool = True

    def __post_init__(self) -> None:
        if not self.switches:
            raise UsageError("an ablation needs at least one switch: [switches.NAME]")
        if len(self.switches) > MOST_SWITCHES:
            raise UsageError(f"an ablation has at most {MOST_SWITCHES} switches, got {len(self.switches)}")
        for name, switch in self.switches.items():
            for key in ("requires", "exclusive"):
                for other in getattr(switch, key):
                    if other not in self.switches or other == name:
                        raise UsageError(
                            f"switches.{name}.{key}: {shown(other)} is no other switch"
                            f"{did_you_mean(str(other), [one for one in self.switches if one != name])}"
                        )
            if name in self.requirements(name):
                raise UsageError(f"switches.{name} requires itself, through {listed(switch.requires, 'and')}")
        for key, names in (("full", sorted(self.full)), ("judged", self.judged)):
            for name in names:
                if name not in self.switches:
                    raise UsageError(
                        f"{key}: unknown switch {shown(name)}{did_you_mean(name, self.switches)}"
                    )
        for name in self.judged:
            self.check_set(self.requirements(name) | {name}, f"switches.{name}")
        self.check_set(self.full, "the full set")
        for name in self.ordered(self.full):
            if missing := self.requirements(name) - self.full:
                raise UsageError(
                    f"the full set has {name} without {listed(self.ordered(missing), 'and')}, which it "
                    "requires"
                )

    def requirements(self, name: str) -> Set:
        """All switches that one requires, directly or through others."""
        found: set[str] = set()
        todo = list(self.switches[name].requires)
        while todo:
            if (other := todo.pop()) not in found:
                found.add(other)
                todo += self.switches[other].requires if other in self.switches else ()
        return frozenset(found)

    def dependents(self, name: str) -> Set:
        """The switches of the full set that require one, directly or through others."""
        return frozenset(other for other in self.full if name in self.requirements(other))

    def ordered(self, names: Iterable[str]) -> list[str]:
        """In the study's order, but each after those that it requires."""
        names, result = set(names), list[str]()

        def place(name: str) -> None:
            for other in self.switches:
                if other in names and other not in result and other in self.requirements(name):
                    place(other)
            result.append(name)

        for name in self.switches:
            if name in names and name not in result:
                place(name)
        return result

    def check_set(self, names: Set, where: str) -> None:
        """Raises UsageError if switches of the set exclude each other, or change the same key without one of
        them requiring the other, so that the order would decide."""
        ordered = self.ordered(names)
        for i, first in enumerate(ordered):
            for second in ordered[i + 1 :]:
                a, b = self.switches[first], self.switches[second]
                if second in a.exclusive or first in b.exclusive:
                    raise UsageError(
                        f"{where} has {first} and {second}, which exclude each other; name the switches of "
                        "the full set with full = [...]"
                    )
                if first in self.requirements(second):
                    continue  # the second is applied after the first, on purpose
                if key := _conflict(a, b):
                    raise UsageError(
                        f"{where}: {first} and {second} both change {key}, so their order would decide; let "
                        "one of them require the other, or make them exclusive and leave one out of "
                        "full = [...]"
                    )

    @cached_property
    def pairs(self) -> tuple[Pair, ...]:
        """All comparisons: of each judged switch alone, then removed if the full set has it."""
        result = []
        for name in self.judged:
            required = self.requirements(name)
            result.append(Pair(name, ALONE, required, required | {name}))
            if self.removes and name in self.full:
                having = self.full - self.dependents(name)
                result.append(Pair(name, REMOVED, having - {name}, having))
        return tuple(result)

    @cached_property
    def sets(self) -> dict[Set, tuple[str, str]]:
        """Every set of switches that is trained, with its role and the switch that it is for ("" if none)."""
        roles: dict[Set, tuple[str, str]] = {frozenset(): (BASELINE, ""), self.full: (FULL, "")}
        alone = {pair.having for pair in self.pairs if pair.role == ALONE}
        for pair in self.pairs:
            if pair.role == ALONE or pair.without not in alone:  # of two switches, a alone is full without b
                trained = pair.having if pair.role == ALONE else pair.without
                roles.setdefault(trained, (pair.role, pair.switch))
        for pair in self.pairs:
            roles.setdefault(pair.without, (WITH, pair.switch))
            roles.setdefault(pair.having, (WITH, pair.switch))
        return roles

    def name(self, names: Set) -> str:
        """'baseline', '+a', 'full', 'full -a': from whichever is closer, in the study's order."""
        if not names:
            return BASELINE
        if names == self.full:
            return FULL
        missing = self.full - names
        if self.from_full(names):
            return " ".join([FULL, *(f"-{name}" for name in self.ordered(missing))])
        return " ".join(f"+{name}" for name in self.ordered(names))

    def from_full(self, names: Set) -> bool:
        """Whether a set is a change of the full set, rather than of the baseline."""
        return names <= self.full and 2 * len(self.full - names) < len(self.full)

    def to_json(self) -> dict[str, Any]:
        return {
            "switches": {name: switch_json(switch) for name, switch in self.switches.items()},
            "full": self.ordered(self.full),
            "judged": list(self.judged),
            "removes": self.removes,
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Ablation:
        """The inverse of `to_json`. Raises UsageError, KeyError or TypeError for something else."""
        switches = {name: switch_of(name, table) for name, table in value["switches"].items()}
        return cls(switches, frozenset(value["full"]), tuple(value["judged"]), bool(value["removes"]))


def set_key(ablation: Ablation, names: Set) -> str:
    """A set as the cell of a table: 'a+b', or 'baseline' for the empty set."""
    return "+".join(ablation.ordered(names)) or BASELINE


def switch_of(name: str, table: Any, where: str = "") -> Switch:
    """A switch as a study's TOML declares it. where: the file, for messages. Raises UsageError."""
    at = f"{where}switches.{name}"
    if not NAME.fullmatch(name):
        raise UsageError(f"{where}switches: a name has lower-case letters, digits and _; got {shown(name)}")
    if not isinstance(table, Mapping):
        raise UsageError(f"{at} must be a table, got {shown(table)}")
    known = ("title", "class", "gain", "source", "set", "add", "requires", "exclusive", "rates", "own_rate")
    for key in table:
        if key not in known:
            raise UsageError(f"{at}: unknown key {key!r}{did_you_mean(key, known)}")
    for key in ("title", "class", "gain", "source"):
        if not isinstance(table.get(key, ""), str):
            raise UsageError(f"{at}.{key} must be a string, got {shown(table[key])}")
    kind = table.get("class", "")
    if kind not in CLASSES:
        raise UsageError(f"{at}.class is {shown(kind)}{did_you_mean(kind, CLASSES)}")
    changes, added = (flat(table.get(key, {}), f"{at}.{key}") for key in ("set", "add"))
    if not changes and not added:
        raise UsageError(f"{at} changes nothing; write set.section.key = value, or add.section.key = [part]")
    for key, parts in added.items():
        if not isinstance(parts, list) or not parts:
            raise UsageError(f"{at}.add.{key} must be a list of parts, got {shown(parts)}")
    others = {key: _names(table.get(key, []), f"{at}.{key}") for key in ("requires", "exclusive")}
    rates = rates_of(table.get("rates", []), f"{at}.rates")
    own = table.get("own_rate", kind == "optimizer")
    if not isinstance(own, bool):
        raise UsageError(f"{at}.own_rate must be true or false, got {shown(own)}")
    if rates and not own:
        raise UsageError(f"{at}.rates has no effect without own_rate = true")
    return Switch(
        name,
        table.get("title", "") or name.replace("_", " "),
        kind,
        table.get("gain", ""),
        table.get("source", ""),
        changes,
        added,
        others["requires"],
        others["exclusive"],
        rates,
        own,
    )


def switch_json(switch: Switch) -> dict[str, Any]:
    """The table that `switch_of` reads."""
    return {
        "title": switch.title,
        "class": switch.kind,
        "gain": switch.gain,
        "source": switch.source,
        "set": dict(switch.set),
        "add": {key: list(parts) for key, parts in switch.add.items()},
        "requires": list(switch.requires),
        "exclusive": list(switch.exclusive),
        "rates": list(switch.rates),
        "own_rate": switch.own_rate,
    }


def flat(table: Any, where: str) -> dict[str, Any]:
    """Nested tables as {'section.key': value}; a table with a name is a part, and stays whole."""
    if not isinstance(table, Mapping):
        raise UsageError(f"{where} must be a table of keys, got {shown(table)}")
    result: dict[str, Any] = {}
    for key, value in table.items():
        if isinstance(value, Mapping) and "name" not in value:
            below = flat(value, f"{where}.{key}")
            result |= {f"{key}.{inner}": deep for inner, deep in below.items()}
        else:
            result[str(key)] = value
    return result


def rates_of(value: Any, where: str) -> tuple[float, ...]:
    """Learning rates, rising. Raises UsageError."""
    if not isinstance(value, list) or not all(type(rate) in (int, float) and rate > 0 for rate in value):
        raise UsageError(f"{where} must be a list of learning rates above 0, got {shown(value)}")
    return tuple(sorted({float(rate) for rate in value}))


def _names(value: Any, where: str) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        raise UsageError(f"{where} must be a list of names of switches, got {shown(value)}")
    return tuple(value)


def _conflict(a: Switch, b: Switch) -> str:
    """A key that both switches change, or ""."""
    for key in a.set:
        for other in b.set:
            if overlap(key, other) and not (key == other and a.set[key] == b.set[other]):
                return min(key, other, key=len)
        for other in b.add:
            if overlap(key, other):
                return other
    for key, parts in a.add.items():
        for other in b.set:
            if overlap(key, other):
                return key
        for other in b.add:
            if key == other and {part_name(p) for p in parts} & {part_name(p) for p in b.add[other]}:
                return key
    return ""


def overlap(key: str, other: str) -> bool:
    """Whether one key is the other, or inside it: diffusion.objective and diffusion.objective.weight."""
    a, b = (name.removesuffix(".name").split(".") for name in (key, other))
    return a[: len(b)] == b[: len(a)]


def part_name(part: Any) -> Any:
    """The name of a part written as a word or a table."""
    return part.get("name") if isinstance(part, Mapping) else part
