"""The recipes that come with scaledit: their headers are true, and the imagenet ones are the paper's runs."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from importlib.resources import files
from pathlib import Path

import pytest

from scaledit.autoencoders.config import AutoencoderRun
from scaledit.config import RECIPES, RunConfig, load, recipe_names
from scaledit.config.recipes import override
from scaledit.diffusion import DDPM, ClassifierFree, Epsilon, Hybrid, LearnedRange, LinearBeta, Uniform
from scaledit.models.config import DiTConfig
from scaledit.optimizers import AdamW
from scaledit.scaling import paper
from scaledit.scaling import study as studies
from scaledit.scaling.plan import Hardware, plan, scientific

ROOT = Path(__file__).parent.parent
MODERN = "imagenet256-xl2-modern"
IMAGENET = [name for name in recipe_names() if name.startswith("imagenet") and name != MODERN]
"""The paper's."""
PAPER = json.loads(files("scaledit.scaling").joinpath("paper.json").read_text())


def header(name: str) -> dict[str, str]:
    """{"command": ..., "cost": ..., "target": ...} of the comment that opens a recipe."""
    comment = (RECIPES / f"{name}.toml").read_text().split("\n\n")[0]
    return dict(re.findall(r"^# (command|cost|target) {2,}(\S.*)$", comment, re.MULTILINE))


@pytest.mark.parametrize("name", recipe_names())
def test_header_states_command_cost_and_goal(name: str):
    said = header(name)
    assert said.keys() == {"command", "cost", "target"}
    assert "TODO" not in "".join(said.values())
    command = re.sub(r"\(.*\)", "", said["command"]).split()
    assert command[:3] == ["scaledit", "train", name]
    config = load(name, command[3:])
    assert config.name == name
    assert config.data.name != "latents" or config.data.path == "LATENTS"
    assert RunConfig.from_json(config.to_json()) == config


@pytest.mark.parametrize("name", recipe_names("autoencoder"))
def test_header_of_an_autoencoder_states_command_cost_and_goal(name: str):
    said = header(name)
    assert said.keys() == {"command", "cost", "target"}
    assert "TODO" not in "".join(said.values())
    command = re.sub(r"\(.*\)", "", said["command"]).split()
    assert command[:4] == ["scaledit", "autoencoder", "train", name]
    config = load(name, command[4:], AutoencoderRun)
    assert AutoencoderRun.from_json(config.to_json()) == config


@pytest.mark.parametrize("name", IMAGENET)
def test_header_of_the_papers_run_is_computed_and_printed(name: str):
    config, said = load(name), header(name)
    train_macs = plan(config, Hardware(peak=1e12, devices=1, utilization=0.5)).train_macs
    assert said["cost"] == f"{scientific(train_macs)} multiply-adds (training)"
    steps = config.train.steps
    [row] = [r for r in paper.printed() if r.config == config.model and r.steps_thousands * 1000 == steps]
    goal = f"FID-50K {row.fid:g} without guidance, 250 DDPM steps (paper, table 4)"
    assert said["target"] == goal
    size, block = row.model.removeprefix("DiT-").replace("/", "").lower(), row.block.replace("_", "-")
    expected = f"imagenet{row.image_size}-{size}" + ("" if block == "adaln-zero" else f"-{block}")
    assert name == expected


def test_the_modern_recipe_is_the_papers_with_what_helps():
    """The switches that docs/studies/modern says help, with the values that the study set."""
    config = load(MODERN)
    train_macs = plan(config, Hardware(peak=1e12, devices=1, utilization=0.5)).train_macs
    assert header(MODERN)["cost"] == f"{scientific(train_macs)} multiply-adds (training)"
    verdicts = json.loads((ROOT / "docs" / "studies" / "modern" / "verdicts.json").read_text())
    helps = [one["name"] for one in verdicts["switches"] if one["outcome"] == "helps"]
    switches = studies.load("modern").ablation.switches.switches
    set_by_study = [override(key, value) for name in helps for key, value in switches[name].set.items()]
    assert helps and config == replace(
        load("imagenet256-xl2", set_by_study), sample=config.sample, name=MODERN
    )


def test_each_model_of_the_paper_has_one_recipe():
    models = {DiTConfig.named(row.name, row.image_size, conditioning=row.block) for row in paper.table4()}
    recipes = [load(name).model for name in IMAGENET]
    assert len(recipes) == len(set(recipes)) == 16
    assert set(recipes) == models


@pytest.mark.parametrize("name", IMAGENET)
def test_settings_are_the_papers(name: str):
    config, training, diffusion = load(name), PAPER["training"], PAPER["diffusion"]
    optimizer, train, sample = config.optimizer, config.train, config.sample
    assert optimizer.learning_rate == training["learning_rate"]
    assert optimizer.algorithm == AdamW(tuple(training["betas"]), training["weight_decay"])
    assert (optimizer.warmup_steps, optimizer.decay, optimizer.clip) == (training["warmup"], "constant", 0)
    assert (train.batch_size, config.data.flip) == (training["batch_size"], True)
    assert (config.ema.decay, config.ema.warmup) == (training["ema_decay"], False)
    assert config.model.class_dropout == training["label_dropout"]
    assert config.diffusion.schedule == LinearBeta(diffusion["steps"])
    assert config.diffusion.parameterization == LearnedRange(Epsilon())
    assert (config.diffusion.objective, config.diffusion.times) == (Hybrid(), Uniform())
    assert sample.sampler == DDPM(diffusion["sampling_steps"])
    # Unguided, and where it is guided (--cfg-scale 1.5) on three of the four channels.
    assert sample.guidance == config.evaluate.guidance == (ClassifierFree(scale=1.0, channels=3),)
