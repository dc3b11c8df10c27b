"""scaledit new: what it chooses for which images, the recipe that it writes, and the way to samples."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import pictures
from scaledit.autoencoders.config import AutoencoderRun
from scaledit.cli import main
from scaledit.config import RunConfig, check_guidance, load, override
from scaledit.data.holdout import split
from scaledit.data.sources import Source
from scaledit.errors import RunError, UsageError
from scaledit.newrun import header, plan, recipe, rules, stages
from scaledit.newrun.facts import Facts, look_at
from scaledit.newrun.plan import Places, Plan, Speeds
from scaledit.newrun.rules import Machine, Speed, Wish

GIB = 1 << 30
LAPTOP = Machine("cpu", 16 * GIB, 150e9)
GPU = Machine("cuda", 80 * GIB, 600e12, "bf16")
SECONDS = Speeds(Speed(0.15, 0.04), 0.1)


def facts(*counts: int, side: int = 400, name: str = "pictures", classes: str = "") -> Facts:
    names = classes.split() or [f"kind {i}" for i in range(len(counts))]
    sides = tuple(sorted(max(1, round(side * (1 + k / 10))) for k in range(-4, 5)))
    return Facts(Path(name), "folder", tuple(zip(names, counts, strict=True)), sides)


def made(
    some: Facts, machine: Machine = LAPTOP, wish: Wish | None = None, *overrides: str, out: str = "runs/x"
) -> Plan:
    wish, places = wish or Wish(), Places.of(Path(out))
    outline = plan.outlined(some, machine, wish, places, overrides)
    return plan.planned(some, wish, places, outline, SECONDS, overrides)


@pytest.mark.parametrize(
    ("images", "machine", "minutes", "side", "factor", "tokens"),
    [
        ("3 images in each class", LAPTOP, 15, 64, 4, 64),
        ("photographs", LAPTOP, 15, 64, 4, 64),
        ("photographs", LAPTOP, 45, 128, 8, 64),
        ("photographs", LAPTOP, 2, 32, 1, 64),
        ("photographs", LAPTOP, 600, 256, 8, 256),
        ("photographs", GPU, 30, 256, 8, 256),
        ("icons", LAPTOP, 30, 32, 1, 64),
        ("thumbnails of 8 pixels", LAPTOP, 30, 32, 1, 64),
        ("photographs", LAPTOP._replace(has_autoencoders=False), 30, 32, 1, 64),
    ],
)
def test_sizes_follow_from_images_machine_and_minutes(
    images: str, machine: Machine, minutes: float, side: int, factor: int, tokens: int
):
    sets = {
        "3 images in each class": facts(3, 3, 3),
        "photographs": facts(24, 24, 24, 24, side=4000),
        "icons": facts(2500, 2500, side=32),
        "thumbnails of 8 pixels": facts(100, side=8),
    }
    draft = rules.draft(sets[images], machine, Wish(minutes))
    model = made(sets[images], machine, Wish(minutes)).config.model
    assert (draft["data.image_size"].value, draft.factor, model.tokens) == (side, factor, tokens)


def test_more_compute_and_more_images_give_larger_models_and_memory_limits_the_batch():
    many = facts(500_000, 500_000)
    width = lambda some, machine: made(some, machine).config.model.hidden_size  # noqa: E731
    assert width(many, LAPTOP) < width(facts(40, 40), GPU) <= 384 < width(many, GPU)
    small = GPU._replace(memory=4 * GIB)
    assert made(many, small).config.train.batch_size < made(many, GPU).config.train.batch_size


def test_one_class_has_no_guidance_and_no_null_label():
    config = made(facts(300)).config
    assert config.model.class_dropout == 0 and not config.sample.guidance


@pytest.mark.parametrize(
    ("name", "classes", "flips"),
    [
        ("pets", "cat dog", True),
        ("mnist", "one two", False),
        ("my-digits", "even odd", False),
        ("scans", "0 1 2 10", False),
        ("scans", "a b c", False),
        ("hands", "left_hand right_hand", False),
        ("cars", "bmw i3 vw", True),
    ],
)
def test_images_whose_mirror_image_means_something_else_are_not_flipped(name: str, classes: str, flips: bool):
    some = facts(*[30] * len(classes.split()), name=name, classes=classes)
    choice = rules.flip(some)
    assert choice.value is flips and choice.why


@pytest.mark.parametrize(
    ("counts", "share", "said"),
    [
        ((3, 3), 0.0, "the model will repeat them"),
        ((24, 24), 0.1, "will mostly repeat them"),
        ((200, 300), 0.1, None),
        ((200, 5000), 0.1, "the largest class has 5,000"),
        ((500_000, 500_000), 0.005, None),
    ],
)
def test_too_few_images_are_said_and_not_held_out(counts: tuple[int, ...], share: float, said: str | None):
    some = facts(*counts)
    assert rules.holdout(some).value == share
    assert (said in " ".join(rules.too_little(some))) if said else not rules.too_little(some)


sets = st.builds(
    facts,
    *[st.integers(1, 400)] * 2,
    side=st.integers(8, 4000),
    name=st.sampled_from(["pictures", "mnist", "a # b", "\x1b[31m"]),
)
machines = st.builds(
    Machine,
    st.sampled_from(["cpu", "cuda", "mps"]),
    st.integers(GIB, 200 * GIB),
    st.floats(1e9, 1e15),
    st.sampled_from(["fp32", "bf16"]),
    st.booleans(),
)
wishes = st.builds(
    Wish,
    st.floats(1, 10_000),
    st.sampled_from([None, None, 8, 64, 128, 512]),
    st.sampled_from(["auto", "auto", "none", "f4", "f8", "f16"]),
)


@settings(max_examples=40, deadline=None)
@given(sets, machines, wishes, st.floats(1e-3, 1e3), st.floats(1e-5, 1e2))
def test_any_suggestion_is_a_valid_recipe_that_fits_the_images(
    tmp_path_factory: pytest.TempPathFactory,
    some: Facts,
    machine: Machine,
    wish: Wish,
    step: float,
    image: float,
):
    places = Places.of(Path("runs/x"))
    try:
        outline = plan.outlined(some, machine, wish, places)
    except UsageError as error:
        wished = wish.image_size is not None or wish.latents != "auto"
        assert wished and ("must be a multiple of" in str(error) or "needs an autoencoder" in str(error))
        return
    result = plan.planned(some, wish, places, outline, Speeds(Speed(step, image), step))
    model, autoencoder = header.texts(result, "scaledit new x", ("scaledit train x",))
    path = tmp_path_factory.getbasetemp() / "any.toml"
    path.write_text(model)
    config = load(str(path))
    assert config == recipe.config(RunConfig, "any", result.choices)
    assert header.request_of(path) == "scaledit new x"
    side = outline.draft["data.image_size"].value
    assert config.model.shape[1] * outline.draft.factor == side
    assert config.model.num_classes == len(some.classes)
    assert config.sample.every <= config.train.steps and config.checkpoint.every <= config.train.steps
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_guidance(config.model, config.diffusion.schedule, config.sample.guidance)
    share = outline.draft["data.holdout"].value
    parts = split(_source(some), share)
    assert len(parts.held_out) == rules.held_out(some, share)
    assert bool(share) == bool(len(parts.held_out)) == (config.evaluate.reference == "held-out")
    if outline.draft.factor > 1:
        path.write_text(autoencoder or "")
        run = load(str(path), kind=AutoencoderRun)
        assert (run.data.image_size, run.downsampling, run.model.channels) == (
            side,
            outline.draft.factor,
            config.model.in_channels,
        )
        assert (run.train.crop or side) <= side


def _source(some: Facts) -> Source:
    names = [f"{name}/{i}" for name, count in some.classes for i in range(count)]
    labels = np.repeat(np.arange(len(some.classes)), [count for _, count in some.classes])
    return Source(Path("x"), "folder", tuple(n for n, _ in some.classes), names, labels, lambda _: b"")


@settings(max_examples=30, deadline=None)
@given(st.floats(2, 600), st.floats(1e-3, 10), st.floats(1e-4, 0.1))
def test_the_plan_keeps_within_the_minutes(minutes: float, step: float, image: float):
    """Unless they do not suffice for the least that is useful, which is said."""
    some, wish, places = facts(50, 50), Wish(minutes), Places.of(Path("runs/x"))
    outline = plan.outlined(some, LAPTOP, wish, places)
    result = plan.planned(some, wish, places, outline, Speeds(Speed(step, image), step), spent=20.0)
    said = dict(plan.rows(result))["time"]
    assert result.minutes <= minutes or "more than you allow" in said
    if result.config.train.steps > rules.FEWEST_STEPS:
        assert result.minutes <= 1.05 * minutes
    first = result.config.sample.every // rules.EARLY
    assert first * step <= 1.1 * rules.FIRST_GRID or first <= 1


def test_a_size_that_turns_out_too_slow_gives_way_to_a_smaller_one(monkeypatch: pytest.MonkeyPatch):
    tried: list[int] = []

    def measured(_: Facts, outline: plan.Outline, *__: object) -> Speeds:
        tried.append(outline.draft["data.image_size"].value)
        return Speeds(Speed(2.0, 0.5), 1.0)

    monkeypatch.setattr(plan, "measured", measured)
    said: list[str] = []
    places, some = Places.of(Path("runs/x")), facts(50, 50)
    result = plan.made(some, LAPTOP, Wish(45), places, (), "cpu", lambda: 9.0, said.append)
    assert tried == [128, 64] and len(said) == 1
    assert "larger ones need more than 45 minutes" in result.draft["data.image_size"].why
    tried.clear()
    asked = plan.made(some, LAPTOP, Wish(45, 128), places, (), "cpu", lambda: 9.0, said.append)
    assert tried == [128] and asked.config.model.input_size == 16


def test_values_given_on_the_command_line_win_and_are_marked(tmp_path: Path):
    result = made(
        facts(50, 50), LAPTOP, Wish(15), "sample.sampler.steps=5", "train.steps=70", "data.flip=false"
    )
    config = result.config
    assert config.sample.sampler.steps == 5 and config.train.steps == 70 and not config.data.flip
    assert result.autoencoder_config is not None and not result.autoencoder_config.data.flip
    text, _ = header.texts(result, "x", ())
    (tmp_path / "x.toml").write_text(text)
    assert load(str(tmp_path / "x.toml")) == config
    assert f"steps = 70  # {recipe.GIVEN}" in text
    for key in ("data.image_size=64", "model.num_classes=3"):
        with pytest.raises(UsageError, match="follows from"):
            made(facts(50, 50), LAPTOP, Wish(15), key)


def new(*words: str) -> int:
    return main(["new", *words])


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("nothing", "does not exist"),
        ("empty", "contains no images"),
        ("cat.png", "is not a set of images"),
        ("run", "is the folder of a run, not of images"),
        ("mine.toml", "is a recipe; train it with: scaledit train"),
        ("latents", "holds encoded images"),
        ("damaged", "2 images in damaged cannot be used: "),
    ],
)
def test_what_is_not_a_folder_of_images_is_refused_in_one_sentence(
    path: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(tmp_path)
    for name in ("empty", "run", "latents"):
        Path(name).mkdir()
    for name in ("run/config.json", "run/log.jsonl", "latents/index.json", "latents/0.safetensors"):
        Path(name).write_text("{}")
    Path("mine.toml").write_text('extends = "digits"\n')
    Image.new("RGB", (9, 9)).save("cat.png")
    pictures.tree(Path("damaged"))
    for broken in sorted(Path("damaged").rglob("*.png"))[:2]:
        broken.write_bytes(broken.read_bytes()[:80])
    assert new(path) in (1, 2)
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1 and not Path("runs").exists()


def test_folders_in_folders_gray_transparent_and_cmyk_images_are_read_and_said(tmp_path: Path):
    for i, mode in enumerate(["RGB", "L", "RGBA", "CMYK", "P"]):
        folder = tmp_path / "set" / "train" / "a" / f"shoot{i % 2}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.new(mode, (20 + i, 30)).save(folder / f"{i}.{'jpg' if mode == 'CMYK' else 'png'}")
        (tmp_path / "set" / "train" / "b").mkdir(exist_ok=True)
        Image.new(mode, (40, 30)).save(tmp_path / f"set/train/b/{i}.{'tif' if mode == 'CMYK' else 'png'}")
    some = look_at(tmp_path / "set")
    assert some.classes == (("a", 5), ("b", 5)) and some.sides[0] == 20
    assert any("one class" in remark for remark in some.remarks)
    assert any("alpha channel" in line for line in some.changes(16))
    assert any("would be enlarged" in line for line in some.changes(64))


def test_every_kind_of_set_gives_the_same_choices(tmp_path: Path):
    found = {name: look_at(write(tmp_path)) for name, write in pictures.LAYOUTS.items()}
    assert len({(some.classes, some.sides) for some in found.values()}) == 1


def test_large_sets_are_looked_at_in_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("scaledit.newrun.facts.MOST_DECODED", 5)
    monkeypatch.setattr("scaledit.newrun.facts.MOST_LOOKED_AT", 7)
    some = look_at(pictures.tree(tmp_path / "set"))
    assert not some.decoded and len(some.sides) == 7 and "looked at 7 of them" in some.in_words()


QUICK = ("train.steps=6", "model.hidden_size=16", "model.num_heads=2", "model.depth=1", "sample.per_class=2")


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with three images in each of three classes. Speeds are measured on as few steps as possible,
    and nothing is trained for long."""
    monkeypatch.chdir(tmp_path)
    pictures.tree(tmp_path / "pictures")
    for image in sorted((tmp_path / "pictures").rglob("*.*"))[::4]:
        image.unlink()
    monkeypatch.setattr("scaledit.newrun.timing.LONGEST", 0.0)
    monkeypatch.setattr(rules, "AUTOENCODER_SHARE", 0.0)
    monkeypatch.setattr(rules, "FEWEST_STEPS", 4)
    return tmp_path


@pytest.mark.slow
def test_a_recipe_is_written_once_and_only_for_one_command(
    workplace: Path, capsys: pytest.CaptureFixture[str]
):
    assert new("pictures", "--latents", "none", "--image-size", "16", "--json", *QUICK) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["classes"] == dict.fromkeys(pictures.CLASSES, 3)
    assert any("3 images in a class: the model will repeat them" in note for note in result["notes"])
    config = load(result["recipe"])
    assert override("train.steps", config.train.steps) == "train.steps=6"
    for words, said in (
        (["pictures", "--latents", "none", "--image-size", "16", *QUICK], "exists already; add --run"),
        (["pictures", "--minutes", "3", "--run"], "was written by another command"),
    ):
        assert new(*words) == 2 and said in capsys.readouterr().err
    Path("runs/other").mkdir()
    Path("runs/other/file").touch()
    assert new("pictures", "--out", "runs/other") == 2
    assert "runs/other exists, but its recipe" in capsys.readouterr().err


@pytest.mark.slow
def test_from_three_images_in_a_class_to_samples_resumed_between_the_stages(
    workplace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    words = ("pictures", "--out", "runs/own", "--image-size", "32", "--latents", "f4", "--run", *QUICK)
    run, ran = stages.run, []

    def killed_after_the_first(stage: stages.Stage, *args: object, **kwargs: object) -> stages.Ended:
        ran.append(stage.name)
        ended = run(stage, *args, **kwargs)  # pyright: ignore[reportArgumentType]
        if len(ran) == 1:
            raise RunError("killed")
        return ended

    monkeypatch.setattr(stages, "run", killed_after_the_first)
    assert new(*words) == 1 and ran == ["autoencoder"]
    capsys.readouterr()
    assert new(*words) == 0 and ran == ["autoencoder", "encoding", "training"]
    said = capsys.readouterr()
    assert "resuming with encoding" in said.err and "scaledit train runs/own --until 12" in said.out
    for file in ("beside-real.png", "report.html", "config.json"):
        assert (workplace / "runs/own" / file).is_file()
    assert new(*words, "--json") == 0 and len(ran) == 3
    assert json.loads(capsys.readouterr().out)["samples"] == "runs/own/beside-real.png"
