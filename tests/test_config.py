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
from scaledit.autoencoders.config import AutoencoderRun
from scaledit.config import RunConfig, differences, old
from scaledit.config.tables import section_types
from scaledit.diffusion import (
    DDIM,
    DDPM,
    EDM,
    X0,
    ClassifierFree,
    DPMSolver,
    Euler,
    Guidance,
    Hybrid,
    LinearBeta,
    LinearFlow,
    LogitNormal,
    Parameterization,
    Sampler,
    Schedule,
    TimeDistribution,
    Uniform,
    Velocity,
)
from scaledit.diffusion.times import Auto, Even, Karras
from scaledit.errors import UsageError
from scaledit.part import Allowed, members
from scaledit.values import own_fields

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


def test_metrics_are_names_or_tables():
    run = config.load(
        "digits", ['evaluate.metrics=["fd_digits", {name="precision", k=5}, {name="mine:Own"}]']
    )
    assert run.evaluate.metrics == ("fd_digits", {"name": "precision", "k": 5}, {"name": "mine:Own"})
    assert RunConfig.from_json(json.loads(json.dumps(run.to_json()))) == run
    assert run.modules() == {"mine"}
    for wrong in ("[3]", "[{k=3}]", "[[]]"):
        with pytest.raises(
            UsageError, match=r"^evaluate.metrics must be names separated by commas, or a list"
        ):
            config.load("digits", [f"evaluate.metrics={wrong}"])


@pytest.mark.parametrize("kind", [RunConfig, AutoencoderRun])
def test_every_key_says_what_it_means(kind: type):
    keys = {
        f"{section}.{item.name}": item.metadata.get("doc", "")
        for section, cls in section_types(kind).items()
        for item in own_fields(cls)
    }
    keys.pop("data.own")
    assert [key for key, doc in keys.items() if not doc] == []


LOGIT_NORMAL = {"diffusion.times.mean", "diffusion.times.std"}


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
            "sample.sampler.steps": st.integers(1, 500),
            "diffusion.times": st.just("uniform"),
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
    assert plain[learned] == isinstance(run.diffusion.objective, Hybrid)
    named = {
        "optimizer.algorithm.betas"
        if key == "optimizer.betas"
        else key
        if key in plain
        else f"{key}.name": value
        for key, value in changes.items()
    }
    assert plain.keys() == before.keys() - (LOGIT_NORMAL if "diffusion.times" in changes else set())
    for key in plain.keys() - {learned}:
        assert plain[key] == named.get(key, before[key])


def test_the_last_override_wins_and_bare_words_are_strings():
    overrides = ["train.steps=5", "train.steps= 7", "data.path=/some/where", "sample.cfg_channels=3"]
    run = config.load("digits", [*overrides, "diffusion.times=uniform", "model.conditioning=adaln"])
    assert (run.train.steps, run.data.path) == (7, "/some/where")
    assert run.sample.guidance == (ClassifierFree(scale=1.5, channels=3),)
    assert (run.diffusion.times, run.model.conditioning) == (Uniform(), "adaln")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("trian.steps=3", "unknown section 'trian'; did you mean 'train'?"),
        ("train.step=3", "unknown key 'train.step'; did you mean 'train.steps'?"),
        ("model.hiden_size=32", "unknown key 'model.hiden_size'; did you mean 'model.hidden_size'?"),
        ("diffusion.schedule=flwo", "diffusion.schedule: unknown schedule 'flwo'"),
        ("diffusion.schedule=flwo", "; did you mean 'flow'?"),
        (
            "sample.sampler=dpmm",
            "sample.sampler: unknown sampler 'dpmm' (write MODULE:CLASS for one of your own)",
        ),
        ("sample.sampler=dpmm", "; did you mean 'dpm'?"),
        ('sample.sampler={name="ddimm"}', "sample.sampler: unknown sampler 'ddimm'"),
        ("sample.sampler={steps=3.5}", "sample.sampler.steps must be a whole number, got 3.5"),
        ("sample.sampler.eta=0.5", "unknown key sample.sampler.eta: dpm has the fields steps, times"),
        ("sample.sampler.stps=5", "dpm has the fields steps, times; did you mean 'steps'?"),
        ("sample.sampler.steps=0", "sample.sampler.steps must be at least 1, got 0"),
        ("sample.steps=0", "sample.sampler.steps must be at least 1, got 0"),
        ("sample.sampler=karras", "sample.sampler: unknown sampler 'karras'"),
        ("sample.sampler.times=dpm", "sample.sampler.times: unknown times 'dpm'"),
        ("sample.sampler.times.rho=9", "unknown key sample.sampler.times.rho: auto has no fields"),
        ('sample.sampler.times={name="karras",rho=0}', "sample.sampler.times.rho must be above 0, got 0.0"),
        ("sample.sampler=3", "sample.sampler must be the name of a sampler, or a table with its name; got 3"),
        ("sample.guidance=ddim", "sample.guidance.0: unknown guidance 'ddim'"),
        ("sample.guidance=3", "sample.guidance must be a list"),
        ("sample.guidance.3.scale=2", "unknown key sample.guidance.3: sample.guidance has 1 part"),
        ("sample.guidance.classifier.scale=2", "did you mean 'classifier_free'?"),
        ("sample.guidance.0.channels=0", "sample.guidance.0.channels must be at least 1, got 0"),
        ("sample.guidance.0.scale=much", "sample.guidance.0.scale must be a number, got 'much'"),
        ("sample.cfg_channels=four", "sample.cfg_channels is 'four'"),
        ("train.steps.more=3", "unknown key train.steps.more: train.steps is not a part with fields"),
        ("diffusion.prediction=learned_range", 'diffusion.objective="simple" does not train'),
        ("model.conditioning=adalnzero", "unknown block 'adalnzero'"),
        ("train.steps=abc", "train.steps must be a whole number, got 'abc'"),
        ("train.steps=1.5", "train.steps must be a whole number, got 1.5"),
        ("train.steps=true", "train.steps must be a whole number, got True"),
        ("train.steps=0", "train.steps must be at least 1, got 0"),
        ("train.steps=", "train.steps must be a whole number, got ''"),
        ("optimizer.learning_rate=fast", "optimizer.learning_rate must be a number, got 'fast'"),
        ("optimizer.learning_rate=true", "optimizer.learning_rate must be a number, got True"),
        ("optimizer.learning_rate=nan", "optimizer.learning_rate must be finite, got nan"),
        ("optimizer.betas=[0.9]", "optimizer.algorithm.betas must be a list of 2 values, got [0.9]"),
        ("optimizer.betas=[0.9, 1.0]", "optimizer.algorithm.betas must be in [0, 1), got [0.9, 1.0]"),
        ("data.flip=1", "data.flip must be true or false, got 1"),
        ("data.path=3", "data.path must be a string, got 3"),
        ("ema.decay=1", "ema.decay must be below 1, got 1.0"),
        ("model.input_size=[8, 8, 8]", "model.input_size cannot be [8, 8, 8]"),
        ("model.input_size=eight", "model.input_size cannot be 'eight'"),
        ("model.patch_size=3", "model.patch_size 3 does not divide the input size 8x8"),
        ("model.num_heads=5", "model.num_heads 5 does not divide model.hidden_size 96"),
        ("model.image_size=256", "model.image_size can only be used with model.name"),
        ("model.mlp_ratio=nan", "model.mlp_ratio must be finite"),
        ("model.mlp_ratio=0.001", "model.mlp_ratio 0.001 leaves the MLP without hidden units"),
        ("optimizer.learning_rate=inf", "optimizer.learning_rate must be finite, got inf"),
        ("sample.cfg_scale=nan", "sample.guidance.0.scale must be finite, got nan"),
        ("train.steps = 7", "without spaces or line breaks; got 'train.steps = 7'"),
        ("train.steps=7\nx=2", "without spaces or line breaks"),
        ("train.accumulate=5", "train.accumulate 5 must divide train.batch_size 64"),
        ("model.learn_sigma=true", 'model.learn_sigma=true does not fit diffusion.objective="simple"'),
        ("train.steps", "an override is section.key=value, as in train.steps=100; got 'train.steps'"),
        ("steps=3", "'steps=3' names no section; did you mean 'train.steps=3' or 'sample.sampler.steps=3'?"),
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
    with pytest.raises(UsageError, match=r"sample.sampler.steps 200 exceeds diffusion.schedule.steps 100"):
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
        ("extends = 3\n", "extends must be the name or the path of a recipe, got 3"),
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
        (["ema.warmup=false", "data.flip=true"], ["data.flip: false -> true", "ema.warmup: true -> false"]),
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


# ---- parts -----------------------------------------------------------------------------------------------


def sampled(*overrides: str, recipe: str = "digits") -> Sampler:
    return config.load(recipe, overrides).sample.sampler


def test_a_part_is_a_word_a_table_or_its_fields():
    """A part that takes another one's place keeps the fields that both have."""
    assert sampled("sample.sampler=ddim") == DDIM(12)
    assert sampled('sample.sampler={name="ddim", eta=0.5}') == DDIM(12, eta=0.5)
    assert sampled('sample.sampler={name="ddim", steps=50, eta=0.5}') == DDIM(50, eta=0.5)
    assert sampled("sample.sampler={steps=9}") == sampled("sample.sampler.steps=9") == DPMSolver(9)
    assert sampled("sample.sampler.name=ddim", "sample.sampler.eta=1") == DDIM(12, eta=1.0)
    assert sampled("sample.sampler.times=karras") == DPMSolver(12, Karras())
    inside = ("sample.sampler.times.name=karras", "sample.sampler.times.rho=5")
    assert sampled(*inside) == DPMSolver(12, Karras(5.0))
    # But not the times that were chosen for the other one.
    assert sampled("sample.sampler=ddim").times == Even()
    assert sampled("sample.sampler=dpm", recipe="digits-paper") == DPMSolver(100, Auto())
    assert sampled('sample.sampler={name="ddim", times="karras"}') == DDIM(12, Karras())
    run = config.load("digits", ["diffusion.times.mean=0.5", "diffusion.prediction.tells=alpha"])
    assert (run.diffusion.times, run.diffusion.prediction) == (LogitNormal(0.5), Velocity(tells="alpha"))


def test_guidance_is_a_list_whose_parts_have_a_place_and_a_name():
    def guided(*overrides: str) -> tuple[Guidance, ...]:
        return config.load("digits", overrides).sample.guidance

    assert guided("sample.guidance=classifier_free") == (ClassifierFree(),)
    assert guided("sample.guidance=[]") == ()
    assert guided("sample.guidance.0.scale=3") == (ClassifierFree(scale=3.0, channels=3),)
    assert guided("sample.guidance.classifier_free.channels=all") == (ClassifierFree(scale=1.5),)
    assert guided("sample.guidance=[]", "sample.guidance.classifier_free.scale=2") == (
        ClassifierFree(scale=2.0),
    )
    both = 'sample.guidance=["classifier_free", {name="classifier_free", scale=2, channels=1}]'
    assert guided(both) == (ClassifierFree(), ClassifierFree(scale=2.0, channels=1))


@examples
@given(
    st.permutations(["sample.sampler=ddim", "sample.sampler.eta=0.5", "sample.steps=9", "sample.cfg_scale=2"])
)
def test_overrides_may_come_in_any_order(overrides: list[str]):
    sample = config.load("digits", overrides).sample
    assert (sample.sampler, sample.guidance) == (DDIM(9, eta=0.5), (ClassifierFree(scale=2.0, channels=3),))


def test_recipes_that_extend_each_other_switch_parts(recipe: Callable[[str, str], str]):
    first = recipe(
        "first.toml", 'extends = "digits"\n[sample.sampler]\nname = "ddim"\neta = 0.5\nsteps = 7\n'
    )
    assert config.load(first).sample.sampler == DDIM(7, eta=0.5)
    second = recipe("second.toml", f'extends = "{first}"\n[sample]\nsampler = "euler"\n')
    assert config.load(second).sample.sampler == Euler(7)
    third = recipe("third.toml", f'extends = "{first}"\n[sample]\nsampler.eta = 0.25\n')
    assert config.load(third, ["sample.sampler.steps=3"]).sample.sampler == DDIM(3, eta=0.25)
    last = recipe("last.toml", f'extends = "{second}"\n[sample]\nsampler.eta = 0.25\n')
    with pytest.raises(UsageError, match=r"unknown key sample.sampler.eta: euler has the fields steps"):
        config.load(last)


# ---- old keys --------------------------------------------------------------------------------------------

OLD_AND_NEW = [
    (["sample.steps=9"], ["sample.sampler.steps=9"]),
    (["sample.sampler=ddim", "sample.steps=9"], ['sample.sampler={name="ddim", steps=9}']),
    (["sample.cfg_scale=4"], ["sample.guidance.classifier_free.scale=4"]),
    (
        ["sample.cfg_channels=all"],
        [
            "sample.guidance.classifier_free.channels=all",
            'evaluate.guidance=[{name="classifier_free", scale=1.0, channels="all"}]',
        ],
    ),
    (["evaluate.cfg_scale=4"], ['evaluate.guidance=[{name="classifier_free", scale=4, channels=3}]']),
    (["diffusion.steps=50"], ["diffusion.schedule.steps=50"]),
    (["diffusion.schedule=cosine", "diffusion.steps=50"], ['diffusion.schedule={name="cosine", steps=50}']),
    (["diffusion.prediction=start"], ["diffusion.prediction=x0"]),
    (["diffusion.schedule=interpolant"], ["diffusion.schedule=flow", "diffusion.prediction.tells=alpha"]),
    (
        ["diffusion.prediction=velocity", "diffusion.schedule=interpolant", "diffusion.schedule=linear"],
        ["diffusion.schedule=linear"],
    ),
]


@pytest.mark.parametrize(("before", "now"), OLD_AND_NEW)
def test_an_old_key_means_what_it_meant(before: list[str], now: list[str], recipe: Callable[[str, str], str]):
    """In an override, in a recipe, and in a config.json."""
    expected = config.load("digits", now)
    assert config.load("digits", before) == expected
    tables: dict[str, list[str]] = {}
    for override in before:
        section, _, rest = override.partition(".")
        key, _, value = rest.partition("=")
        tables.setdefault(section, []).append(f"{key} = {value if value.isdigit() else json.dumps(value)}")
    lines = [line for section, keys in tables.items() for line in (f"[{section}]", *dict.fromkeys(keys))]
    if len({line.partition("=")[0] for line in lines}) == len(lines):  # TOML names a key once
        text = "\n".join(['extends = "digits"', *lines])
        assert replace(config.load(recipe("mine.toml", text)), name="digits") == expected


OLD_SAMPLE = {
    "every": 160, "per_class": 8, "classes": 10, "sampler": "ddim", "steps": 12, "cfg_scale": 1.5,
    "cfg_channels": "all", "seed": 0,
}  # fmt: skip
OLD_DIFFUSION = {
    "schedule": "interpolant", "steps": 500, "prediction": "velocity", "objective": "simple",
    "times": "logit_normal",
}  # fmt: skip


def test_an_old_config_is_read():
    value = config.load("digits").to_json()
    value["sample"], value["diffusion"] = OLD_SAMPLE, OLD_DIFFUSION
    value["evaluate"] = {**value["evaluate"], "cfg_scale": 2.0}
    del value["evaluate"]["guidance"]
    run = RunConfig.from_json(value)
    assert run.sample.sampler == DDIM(12)
    assert run.sample.guidance == (ClassifierFree(scale=1.5),)
    assert run.evaluate.guidance == (ClassifierFree(scale=2.0),)  # on the channels that [sample] guided
    assert run.diffusion.schedule == LinearFlow(500)
    assert run.diffusion.prediction == Velocity(tells="alpha")
    assert RunConfig.from_json(run.to_json()) == run
    value["diffusion"] = {**OLD_DIFFUSION, "schedule": "quadratic", "prediction": "start"}
    assert RunConfig.from_json(value).diffusion.prediction == X0()


def test_an_old_recipe_that_says_no_channels_guides_three(recipe: Callable[[str, str], str]):
    """A new one guides all."""
    base = 'extends = "digits"\n[sample]\nguidance = []\n'
    old_one = recipe("old.toml", f"{base}cfg_scale = 1.5\n[evaluate]\ncfg_scale = 2\n")
    assert config.load(old_one).sample.guidance == (ClassifierFree(scale=1.5, channels=3),)
    assert config.load(old_one).evaluate.guidance == (ClassifierFree(scale=2.0, channels=3),)
    bare = recipe("bare.toml", base)
    text = f'extends = "{bare}"\n[sample]\nguidance.classifier_free.scale = 1.5\n'
    new_one = config.load(recipe("new.toml", text))
    assert new_one.sample.guidance == (ClassifierFree(scale=1.5),)
    override = "sample.guidance.classifier_free.scale=1.5"
    assert replace(config.load(bare, [override]), name="new") == new_one


OLD_PROTOCOL = {"sampler": "dpm", "steps": 12, "cfg_scale": 1.5, "cfg_channels": "3", "n": 5}


def test_an_old_protocol_says_the_same_in_words_of_today():
    free = {"name": "classifier_free", "scale": 1.5, "channels": 3}
    even, log_snr = DPMSolver(12, Even()).to_json(), DPMSolver(12, "log_snr").to_json()  # pyright: ignore
    assert old.protocol(OLD_PROTOCOL) == {"sampler": even, "guidance": [free], "n": 5}
    assert old.protocol({**OLD_PROTOCOL, "times": "log_snr"})["sampler"] == log_snr
    assert old.protocol({**OLD_PROTOCOL, "cfg_scale": 1.0})["guidance"] == []
    assert old.protocol({**OLD_PROTOCOL, "cfg_channels": "all"})["guidance"] == [{**free, "channels": "all"}]
    now = old.protocol(OLD_PROTOCOL)
    assert old.protocol(now) == now
    assert old.protocol({"n": 5}) == {"n": 5}


@examples
@given(
    st.fixed_dictionaries(
        {},
        optional={
            key: st.none() | st.integers() | st.floats() | st.text(max_size=5) | st.just("ddim") | st.just([])
            for key in ("sampler", "steps", "times", "cfg_scale", "cfg_channels", "guidance")
        },
    )
)
def test_no_protocol_is_too_odd(said: dict[str, object]):
    assert isinstance(old.protocol(said), dict)


def test_a_row_of_an_old_table_is_read_and_guidance_of_scale_1_is_kept():
    said = {"sampler": "ddpm", "sampling_steps": "64", "cfg_scale": "1.0", "cfg_channels": "3", "fd": "2.5"}
    row = old.row(said)
    assert set(row) == {"sampler", "guidance", "fd"}
    assert json.loads(row["sampler"]) == DDPM(64).to_json()
    assert json.loads(row["guidance"]) == [ClassifierFree(scale=1.0, channels=3).to_json()]
    assert old.row(row) == row
    for key, wrong in (
        ("sampling_steps", "-1"),
        ("cfg_scale", "much"),
        ("cfg_scale", "nan"),
        ("cfg_channels", ""),
    ):
        with pytest.raises(ValueError, match=f"{key}|scale must be finite"):
            old.row({**said, key: wrong})


# ---- any parts -------------------------------------------------------------------------------------------


def of_kind(kind: type) -> st.SearchStrategy[str]:
    return st.sampled_from(sorted(set(members(kind)) - {"learned_range"}))


@examples
@given(
    sampler=of_kind(Sampler),
    schedule=of_kind(Schedule),
    prediction=of_kind(Parameterization),
    times=of_kind(TimeDistribution),
    hybrid=st.booleans(),
    steps=st.integers(2, 99),
    guidance=st.lists(st.tuples(st.floats(-5, 5), st.none() | st.integers(1, 9)), max_size=3),
    eta=st.floats(0, 2),
)
def test_a_config_of_any_parts_is_read_back(
    sampler, schedule, prediction, times, hybrid, steps, guidance, eta
):
    parts = [{"name": "classifier_free", "scale": s, "channels": c or "all"} for s, c in guidance]
    values = {
        "sample.sampler": {"name": sampler, **({} if sampler == "adaptive" else {"steps": steps})},
        "sample.guidance": parts,
        "evaluate.guidance": parts[:1],
        "diffusion.schedule": schedule,
        "diffusion.prediction": prediction,
        "diffusion.times": times,
        "diffusion.objective": "hybrid" if hybrid else "simple",
        "model.learn_sigma": hybrid,
    }
    values |= {"sample.sampler.eta": eta} if sampler == "ddim" else {}
    run = config.with_values(config.load("digits"), values)
    assert run.sample.sampler.steps == (1 if sampler == "adaptive" else steps)
    assert RunConfig.from_json(json.loads(json.dumps(run.to_json()))) == run
    assert config.load("digits", config.changes(run)) == run  # and by overrides, of TOML


def test_a_part_made_in_python_is_taken_as_it_is():
    run = config.with_values(
        config.load("digits"), {"sample.sampler": DDIM(7, eta=0.5), "diffusion.prediction": EDM()}
    )
    assert (run.sample.sampler, run.diffusion.prediction) == (DDIM(7, eta=0.5), EDM())
    with pytest.raises(UsageError, match=r"sample.sampler must be a sampler, got the part 'edm'"):
        config.with_values(run, {"sample.sampler": EDM()})


def test_every_field_of_a_section_has_its_bounds_where_it_is_defined():
    run = config.load("digits")
    for key, bad in (
        ("train.steps", 0),
        ("checkpoint.keep", 1),
        ("evaluate.num", 1),
        ("engine.timeout", 0.5),
    ):
        with pytest.raises(UsageError, match=f"{key} must be at least"):
            config.with_values(run, {key: bad})
    assert {one.name for one in own_fields(type(run.sample))} == {
        "every", "early", "per_class", "classes", "sampler", "guidance", "seed", "average"
    }  # fmt: skip


# ---- parts of one's own ----------------------------------------------------------------------------------

MINE = """
from dataclasses import dataclass
from scaledit.part import field
from scaledit.diffusion.samplers import Sampler

@dataclass(frozen=True)
class Midpoint(Sampler):
    "A sampler of one's own."
    width: float = field(0.5, gt=0, lt=1, doc="of the step")
    def step(self, denoiser, x, t, s, condition, state, noise, i):
        return x, state

@dataclass(frozen=True)
class Idle(Sampler):
    "It lacks a step."

class Loose(Sampler):
    def step(self, *more):
        return more
"""


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a module in the current folder, another one for each test."""
    name = f"mine_{abs(hash(str(tmp_path)))}"
    (tmp_path / f"{name}.py").write_text(MINE)
    monkeypatch.chdir(tmp_path)
    return name


def test_a_class_of_ones_own_is_named_by_its_module(mine: str):
    named = f"sample.sampler={mine}:Midpoint"
    sampler = sampled(named, "sample.sampler.width=0.25")
    assert sampler.to_json() == {
        "name": f"{mine}:Midpoint", "steps": 12, "times": {"name": "even"}, "width": 0.25
    }  # fmt: skip
    assert sampled(f'sample.sampler={{name="{mine}:Midpoint", steps=3}}').steps == 3
    run = config.load("digits", [named])
    assert run.modules() == {mine}
    with pytest.raises(UsageError) as refused:
        RunConfig.from_json(run.to_json())
    assert f"--allow-import {mine}" in str(refused.value) and f"{mine}:Midpoint" in str(refused.value)
    with pytest.raises(UsageError, match=f"runs/a names '{mine}:Midpoint'"):
        RunConfig.from_json(run.to_json(), Allowed.only(["another"], "runs/a"))
    assert RunConfig.from_json(run.to_json(), Allowed.only([mine], "runs/a")) == run
    assert config.load("digits", config.changes(run)) == run


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("sample.sampler={}:Idle", "lacks the method step, which each sampler needs"),
        ("sample.sampler={}:Loose", "is not a frozen dataclass; write @dataclass(frozen=True)"),
        ("sample.sampler={}:Midpont", "has no class Midpont; did you mean 'Midpoint'?"),
        (
            "diffusion.schedule={}:Midpoint",
            "is not a schedule; derive it from scaledit.diffusion.schedule",
        ),
        ("sample.sampler=no_such_module:Midpoint", "the module no_such_module cannot be found"),
        ("sample.sampler={}:Midpoint.x", "is not the name of a class; write MODULE:CLASS"),
        ('sample.sampler={{name="{}:Midpoint", width=1}}', "sample.sampler.width must be below 1, got 1.0"),
        (
            'sample.sampler={{name="{}:Midpoint", widht=1}}',
            "steps, times, width; did you mean 'width'?",
        ),
    ],
)
def test_a_class_of_ones_own_that_does_not_do_is_refused_by_name(override: str, says: str, mine: str):
    with pytest.raises(UsageError) as refused:
        config.load("digits", [override.format(mine)])
    assert says in str(refused.value)


def test_a_config_imports_nothing_that_is_not_allowed(mine: str, tmp_path: Path):
    """Not by any key: the module would leave a file."""
    (tmp_path / f"{mine}.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    named = f"{mine}:Midpoint"
    for section, key, value in (
        ("sample", "sampler", named),
        ("sample", "sampler", {"name": named}),
        ("sample", "sampler", {"name": "ddim", "times": named}),
        ("sample", "guidance", [named]),
        ("sample", "guidance", [{"name": named}]),
        ("evaluate", "guidance", [{"name": named}]),
        *(("diffusion", key, named) for key in ("schedule", "prediction", "objective", "times")),
        ("diffusion", "prediction", {"name": "learned_range", "mean": named}),
    ):
        table = config.load("digits").to_json()
        table[section][key] = value
        with pytest.raises(UsageError, match=f"--allow-import {mine}"):
            RunConfig.from_json(table)
    assert not (tmp_path / "ran").exists()


def test_linear_betas_are_the_default_and_its_ends_can_be_reached():
    schedule = config.load("digits-paper", ["diffusion.schedule.beta_end=0.01"]).diffusion.schedule
    assert schedule == LinearBeta(beta_end=0.01)
