"""Parts: one definition is the recipe's word, the fields, the bounds and the documentation."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from scaledit import conditions, part
from scaledit.conditions.labels import Labels
from scaledit.errors import UsageError
from scaledit.part import Allowed, Part, field


class Knife(Part, kind="knife", home="test_part", needs=("cut",)):
    def cut(self) -> str:
        raise NotImplementedError


@dataclass(frozen=True)
class Blade(Knife, name="blade"):
    """Cuts. And more."""

    length: int = field(3, ge=1, le=9, doc="in cm")
    angle: float = field(0.5, gt=0, lt=1)

    def cut(self) -> str:
        return "cut"


@dataclass(frozen=True)
class Handle(Knife, name="handle"):
    """Holds another."""

    inside: Knife = Blade()
    length: int = field(4, ge=1)
    more: tuple[Knife, ...] = ()

    def cut(self) -> str:
        return self.inside.cut()


def made(value: object, **more: object) -> Knife:
    return part.build(Knife, value, "kitchen.knife", **more)  # pyright: ignore


def test_a_part_is_named_by_a_word_or_a_table_and_says_itself_whole():
    assert made("blade") == Blade() == made({"name": "blade"}) == made(Blade())
    nested = made({"name": "handle", "inside": {"name": "blade", "length": 5}, "more": ["blade"]})
    assert nested == Handle(Blade(5), more=(Blade(),))
    assert made(nested.to_json()) == nested
    assert nested.to_json()["inside"] == {"name": f"{__name__}:Blade", "length": 5, "angle": 0.5}
    assert made({"length": 7}, default=Blade(angle=0.25)) == Blade(7, 0.25)
    assert made({"inside": {"length": 7}}, default=Handle(Blade(2, 0.25))) == Handle(Blade(7, 0.25))


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (
            "blad",
            "kitchen.knife: unknown knife 'blad' (write MODULE:CLASS for one of your own); did you mean",
        ),
        ("blad", "; did you mean 'blade'?"),
        ({"name": "blade", "lenght": 3}, "kitchen.knife.lenght"),
        ({"name": "blade", "lenght": 3}, "did you mean 'length'?"),
        ({"name": "blade", "length": 0}, "kitchen.knife.length must be at least 1, got 0"),
        ({"name": "blade", "length": 1.5}, "kitchen.knife.length must be a whole number, got 1.5"),
        ({"name": "blade", "angle": float("nan")}, "kitchen.knife.angle must be finite"),
        ({"name": "blade", "angle": 1}, "kitchen.knife.angle must be below 1"),
        ({"name": "handle", "inside": {"name": "blade", "length": 99}}, "kitchen.knife.inside.length"),
        ({"name": 3}, "must name a knife"),
        (3, "must be the name of a knife"),
        ({"name": "json:JSONDecoder"}, "json:JSONDecoder is not a knife"),
        ({"name": "json:No"}, "json has no class No"),
        ({"name": "no_such_module_here:X"}, "cannot be found"),
        ({"name": "os:system('x')"}, "not the name of a class"),
    ],
)
def test_what_a_part_does_not_take_is_named(value: object, said: str):
    with pytest.raises(UsageError) as error:
        made(value)
    assert said in str(error.value)


def test_bounds_hold_for_callers_in_python_too():
    with pytest.raises(UsageError, match="length must be at most 9, got 10"):
        Blade(10)


def test_a_class_of_ones_own_is_found_in_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "my_knives_of_test.py").write_text(
        "from dataclasses import dataclass\nfrom test_part import Knife\nfrom scaledit.part import field\n"
        "@dataclass(frozen=True)\nclass Own(Knife, name='own'):\n    'Mine.'\n"
        "    length: int = field(1, ge=1)\n"
        "    def cut(self): return 'own'\n"
        "@dataclass(frozen=True)\nclass Blunt(Knife): pass\n"
        "class Soft(Knife):\n    def cut(self): return ''\n"
    )
    monkeypatch.chdir(tmp_path)
    own = made({"name": "my_knives_of_test:Own", "length": 2})
    assert own.cut() == "own"
    assert own.to_json() == {"name": "my_knives_of_test:Own", "length": 2}
    assert part.described(type(own)).summary == "Mine."
    with pytest.raises(UsageError, match="lacks the method cut"):
        made("my_knives_of_test:Blunt")
    with pytest.raises(UsageError, match="is not a frozen dataclass"):
        made("my_knives_of_test:Soft")
    nowhere = Allowed.only([], "config.json of hf://someone/model")
    with pytest.raises(UsageError, match="--allow-import my_knives_of_test"):
        made("my_knives_of_test:Own", allowed=nowhere)
    assert made("my_knives_of_test:Own", allowed=Allowed.only(["my_knives_of_test"], "x")).cut() == "own"
    assert str(tmp_path) not in sys.path


def test_a_foreign_name_is_not_imported_before_it_is_allowed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    canary = tmp_path / "ran"
    (tmp_path / "evil_knives.py").write_text(f"open({str(canary)!r}, 'w')")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError):
        made("evil_knives:X", allowed=Allowed.only(["other"], "a model"))
    assert not canary.exists() and "evil_knives" not in sys.modules


def test_a_part_in_the_place_of_another_keeps_what_both_have():
    assert part.switched(Knife, {"name": "blade", "length": 5, "angle": 0.1}, "handle") == {
        "name": "handle",
        "length": 5,
    }
    assert part.switched(Knife, "blade", "handle") == {"name": "handle"}


def test_parts_describe_themselves():
    blade, handle = part.describe(Knife)
    assert (blade.fields[0].doc, blade.fields[0].bounds, blade.fields[0].default) == (
        "in cm",
        "at least 1, at most 9",
        "3",
    )
    assert handle.fields[2].default == "[]"
    assert Blade(5).label().endswith("length 5")


def test_conditions_are_batches():
    labels = Labels(torch.tensor([3, 1, 2]), 10)
    assert len(labels) == 3
    assert labels.null().values.tolist() == [10, 10, 10]
    assert labels[1:].values.tolist() == [1, 2]
    assert labels[torch.tensor([2, 0])].describe() == [2, 3]
    both = conditions.cat([labels, labels.null()[:1]])
    assert both.describe() == [3, 1, 2, 10] and len(both) == 4
    kept = labels.where(torch.tensor([True, False, True]), labels.null())
    assert kept.describe() == [3, 10, 2]
    assert labels.repeat([2, 0, 1]).describe() == [3, 3, 2]


def test_listing_parts_loads_no_torch():
    modules = "scaledit.part, scaledit.conditions.labels, scaledit.diffusion"
    code = f"import sys, {modules}; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
