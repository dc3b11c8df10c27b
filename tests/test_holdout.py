"""The share of each class that training does not see."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from scaledit.config import DataConfig
from scaledit.data.holdout import Sides, split
from scaledit.data.sources import Source, open_source
from scaledit.errors import UsageError


def source(sizes: list[int], reverse: bool = False) -> Source:
    rows = [(f"{k}/{i}.png", k) for k, size in enumerate(sizes) for i in range(size)]
    rows = rows[::-1] if reverse else rows
    names = [name for name, _ in rows]
    labels = np.array([label for _, label in rows], np.int64)
    classes = tuple(map(str, range(len(sizes))))
    return Source(Path("x"), "folder", classes, names, labels, lambda i: names[i].encode())


@given(st.lists(st.integers(1, 30), min_size=1, max_size=4), st.floats(0, 0.5, exclude_max=True))
def test_every_image_is_on_one_side_and_the_order_of_files_changes_nothing(sizes: list[int], share: float):
    training, held_out = split(source(sizes), share)
    again = split(source(sizes, reverse=True), share)
    assert sorted([*training.names, *held_out.names]) == sorted(source(sizes).names)
    assert set(held_out.names) == set(again.held_out.names)
    for half in (training, held_out):
        assert [half.read(i).decode() for i in range(len(half))] == list(half.names)
        assert [f"{label}/" for label in half.labels] == [name[:2] for name in half.names]
    counts = np.bincount(held_out.labels, minlength=len(sizes))
    assert counts.tolist() == [int(share * size + 0.5) for size in sizes]


@given(st.integers(5, 40), st.integers(1, 60))
def test_images_stay_where_they_were(before: int, added: int):
    first = split(source([before]), 0.2)
    sides = Sides(frozenset(first.training.names), frozenset(first.held_out.names))
    grown = split(source([before + added]), 0.2, sides)
    assert sides.training <= set(grown.training.names) and sides.held_out <= set(grown.held_out.names)
    assert len(grown.held_out) == min(int(0.2 * (before + added) + 0.5), len(first.held_out) + added)


def test_a_class_without_training_images_is_refused():
    with pytest.raises(UsageError, match="all 2 images of the class '1'"):
        split(source([10, 2]), 0.8)


def test_data_that_is_not_seen_is_held_out(tmp_path: Path):
    from scaledit import assemble

    for i in range(10):
        (tmp_path / "a").mkdir(exist_ok=True)
        Image.new("RGB", (8, 8), (20 * i, 0, 0)).save(tmp_path / "a" / f"{i}.png")
    config = DataConfig(name="images", path=str(tmp_path), image_size=8, holdout=0.2)
    training, held_out = assemble.dataset(config), assemble.held_out(config)
    reds = [
        {round(float(one.batch(np.array([i]), range(1), 0).x0[0, 0, 0, 0]), 3) for i in range(len(one))}
        for one in (training, held_out)
    ]
    assert (len(reds[0]), len(reds[1])) == (8, 2) and not reds[0] & reds[1]
    with pytest.raises(UsageError, match=r"data\.holdout is 0; set a share"):
        assemble.held_out(DataConfig(name="images", path=str(tmp_path), image_size=8))
    assert len(open_source(tmp_path)) == 10
    with pytest.raises(UsageError, match=r"data\.holdout is a key for images in files"):
        assemble.dataset(DataConfig(holdout=0.1))
