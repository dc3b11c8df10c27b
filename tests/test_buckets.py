"""Mixed sizes: which bucket a batch has, which images it holds, training on them, and encoding them."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from scaledit.autoencoders.encoded import EncodedImages
from scaledit.autoencoders.pixels import Pixels
from scaledit.cli import main
from scaledit.config import RunConfig
from scaledit.data.buckets import ROUND, bucketed, nearest
from scaledit.data.decode import crop
from scaledit.data.files import ImageFiles
from scaledit.data.latent_buckets import BucketLatents
from scaledit.data.sets import Batch, Images
from scaledit.data.sources import open_source
from scaledit.errors import UsageError
from scaledit.models import flops
from scaledit.training.dit import train
from scaledit.training.events import Stepped
from scaledit.training.ranks import Ranks
from scaledit.training.state import Mixed, Reader, TrainState
from tiny import tiny

SIZES = ((8, 8), (8, 16), (12, 8))
TIMES = -1
"""The column of a step's table that holds the drawn times."""
BUCKETS = 'data.buckets=["8x8", "8x16", "12x8"]'


@dataclass(frozen=True)
class Ramps:
    """Gray ramps, known at every size; image i has the class i mod 10."""

    n: int = 37
    height: int = 8
    width: int = 8
    class_names = tuple("0123456789")

    def __len__(self) -> int:
        return self.n

    @property
    def shape(self) -> tuple[int, int, int]:
        return 1, self.height, self.width

    def at(self, height: int, width: int) -> Ramps:
        return replace(self, height=height, width=width)

    def members(self, sizes: Sequence[tuple[int, int]]) -> None:
        return None

    def batch(self, indices: np.ndarray, positions: range, seed: int) -> Batch:
        rows = torch.linspace(-1, 1, self.height)[:, None] * torch.linspace(0, 1, self.width)
        numbers = torch.from_numpy(indices)
        return Batch((numbers / self.n - 0.5)[:, None, None, None] * rows, numbers % 10)


@dataclass(frozen=True)
class OwnRamps(Ramps):
    """Each image has an aspect ratio of its own."""

    def members(self, sizes: Sequence[tuple[int, int]]) -> list[np.ndarray]:  # type: ignore[override]
        return nearest(np.log([(1, 2, 0.6)[i % 3] for i in range(self.n)]), sizes)


def rotary(*overrides: str) -> RunConfig:
    return tiny("model.position=rotary", BUCKETS, *overrides)


# Which batch has which bucket and which images.


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 3), st.integers(0, 10_000), st.integers(1, 20), st.data())
def test_ranks_share_a_batch_of_one_bucket(seed: int, batch: int, size: int, data):
    cuts = sorted(data.draw(st.lists(st.integers(0, size), max_size=3)))
    for dataset in (Ramps(), OwnRamps()):
        buckets = bucketed(dataset, SIZES)
        whole = buckets.drawn(range(batch * size, (batch + 1) * size), 0, size, seed)
        parts = [
            buckets.drawn(range(batch * size + a, batch * size + b), a, size, seed)
            for a, b in zip([0, *cuts], [*cuts, size], strict=True)
            if a < b
        ]
        assert {part.bucket for part in parts} == {whole.bucket}
        assert np.concatenate([part.indices for part in parts]).tolist() == whole.indices.tolist()


@pytest.mark.parametrize("dataset", [Ramps(), OwnRamps()])
def test_a_round_holds_each_bucket_by_its_share_and_an_epoch_each_image_once(dataset: Ramps):
    buckets, size = bucketed(dataset, SIZES), 5
    length = sum(buckets.counts)
    assert length == ROUND * len(SIZES)
    seen = [buckets.bucket(batch, 0) for batch in range(2 * length)]
    chosen = [bucket for bucket, _ in seen]
    for first in (0, length):
        assert Counter(chosen[first : first + length]) == dict(enumerate(buckets.counts))
    assert chosen[:length] != chosen[length:] != [buckets.bucket(b, 1)[0] for b in range(length)]
    for bucket in range(len(SIZES)):
        assert [n for b, n in seen if b == bucket] == list(range(2 * buckets.counts[bucket]))
    streams: dict[int, list[int]] = {}
    for batch in range(2 * length):
        bucket, indices = buckets.drawn(range(batch * size, (batch + 1) * size), 0, size, 0)
        streams.setdefault(bucket if buckets.members else 0, []).extend(indices.tolist())
    for bucket, stream in streams.items():
        members = set(range(37)) if buckets.members is None else set(buckets.members[bucket].tolist())
        n = len(members)
        for epoch in range(len(stream) // n):
            assert set(stream[epoch * n : (epoch + 1) * n]) == members
    assert len({tuple(stream[:12]) for stream in streams.values()}) == len(streams)


def test_images_belong_to_the_nearest_ratios_and_count_once():
    sizes = ((8, 8), (16, 16), (8, 16), (16, 8))
    ratios = np.log([1.0, 1.3, 1.5, 3.0, 0.3, np.nan])
    members = nearest(ratios, sizes)
    assert [m.tolist() for m in members] == [[0, 1, 5], [0, 1, 5], [2, 3], [4]]
    assert np.log(1.3) < np.log(2) / 2 < np.log(1.5)  # the middle between 1 and 2

    class Six(OwnRamps):
        def members(self, sizes: Sequence[tuple[int, int]]) -> list[np.ndarray]:  # type: ignore[override]
            return nearest(ratios, sizes)

    counts = np.array(bucketed(Six(6), sizes).counts)
    assert counts.sum() == 4 * ROUND
    assert counts.tolist() == [64, 64, 85, 43]  # 3/12, 3/12, 2/6, 1/6 of 256


# Training.


def losses(config: RunConfig, out: Path, until: int, dataset: Ramps, resume: str = "never") -> list[float]:
    config = replace(config, train=replace(config.train, steps=until))
    events = train(config, out, dataset=dataset, device="cpu", resume=resume)  # type: ignore[arg-type]
    return [event.loss for event in events if isinstance(event, Stepped)]


@pytest.mark.parametrize("dataset", [Ramps(), OwnRamps()])
def test_resuming_changes_nothing(dataset: Ramps, tmp_path: Path):
    config = rotary("checkpoint.every=3", "train.batch_size=6")
    through = losses(config, tmp_path / "through", 6, dataset)
    assert len(set(through)) == 6
    losses(config, tmp_path / "halves", 3, dataset)
    again = losses(config, tmp_path / "halves", 6, dataset, resume="auto")
    assert again == through[3:]
    state = TrainState.create(config, dataset, Ranks(torch.device("cpu")))
    seen: list[torch.Size] = []
    state.net.register_forward_pre_hook(lambda _, args: seen.append(args[0].shape))
    assert [state.train_step().loss for _ in range(3)] == through[:3]
    assert state.mixed is not None
    for step, shape in enumerate(seen[-3:]):
        bucket, indices = state.mixed.drawn(range(6 * step, 6 * step + 6), 0)
        assert shape == (6, 1, *SIZES[bucket])
        assert state.indices(step).tolist() == indices.tolist()


def test_micro_batches_and_ranks_see_the_same_batch():
    config, ranks = rotary("train.batch_size=6"), Ranks(torch.device("cpu"))
    one, three = (
        TrainState.create(replace(config, train=replace(config.train, accumulate=n)), Ramps(), ranks)
        for n in (1, 3)
    )
    for _ in range(3):
        a, b = one.train_step(), three.train_step()
        assert a.loss == pytest.approx(b.loss, rel=1e-6)
    mixed = one.mixed
    assert mixed is not None
    for step in range(4):
        positions = range(6 * step, 6 * step + 6)
        whole = Reader(Ramps(), 0, (1, 8, 8), {"u": "normal"}, mixed=mixed)(positions)
        assert whole.draws.eps.shape == whole.named["u"].shape == whole.batch.x0.shape
        for partners in (False, True):  # the second half then begins in the middle of a pair
            halves = [
                Reader(Ramps(), 0, (1, 8, 8), {"u": "normal"}, partners, replace(mixed, offset=offset))(
                    positions[offset : offset + 3]
                )
                for offset in (0, 3)
            ]
            before = (0, int(partners))  # a partner that is read ahead of the first
            for name in ("x0", "y"):
                read = [getattr(half.batch, name) for half in halves]
                own = [rows[first : first + 3] for rows, first in zip(read, before, strict=True)]
                assert torch.equal(torch.cat(own), getattr(whole.batch, name))
            own = [half.draws.eps[first : first + 3] for half, first in zip(halves, before, strict=True)]
            assert torch.equal(torch.cat(own), whole.draws.eps)


def test_times_are_shifted_for_the_size_of_each_batch():
    """With s = sqrt(H W / 4096): 1 for the smaller size, 2 for the larger one."""
    sizes = 'data.buckets=["16x16", "128x128"]'
    how = (
        "model.position=rotary",
        "model.patch_size=8",
        sizes,
        "diffusion.times=shifted",
        "train.batch_size=2",
    )
    plain, auto = (
        TrainState.create(tiny(*how, f"diffusion.times.shift={shift}"), Ramps(), Ranks(torch.device("cpu")))
        for shift in ("1.0", "auto")
    )
    seen = set()
    for _ in range(6):
        u, t = (state.train_step().table[:, TIMES] for state in (plain, auto))
        s = 1 if torch.equal(t, u) else 2
        torch.testing.assert_close(t, s * u / (1 + (s - 1) * u))
        seen.add(s)
    assert seen == {1, 2}


def test_the_work_of_a_step_is_that_of_its_sizes():
    config = rotary()
    mixed = Mixed.of(config, Ramps(), Ranks(torch.device("cpu")))
    assert mixed is not None and mixed.largest.shape == (1, 8, 16)
    each = [flops.count(config.model.at(*size)).macs for size in SIZES]
    assert mixed.macs == round(sum(each) / 3)
    assert Mixed.of(tiny(), Ramps(), Ranks(torch.device("cpu"))) is None


# Images in files, and their latents.


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve pictures of two classes and three shapes: 40x20, 20x40 (width x height) and 32x32."""
    folder, rng = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    for i in range(12):
        width, height = ((40, 20), (20, 40), (32, 32))[i % 3]
        path = folder / "ab"[i % 2] / f"{i:02d}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(path)
    return folder


SHAPES = ((8, 16), (16, 8), (8, 8), (12, 12))


def test_a_crop_of_any_shape_shows_the_center(pictures: Path):
    image = Image.open(pictures / "a" / "00.png")
    assert np.array_equal(crop(image, 12, 12), crop(image, 12))
    wide = crop(image, 10, 20)
    assert np.array_equal(wide, np.asarray(image.resize((20, 10), Image.Resampling.BOX)))
    tall = np.asarray(image.resize((24, 12), Image.Resampling.BICUBIC))[:, 8:16]
    assert np.array_equal(crop(image, 12, 8), tall)
    assert crop(Image.new("RGB", (4000, 2)), 8, 16).shape == (8, 16, 3)


def test_files_are_cropped_to_the_bucket_nearest_to_their_shape(pictures: Path):
    files = ImageFiles(open_source(pictures), 8)
    buckets = bucketed(files, SHAPES)
    assert buckets.members is not None
    shapes = [Image.open(pictures / name).size for name in files.names]
    for size, members in zip(SHAPES, buckets.members, strict=True):
        wanted = {1: (32, 32), 2: (40, 20), 0.5: (20, 40)}[size[1] / size[0]]
        assert [i for i, shape in enumerate(shapes) if shape == wanted] == members.tolist()
    assert buckets.counts[0] == buckets.counts[1] == 2 * buckets.counts[2] == 2 * buckets.counts[3] or (
        abs(buckets.counts[0] - 2 * buckets.counts[2]) <= 2
    )
    x0, y = buckets.sets[0].batch(buckets.members[0], range(4), 0)
    assert x0.shape == (4, 3, 8, 16)
    for one, label, i in zip(x0, y, buckets.members[0], strict=True):
        pixels = crop(Image.open(pictures / files.names[i]), 8, 16)
        assert torch.equal(one, torch.tensor(pixels).permute(2, 0, 1).float() / 127.5 - 1)
        assert files.class_names[label] == files.names[i][0]


def test_latents_of_several_sizes_are_those_of_the_images(pictures: Path, tmp_path: Path, capsys):
    out = tmp_path / "latents"
    words = ["encode", str(pictures), "--buckets", "8x16,16x8,8x8,12x12", "--autoencoder", "pixels"]
    words += ["--out", str(out), "--dtype", "float32", "--quiet", "--json"]
    assert main(words) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["complete"] and [one["images"] for one in said["buckets"]] == [4, 4, 4, 4]
    assert main(words) == 0  # nothing is left to do
    latents = BucketLatents.opened(out, flip=True)
    files = ImageFiles(open_source(pictures), 8, flip=True)
    sets, direct = bucketed(latents, SHAPES), bucketed(files, SHAPES)
    assert len(latents) == 16 and sets.counts == direct.counts
    assert list(latents.verify())[-1][0] == list(latents.verify())[-1][1]
    for bucket in range(len(SHAPES)):
        assert sets.members is not None and direct.members is not None
        a = sets.sets[bucket].batch(sets.members[bucket], range(4), 7)
        encoded = EncodedImages(direct.sets[bucket], Pixels())
        b = encoded.batch(direct.members[bucket], range(4), 7)
        assert torch.allclose(a.x0, b.x0, atol=1e-6) and torch.equal(a.y, b.y)
    config = tiny(
        "model.position=rotary", "data.name=latents", f"data.path={out}", "model.num_classes=2",
        'data.buckets=["8x16", "8x8"]', "model.in_channels=3", "train.steps=3", "train.batch_size=4",
    )  # fmt: skip
    found = [
        [e.loss for e in train(one, tmp_path / f"run{k}", device="cpu") if isinstance(e, Stepped)]
        for k, one in enumerate((config, replace(config, data=replace(config.data, workers=2))))
    ]
    assert len(set(found[0])) == 3 and found[0] == found[1]
    capsys.readouterr()
    assert main([*words[:3], "8x8", *words[4:]]) == 2
    assert "holds the sizes 8x16, 16x8, 8x8, 12x12" in capsys.readouterr().err
    with pytest.raises(UsageError, match=r'several sizes; set data.buckets=\["8x16", "16x8"'):
        list(train(replace(config, data=replace(config.data, buckets=())), tmp_path / "other", device="cpu"))
    with pytest.raises(UsageError, match=r"no latents of 24x24; it has 8x16, 16x8, 8x8, 12x12"):
        latents.at(24, 24)


# Bad input.


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (['data.buckets=["8"]'], r'must list sizes such as "32x48" \(height x width in pixels\), got \'8\''),
        (['data.buckets=["8x0"]'], "both sides must be at least 1"),
        (['data.buckets=["8x8", "8x8"]'], "has the size 8x8 twice"),
        (['data.buckets=["8x10"]'], r"has 8x10, but both sides must be multiples of 4.*; use 8x8$"),
        (
            ['data.buckets=["8x16"]', 'model.position={name="relative_bias", scaling="clamp"}'],
            r"offsets on 2x4 patches exceed the learned bias.*; set model\.position\.span=\[2, 4\]",
        ),
    ],
)
def test_bad_buckets_are_refused_in_a_recipe(overrides: list[str], said: str):
    with pytest.raises(UsageError, match=said):
        tiny(*overrides)


def test_buckets_without_images_are_refused(pictures: Path, tmp_path: Path):
    files = ImageFiles(open_source(pictures), 8)
    with pytest.raises(UsageError, match="has 8x64, but no image has an aspect ratio that is nearest to it"):
        bucketed(files, ((8, 8), (8, 64), (8, 16)))
    images = Images(torch.zeros(4, 1, 8, 8), torch.zeros(4, dtype=torch.int64), ("a",))
    with pytest.raises(UsageError, match=r"needs images that can be had at several sizes"):
        bucketed(images, SIZES)
    with pytest.raises(UsageError, match=r"needs images that can be had at several sizes"):
        list(train(tiny(BUCKETS), tmp_path / "run", device="cpu"))
    assert not (tmp_path / "run").exists()


def test_configs_without_buckets_are_what_they_were():
    assert "buckets" not in tiny().to_json()["data"]
    config = rotary()
    assert RunConfig.from_json(json.loads(json.dumps(config.to_json()))) == config
    assert config.to_json()["data"]["buckets"] == ["8x8", "8x16", "12x8"]
