"""Unknown keys: each alias leads to a key that exists, and messages name the key that is meant."""

from __future__ import annotations

import pytest

from scaledit import config
from scaledit.autoencoders.config import AutoencoderRun
from scaledit.config import RunConfig, old
from scaledit.config.aliases import ALIASES, EXPLAINED, suggestions
from scaledit.config.tables import all_keys
from scaledit.errors import UsageError, listed

KEYS = sorted({key for keys in ALIASES.values() for key in keys})
RECIPES: dict[type[config.Config], str] = {RunConfig: "digits", AutoencoderRun: "photos-ae"}


def refused(override: str, kind: type[config.Config] = RunConfig) -> str:
    with pytest.raises(UsageError) as error:
        config.load(RECIPES[kind], [override], kind)
    return str(error.value)


@pytest.mark.parametrize("key", KEYS)
def test_an_alias_leads_to_a_key_that_exists(key: str):
    """Of one kind of run or the other: its value may be refused, the key is known."""
    unknown = 0
    for kind, recipe in RECIPES.items():
        try:
            config.load(recipe, [f"{key}=1"], kind)
        except UsageError as error:
            unknown += ("unknown" in str(error) and repr(key) in str(error)) or "unknown section" in str(
                error
            )
    assert unknown < len(RECIPES)


@pytest.mark.parametrize("alias", [*ALIASES, *EXPLAINED])
def test_every_alias_is_answered_with_or_without_a_section(alias: str):
    answers = [refused(f"{alias}=1", kind) for kind in RECIPES]
    assert any("; did you mean '" in answer or EXPLAINED.get(alias, "-") in answer for answer in answers)
    section = next(name for name in ("log", "ema") if f"{name}.{alias}" not in all_keys(RunConfig))
    answers = [refused(f"{section}.{alias}=1"), refused(f"log.{alias}=1", AutoencoderRun)]
    assert any("; did you mean '" in answer or EXPLAINED.get(alias, "-") in answer for answer in answers)


def test_no_alias_hides_a_key_in_its_own_section():
    """An alias is looked up for unknown keys only, so a name that exists everywhere needs none."""
    assert not ALIASES.keys() & EXPLAINED.keys()
    for key in all_keys(RunConfig):
        section, _, name = key.partition(".")
        if "." not in name and name in ALIASES:
            assert key in suggestions(all_keys(RunConfig), name, section) or key not in ALIASES[name]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.lr=1e-4", "unknown key 'train.lr'; did you mean 'optimizer.learning_rate'?"),
        ("optim.lr=1e-4", "unknown section 'optim'; did you mean 'optimizer.learning_rate'?"),
        ("trian.lr=1e-4", "unknown section 'trian'; did you mean 'optimizer.learning_rate'?"),
        ("lr=1e-4", "'lr=1e-4' names no section; did you mean 'optimizer.learning_rate=1e-4'?"),
        (
            "steps=3",
            "'steps=3' names no section; did you mean 'train.steps=3' or 'sample.sampler.steps=3'?",
        ),
        (
            "stepz=3",
            "'stepz=3' names no section; did you mean 'train.steps=3' or 'sample.sampler.steps=3'?",
        ),
        ("log.steps=3", "unknown key 'log.steps'; did you mean 'train.steps' or 'sample.sampler.steps'?"),
        ("sample.num_steps=3", "unknown key 'sample.num_steps'; did you mean 'sample.sampler.steps'?"),
        ("train.workers=3", "unknown key 'train.workers'; did you mean 'data.workers'?"),
        ("sample.eta=0.5", "unknown key 'sample.eta'; did you mean 'sample.sampler.eta'?"),
        ("model.eta=0.5", "unknown key 'model.eta'; did you mean 'sample.sampler.eta'?"),
        ("train.batch-size=3", "unknown key 'train.batch-size'; did you mean 'train.batch_size'?"),
        (
            "evaluate.guidance_scale=2",
            "unknown key 'evaluate.guidance_scale'; did you mean 'evaluate.guidance.classifier_free.scale'?",
        ),
        (
            "train.epochs=10",
            "unknown key 'train.epochs'; scaledit counts steps, not epochs: set train.steps; an epoch of N "
            "images is ceil(N / train.batch_size) steps",
        ),
        ("train.out_dir=x", "unknown key 'train.out_dir'; the run folder is the option --out FOLDER"),
        (
            "ema.xyzzy=1",
            "unknown key 'ema.xyzzy'; the keys of [ema] are decay, power, snapshot_precision, snapshots and "
            "warmup",
        ),
        ("xyzzy=1", "'xyzzy=1' names no section; an override is section.key=value, as in train.steps=100"),
    ],
)
def test_an_unknown_key_is_answered_with_the_one_that_is_meant(override: str, message: str):
    assert refused(override) == message


def test_suggestions_are_keys_of_the_kind_of_run():
    assert refused("cfg=2", AutoencoderRun).endswith("as in train.steps=100")
    assert "model.layers" in refused("model.num_layers=3", AutoencoderRun)
    assert "model.depth" in refused("model.num_layers=3")


def test_a_recipe_file_is_answered_as_well(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text('extends = "digits"\n[train]\nlr = 1e-4\n')
    with pytest.raises(UsageError, match=r"unknown key .train\.lr.; did you mean .optimizer\.learning_rate."):
        config.load(str(path))


def test_the_keys_of_0_1_are_no_unknown_keys():
    values = {"cfg_scale": 1.5, "cfg_channels": 3, "steps": 9, "betas": [0.9, 0.99], "weight_decay": 0.1}
    for section, name in (*old.SCALES, old.CFG_CHANNELS, *old.RENAMED):
        extra = ["diffusion.schedule=linear"] if section == "diffusion" else []
        config.load("digits", [*extra, f"{section}.{name}={values[name] if section != 'diffusion' else 50}"])


def test_lists_in_words():
    assert [listed(words, "or") for words in ([], ["a"], ["a", "b"], ["a", "b", "c"])] == [
        "", "a", "a or b", "a, b or c"
    ]  # fmt: skip
