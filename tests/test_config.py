"""What a run is: recipes, overrides, what is refused and with which hint, what a resumed run may change."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scaledit import config
from scaledit.config import RunConfig, differences
from scaledit.errors import UsageError

examples = settings(max_examples=60, deadline=None, derandomize=True, database=None)


@pytest.fixture
def recipe(tmp_path: Path) -> Callable[[str, str], str]:
    """Writes a recipe and gives its path."""

    def write(name: str, text: str) -> str:
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        return str(path)

    return write


@pytest.mark.parametrize("name", config.recipe_names())
def test_every_recipe_loads_and_survives_json(name: str):
    run = config.load(name)
    assert run.name == name
    assert RunConfig.from_json(json.loads(json.dumps(run.to_json()))) == run


@examples
@given(
    st.fixed_dictionaries(
        {},
        optional={
            "model.input_size": st.sampled_from([[8, 4], [2, 6], 12]),
            "model.mlp_ratio": st.sampled_from([2, 2.5]),
            "model.conditioning": st.sampled_from(["adaln", "in_context"]),
            "diffusion.objective": st.sampled_from(["simple", "hybrid"]),
            "data.flip": st.booleans(),
            "data.path": st.text("abc/ é_-", max_size=5),
            "optimizer.learning_rate": st.floats(0, 1) | st.integers(0, 3),
            "optimizer.betas": st.lists(st.floats(0, 0.99), min_size=2, max_size=2),
            "train.seed": st.integers(0, 2**63),
            "train.precision": st.sampled_from(["bf16", "fp32"]),
            "sample.cfg_channels": st.sampled_from(["3", "all"]),
        },
    )
)
def test_what_is_overridden_is_what_the_run_has_and_what_json_gives_back(changes: dict[str, object]):
    run = config.load("digits", [f"{key}={json.dumps(value)}" for key, value in changes.items()])
    again = RunConfig.from_json(json.loads(json.dumps(run.to_json())))
    assert again == run
    assert differences(run, again) == []
    plain, before = config.flatten(run.to_json()), config.flatten(config.load("digits").to_json())
    assert type(run.optimizer.learning_rate) is type(run.model.mlp_ratio) is float
    learned = "model.learn_sigma"
    assert plain[learned] == (run.diffusion.objective == "hybrid")
    for key in plain.keys() - {learned}:
        assert plain[key] == changes.get(key, before[key])


def test_the_last_override_wins_and_bare_words_are_strings():
    overrides = ["train.steps=5", "train.steps= 7", "data.path=/some/where", "sample.cfg_channels=3"]
    run = config.load("digits", [*overrides, "diffusion.times=uniform", "model.conditioning=adaln"])
    assert (run.train.steps, run.data.path, run.sample.cfg_channels) == (7, "/some/where", "3")
    assert (run.diffusion.times, run.model.conditioning) == ("uniform", "adaln")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("trian.steps=3", "unknown section 'trian'; did you mean 'train'?"),
        ("train.step=3", "unknown key 'train.step'; did you mean 'train.steps'?"),
        ("model.hiden_size=32", "unknown key 'model.hiden_size'; did you mean 'model.hidden_size'?"),
        ("diffusion.schedule=flwo", "diffusion.schedule is 'flwo'; did you mean 'flow'?"),
        ("sample.sampler=dpmm", "sample.sampler is 'dpmm'; did you mean 'dpm'?"),
        ("model.conditioning=adalnzero", "unknown block 'adalnzero'; did you mean 'adaln_zero'?"),
        ("train.steps=abc", "train.steps must be a whole number, got 'abc'"),
        ("train.steps=1.5", "train.steps must be a whole number, got 1.5"),
        ("train.steps=true", "train.steps must be a whole number, got True"),
        ("train.steps=0", "train.steps must be at least 1, got 0"),
        ("train.steps=", "train.steps must be a whole number, got ''"),
        ("optimizer.learning_rate=fast", "optimizer.learning_rate must be a number, got 'fast'"),
        ("optimizer.learning_rate=true", "optimizer.learning_rate must be a number, got True"),
        ("optimizer.learning_rate=nan", "optimizer.learning_rate must be at least 0, got nan"),
        ("optimizer.betas=[0.9]", "optimizer.betas must be a list of 2 values, got [0.9]"),
        ("optimizer.betas=[0.9, 1.0]", "optimizer.betas must lie in [0, 1), got [0.9, 1.0]"),
        ("data.flip=1", "data.flip must be true or false, got 1"),
        ("data.path=3", "data.path must be a string, got 3"),
        ("ema.decay=1", "ema.decay must lie in [0, 1), got 1.0"),
        ("model.input_size=[8, 8, 8]", "model.input_size cannot be [8, 8, 8]"),
        ("model.input_size=eight", "model.input_size cannot be 'eight'"),
        ("model.patch_size=3", "model.patch_size 3 does not divide the input size 8x8"),
        ("model.num_heads=5", "model.num_heads 5 does not divide model.hidden_size 96"),
        ("model.image_size=256", "model.image_size goes with model.name"),
        ("model.mlp_ratio=nan", "model.mlp_ratio nan leaves the MLP without a hidden unit"),
        ("model.mlp_ratio=0.001", "model.mlp_ratio 0.001 leaves the MLP without a hidden unit"),
        ("optimizer.learning_rate=inf", "optimizer.learning_rate must be finite, got inf"),
        ("sample.cfg_scale=nan", "sample.cfg_scale must be finite, got nan"),
        ("train.steps = 7", "without spaces or line breaks; got 'train.steps = 7'"),
        ("train.steps=7\nx=2", "without spaces or line breaks"),
        ("train.accumulate=5", "train.accumulate 5 does not divide train.batch_size 64"),
        ("model.learn_sigma=true", 'model.learn_sigma=true does not fit diffusion.objective="simple"'),
        ("train.steps", "an override is section.key=value, as in train.steps=100; got 'train.steps'"),
        ("steps=3", "an override is section.key=value, as in train.steps=100; got 'steps=3'"),
    ],
)
def test_a_wrong_override_is_refused_by_name(override: str, message: str):
    with pytest.raises(UsageError) as refused:
        config.load("digits", [override])
    assert message in str(refused.value)


def test_settings_that_contradict_each_other_are_refused():
    with pytest.raises(UsageError, match=r'learn_sigma=false does not fit diffusion\.objective="hybrid"'):
        config.load("digits", ["diffusion.objective=hybrid", "model.learn_sigma=false"])
    config.load("digits", ["sample.steps=200"])  # the flow has as many steps as one likes
    with pytest.raises(UsageError, match=r"sample.steps 200 exceeds .* diffusion.steps 100"):
        config.load("digits", ["sample.steps=200", "diffusion.steps=100", "diffusion.schedule=linear"])


def test_an_unknown_recipe_is_refused_with_the_nearest_name(tmp_path: Path):
    with pytest.raises(UsageError, match="unknown recipe 'digit'; did you mean 'digits'"):
        config.load("digit")
    with pytest.raises(UsageError, match=r"no recipe file .*nothing\.toml"):
        config.load(str(tmp_path / "nothing.toml"))


def test_a_recipe_file_extends_another_key_by_key(recipe: Callable[[str, str], str]):
    middle = recipe("middle.toml", 'extends = "digits"\n[train]\nsteps = 7\nseed = 3\n[model]\ndepth = 2\n')
    path = recipe("mine.toml", f'extends = "{middle}"\n[train]\nsteps = 9\n')
    run = config.load(path, ["train.log_every=2"])
    expected = ["train.steps=9", "train.seed=3", "model.depth=2", "train.log_every=2"]
    assert run.name == "mine"
    assert replace(run, name="digits") == config.load("digits", expected)
    assert config.load("digits").train.steps != 9  # the recipe extended is as it was


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[train\n", "mine.toml is not valid TOML"),
        ('extends = "digitz"\n', "unknown recipe 'digitz'; did you mean 'digits'?"),
        ('extends = "digits"\n[trian]\nsteps = 3\n', "unknown section 'trian'; did you mean 'train'?"),
        ('extends = "digits"\n[train]\nstep = 3\n', "unknown key 'train.step'; did you mean 'train.steps'?"),
        ('extends = "digits"\ntrain = 3\n', "train must be a section, [train] with keys below it"),
        ('extends = "digits"\nmodel = 3\n', "model must be a section"),
        ("extends = 3\n", "extends must be a recipe's name or path, got 3"),
        ('extends = "./mine.toml"\n', "recipes extend each other in a circle"),
        ("[model]\ndepth = 2\npatch_size = 2\n", "[model] lacks input_size, in_channels, hidden_size"),
        ('[model]\nname = "DiT-S2"\n', "unknown model 'DiT-S2'; did you mean 'DiT-S/2'?"),
    ],
)
def test_a_wrong_recipe_file_is_refused_by_name(recipe: Callable[[str, str], str], text: str, message: str):
    with pytest.raises(UsageError) as refused:
        config.load(recipe("mine.toml", text))
    assert message in str(refused.value)


def test_a_model_by_its_name_in_the_paper(recipe: Callable[[str, str], str]):
    text = '[model]\nname = "DiT-B/4"\nimage_size = 512\nconditioning = "adaln"\n'
    run = config.load(recipe("b4.toml", text), ["model.num_classes=3"])
    model = run.model
    assert (model.hidden_size, model.shape, model.patch_size) == (768, (4, 64, 64), 4)
    assert (model.conditioning, model.num_classes, model.learn_sigma) == ("adaln", 3, True)
    simple = config.load(recipe("b4.toml", text), ["diffusion.objective=simple"])
    assert not simple.model.learn_sigma


@pytest.mark.parametrize(
    ("overrides", "reported"),
    [
        (["checkpoint.every=7", "checkpoint.keep=9", "sample.steps=3", "sample.every=0"], []),
        (["train.log_every=1", "train.max_skips=9", "data.path=/moved"], []),
        (["log.tensorboard=true", "log.wandb=project", "log.wandb_mode=offline"], []),
        (["train.steps=17"], []),
        (["train.seed=1"], ["train.seed: 0 -> 1"]),
        (["train.batch_size=32"], ["train.batch_size: 64 -> 32"]),
        (["train.steps=17", "model.depth=2"], ["model.depth: 6 -> 2"]),
        (["ema.warmup=false", "data.flip=true"], ["data.flip: False -> True", "ema.warmup: True -> False"]),
        (["model.input_size=[8, 8]"], ["model.input_size: 8 -> [8, 8]"]),
    ],
)
def test_what_a_resumed_run_may_change(overrides: list[str], reported: list[str]):
    base = ["optimizer.decay=constant"]
    assert differences(config.load("digits", base), config.load("digits", [*base, *overrides])) == reported


def test_with_a_decay_the_number_of_steps_is_part_of_the_training():
    old = config.load("digits", ["optimizer.decay=cosine"])
    new = config.load("digits", ["optimizer.decay=cosine", "train.steps=17"])
    assert differences(old, new) == [f"train.steps: {old.train.steps} -> 17"]
    constant = config.load("digits", ["train.steps=17", "optimizer.decay=constant"])
    assert "optimizer.decay: cosine -> constant" in differences(old, constant)
