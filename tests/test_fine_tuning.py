"""Starting from a trained model (train.init) and freezing weights: what is taken over, what is refused."""

from __future__ import annotations

import dataclasses
import json
import shlex
import shutil
from pathlib import Path

import pytest
import torch
from torch import Tensor

from among import Job, across
from layouts import config as shape
from layouts import official_state, random_dit
from saved import identical, weights
from scaledit import DiT, DiTConfig, checkpoint, load
from scaledit import config as configs
from scaledit.cli import main
from scaledit.config import RunConfig, trained
from scaledit.data import imagenet
from scaledit.data.latents import AutoencoderInfo
from scaledit.data.sets import Images, digits
from scaledit.errors import UsageError
from scaledit.files.manifest import sealed
from scaledit.interop.convert import open_model
from scaledit.models.layers import position_table
from scaledit.scaling import plan
from scaledit.training import log
from scaledit.training.dit import train
from scaledit.training.events import Initialized, Saved
from scaledit.training.log import JsonLog
from scaledit.training.start import opened
from test_training import run, stop_after
from tiny import tiny

LABELS = "label_embed.weight"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of the paper's diffusion, whose weights are nowhere zero."""
    out = tmp_path_factory.mktemp("base") / "run"
    run(tiny("train.steps=6", recipe="digits-paper"), out)
    return out


def named(*names: str, size: int = 8) -> Images:
    """Random images of classes with these names."""
    n = 24
    images = torch.rand(n, 1, size, size, generator=torch.Generator().manual_seed(0)) * 2 - 1
    return Images(images, torch.arange(n) % len(names), names)


def tuned(base: Path | str, *overrides: str) -> RunConfig:
    return tiny(f"train.init={base}", *overrides, recipe="digits-paper")


def averages(run: Path) -> dict[str, Tensor]:
    return {key: lazy.read() for key, lazy in open_model(run).weights.items()}


def test_a_run_starts_from_the_average_of_another_and_records_it(tmp_path: Path, base: Path):
    out = tmp_path / "run"
    config = tuned(base, "train.steps=4", "checkpoint.every=2", "optimizer.learning_rate=0")
    events = run(config, out, dataset=digits())
    found, source = weights(out), averages(base)
    for part in ("model", "ema"):  # bit for bit
        assert all(torch.equal(found[f"{part}/{key}"], value) for key, value in source.items())
    [event] = [event for event in events if isinstance(event, Initialized)]
    names = [str(digit) for digit in range(10)]
    assert (event.tensors, event.classes, event.new_classes) == (len(source), names, [])
    assert (event.model_step, event.weights, event.sha256) == (6, "ema", open_model(base).sha256)
    [line] = [line for line in log.read(out) if line["event"] == "initialized"]
    state = checkpoint.find(out / "checkpoints")[-1] / "manifest.json"
    recorded = json.loads(state.read_text())["state"]["init"]
    assert recorded == {key: value for key, value in line.items() if key != "event"}
    assert json.loads((out / "config.json").read_text())["train"]["init"] == str(base)
    assert main(["train", "digits", "--quiet", "--out", str(tmp_path / "x"), f"train.init={tmp_path}"]) == 2
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    "more", [(), ('train.freeze=["blocks.*.attn.*", "patch_embed.*"]',), ("lora.rank=2",)]
)
def test_a_resumed_run_needs_its_model_no_more_and_ends_bit_identical(
    tmp_path: Path, base: Path, more: tuple[str, ...]
):
    moved = tmp_path / "base"
    shutil.copytree(base, moved)
    config = tuned(moved, "train.steps=8", "checkpoint.every=3", *more)
    run(config, tmp_path / "whole")
    stop_after(config, tmp_path / "parts", saves=1)
    shutil.rmtree(moved)
    run(config, tmp_path / "parts", resume="auto")
    assert identical(weights(tmp_path / "whole"), weights(tmp_path / "parts"))
    kept = [checkpoint.open_checkpoint(folder).manifest["state"]["init"]["sha256"]
            for folder in checkpoint.find(tmp_path / "parts" / "checkpoints")]  # fmt: skip
    assert set(kept) == {open_model(base).sha256}
    with pytest.raises(UsageError, match=r"another config .* -> not set"):
        run(
            tiny("train.steps=8", "checkpoint.every=3", recipe="digits-paper"),
            tmp_path / "parts",
            resume="auto",
        )


def test_every_layout_starts_the_same_run(tmp_path: Path, base: Path):
    """A run, a checkpoint, an exported folder, diffusers' folder: the same names, so the same weights."""
    exported, diffusers = tmp_path / "exported", tmp_path / "diffusers"
    assert main(["convert", str(base), str(exported), "--to", "scaledit", "--quiet"]) == 0
    assert main(["convert", str(base), str(diffusers), "--to", "diffusers", "--quiet"]) == 0
    networks = []
    for path in (base, base / "checkpoints" / checkpoint.folder_name(6), exported, diffusers):
        start = opened(tuned(path), ("7", "zebra"), None)
        net = DiT(tuned(path, "model.num_classes=2").model)
        start.load(net)
        networks.append(dict(net.state_dict()))
        assert (start.rows, start.event.new_classes) == ({0: 7}, ["zebra"])
    assert all(identical(networks[0], other) for other in networks[1:])


def test_rows_of_the_class_table_follow_the_names(base: Path):
    config = tuned(base, "model.num_classes=4")
    start = opened(config, ("9", "new", "0", "other"), None)
    net = DiT(config.model)
    start.load(net)
    table, theirs = net.label_embed.weight, averages(base)[LABELS]
    assert torch.equal(table, theirs[[9, 10, 0, 10, 10]])  # the null row last
    assert start.event.in_words().endswith(
        "2 classes by name, 2 new classes with the null row ('new' and 'other')"
    )


def test_classes_without_names_and_a_table_without_a_null_row(tmp_path: Path):
    """Official weights: 5 classes called by number; without label dropout there is no null row."""
    dit = random_dit(shape(in_channels=1))
    torch.save(official_state(dit), tmp_path / "in.pt")
    same = ["model.patch_size=2", "model.learn_sigma=true", "model.num_classes=2"]
    for classes, row in ((5, dit.label_embed.weight[5]), (6, dit.label_embed.weight.mean(dim=0))):
        out = tmp_path / str(classes)
        stated = ["--heads", "2", "--num-classes", str(classes), "--quiet"]
        assert main(["convert", str(tmp_path / "in.pt"), str(out), "--to", "scaledit", *stated]) == 0
        config = tuned(out, *same)
        start = opened(config, ("0", "1"), None)  # not the model's classes 0 and 1
        net = DiT(config.model)
        start.load(net)
        assert torch.allclose(net.label_embed.weight, row.expand(3, -1))
        assert start.event.new_classes == ["0", "1"]
        notes = " ".join(start.event.notes)
        assert "classes have no names" in notes
        assert ("no trained null row" in notes) == (classes == 6)


@pytest.mark.slow
def test_an_official_s8_checkpoint_goes_on_with_some_of_imagenets_classes(tmp_path: Path):
    """A file without any option: everything is read from the weights; classes by name or synset."""
    dit = random_dit(DiTConfig.named("DiT-S/8"))
    torch.save(official_state(dit), tmp_path / "DiT-S-8.pt")
    names = ("goldfish", "a cat of mine", imagenet.synsets()[207])
    x = torch.randn(6, 4, 32, 32, generator=torch.Generator().manual_seed(0))
    config = configs.load(
        "imagenet256-s8",
        [f"train.init={tmp_path / 'DiT-S-8.pt'}", "model.num_classes=3", "train.batch_size=4",
         "train.steps=3", "sample.every=0", "evaluate.every=0", "train.log_every=1", "data.workers=0"],
    )  # fmt: skip
    events = run(config, tmp_path / "run", dataset=Images(x, torch.arange(6) % 3, names))
    [event] = [event for event in events if isinstance(event, Initialized)]
    assert (event.classes, event.new_classes) == (["goldfish", imagenet.synsets()[207]], ["a cat of mine"])
    assert isinstance(events[-2], Saved)
    table = weights(tmp_path / "run")[f"ema/{LABELS}"]
    assert torch.allclose(table, dit.label_embed.weight[[1, 1000, 207, 1000]], atol=1e-3)
    assert load(tmp_path / "run", device="cpu").class_names == names


OTHERS = {
    "shape": ("model.hidden_size=32", "model.depth=3", "model.num_heads=4", "model.mlp_ratio=2"),
    "patch": ("model.patch_size=2",),
    "block": ("model.conditioning=cross_attention",),
    "flow": ("diffusion.schedule=flow", "diffusion.prediction=velocity", "diffusion.objective=simple"),
    "fields": ("diffusion.schedule=flow", "diffusion.prediction=velocity", "diffusion.objective=simple",
               "diffusion.prediction.tells=alpha"),
    "schedule": ("diffusion.schedule.steps=500", "diffusion.prediction=x0"),
}  # fmt: skip


@pytest.mark.parametrize("name", OTHERS)
def test_a_recipe_that_does_not_fit_is_refused_with_the_overrides_that_make_it_fit(
    name: str, tmp_path: Path, base: Path
):
    """In both directions, and pasted they do. Nothing is written."""
    other = tmp_path / "other"
    run(tiny("train.steps=1", *OTHERS[name], recipe="digits-paper"), other)
    for model, own in ((base, OTHERS[name]), (other, ())):
        with pytest.raises(
            UsageError, match=r"does not fit this recipe: .* is .* there and .* here"
        ) as refused:
            run(tuned(model, *own), tmp_path / "new")
        assert not (tmp_path / "new").exists()
        pasted = shlex.split(str(refused.value).rpartition("; add ")[2])
        fits = tuned(model, *own, *pasted)
        opened(fits, digits().class_names, None).load(DiT(fits.model))


def test_other_channels_other_latents_and_new_classes_that_are_not_trained_are_refused(
    tmp_path: Path, base: Path
):
    with pytest.raises(UsageError, match=r"input has 1 channel and the data 3; use data with 1 channel$"):
        opened(tuned(base, "model.in_channels=3"), ("0",), None)
    exported = tmp_path / "latent"
    info = AutoencoderInfo("ae-1", "0" * 64, "1" * 64, 0.5, 1, 8)
    dataclasses.replace(load(base, device="cpu")).save_pretrained(exported)
    manifest = json.loads((exported / "manifest.json").read_text())
    manifest["state"]["autoencoder_info"] = info._asdict()
    (exported / "manifest.json").write_bytes(sealed({k: v for k, v in manifest.items() if k != "sha256"}))
    for changed in ({"encoder_sha256": "2" * 64}, {"scale": 0.6}):
        with pytest.raises(UsageError, match=r"trained on the latents of ae-1 \(scale 0\.5\).*ae-2"):
            opened(tuned(exported), ("0",), info._replace(name="ae-2", **changed))
    assert opened(tuned(exported), ("0",), info).event.notes == []
    for path, latents in ((exported, info._replace(encoder_sha256="")), (base, info)):
        [note] = opened(tuned(path), ("0",), latents).event.notes
        assert note.endswith("latents is not recorded, so it was not compared")
    with pytest.raises(UsageError, match=r"'zebra' are new to .* but train\.freeze excludes label_embed"):
        opened(tuned(base, 'train.freeze=["label_embed.*"]'), ("0", "zebra"), None)


def test_the_position_table_of_another_grid_is_the_same_function():
    """Equal at the same grid; at twice the grid every second position is an old one."""
    small, large = position_table(16, 4, 6), position_table(16, 8, 12, span=(4, 6))
    assert torch.equal(position_table(16, 4, 6, span=(4, 6)), small)
    assert torch.equal(large.reshape(8, 12, 16)[::2, ::2], small.reshape(4, 6, 16))
    own = DiTConfig(8, 2, 1, 16, 1, 2, 3)
    for span in (4, (4, 4)):
        stated = dataclasses.replace(own, position={"name": "sincos", "span": span})
        assert torch.equal(DiT(stated).position, DiT(own).position)
        assert DiTConfig(**json.loads(json.dumps(stated.to_json()))) == stated
    assert own.to_json()["position"] == "sincos"
    with pytest.raises(UsageError, match=r"model\.position\.span must be at least 1 on both sides"):
        dataclasses.replace(own, position={"name": "sincos", "span": [0, 4]})


def test_another_resolution_needs_the_span_of_the_model(tmp_path: Path, base: Path):
    """2x2 tokens before, 4x4 now. The span is part of the model: it is saved, loaded and taken on."""
    larger, data = ("model.input_size=16", "train.steps=2", "model.num_classes=2"), named("3", "4", size=16)
    with pytest.raises(
        UsageError, match=r"position table is 2x2 tokens there and 4x4 tokens here; add model\."
    ):
        run(tuned(base, *larger), tmp_path / "run", dataset=data)
    run(tuned(base, *larger, "model.position.span=2"), tmp_path / "run", dataset=data)
    net = load(tmp_path / "run", device="cpu").net
    assert torch.equal(net.position, position_table(16, 4, 4, span=(2, 2)))
    with pytest.raises(UsageError, match=r"add model\.position\.span=2$"):
        opened(tuned(tmp_path / "run", *larger), ("3", "4"), None)
    opened(tuned(tmp_path / "run", *larger, "model.position.span=4"), ("3", "4"), None)  # as the user says


def test_frozen_weights_stay_bit_identical_and_have_no_state(tmp_path: Path, base: Path):
    patterns = ["blocks.0.attn.*", "patch_embed.*"]
    config = tuned(base, "train.steps=5", f"train.freeze={json.dumps(patterns)}", "ema.decay=0.5")
    weight_decay = "optimizer.algorithm.weight_decay=0.1"
    run(configs.changed(config, [weight_decay]), tmp_path / "run")
    found, before = weights(tmp_path / "run"), averages(base)
    frozen = [key for key in before if key.startswith(("blocks.0.attn.", "patch_embed."))]
    assert len(frozen) == 6
    for key, value in before.items():
        for part in ("model", "ema"):
            same = found[f"{part}/{key}"].view(torch.int32).equal(value.view(torch.int32))
            assert same == (key in frozen), (part, key)
        assert (f"optimizer/exp_avg/{key}" in found) == (key not in frozen)
    counts = trained.count(config)
    assert counts.all - counts.trained == sum(before[key].numel() for key in frozen)
    planned = plan.plan(config, plan.Hardware())
    assert planned.trained_params == counts.trained
    assert planned.state_bytes == 8 * counts.all + 12 * counts.trained


def test_patterns_that_match_nothing_or_everything_are_refused(base: Path):
    wrong = {
        'train.freeze=["blocks.*.atn.*"]': r"train\.freeze: 'blocks\.\*\.atn\.\*' matches no weight.*\.attn",
        'train.freeze=["*"]': r"train\.freeze matches every weight",
        "lora.rank=2 lora.targets=[\"label_embed\"]": r"lora\.targets: 'label_embed' matches no linear layer",
        'lora.rank=2 lora.also=["labels"]': r"lora\.also: 'labels' matches no weight.* label_embed\.weight",
    }  # fmt: skip
    for words, message in wrong.items():
        with pytest.raises(UsageError, match=message):
            trained.names(tuned(base, *shlex.split(words, posix=False)))
    for words, message in {
        "lora.alpha=2": r"lora\.rank is 0, so the other keys",
        f"train.init={base} lora.rank=2 train.freeze=['blocks.0.*']": r"leave train\.freeze out",
        "lora.rank=2": r"name it with train\.init=MODEL",
    }.items():
        with pytest.raises(UsageError, match=message):
            tiny(*words.split())


def test_old_configs_are_unchanged():
    """Runs of earlier versions resume: the new keys are not in the config unless they are set."""
    value = tiny().to_json()
    assert "lora" not in value
    assert not {"init", "freeze"} & value["train"].keys()
    assert RunConfig.from_json(value) == tiny()
    full = tuned("x", "lora.rank=3", "model.position.span=2")
    assert RunConfig.from_json(json.loads(json.dumps(full.to_json()))) == full


@pytest.mark.slow
def test_two_ranks_tune_as_one_process(tmp_path: Path, base: Path):
    """Frozen weights and LoRA, copied (DDP) and sharded (FSDP2): equal to one process, and resumable."""
    kinds = {"freeze": ('train.freeze=["blocks.0.*", "patch_embed.*"]',), "lora": ("lora.rank=2",)}
    paper = tiny(recipe="digits-paper").to_json()["diffusion"]
    own = [configs.override(f"diffusion.{key}", value) for key, value in paper.items()]
    common = (*own, f"train.init={base}", "optimizer.learning_rate=1e-4", "optimizer.warmup_steps=0")

    def job(name: str, steps: int, *more: str) -> Job:
        return Job((*common, f"train.steps={steps}", *more), out=str(tmp_path / name))

    jobs = {}
    for name, more in kinds.items():
        for parallel in ("ddp", "fsdp"):
            how = (*more, f"engine.parallel={parallel}")
            jobs |= {f"{name}-{parallel}": job(f"{name}-{parallel}", 6, *how)}
            jobs |= {f"{name}-{parallel} {n}": job(f"{name}-{parallel}-parts", n, *how) for n in (3, 6)}
    found = across(2, jobs, tmp_path)
    assert not [one.error for one in found.values() if one.error]
    for name, more in kinds.items():
        listen = JsonLog(tmp_path / name)
        for event in train(tiny(*common, "train.steps=6", *more), tmp_path / name, device="cpu"):
            listen(event)
        alone = averages(tmp_path / name)
        for parallel in ("ddp", "fsdp"):
            two = tmp_path / f"{name}-{parallel}"
            assert identical(weights(two, 6), weights(Path(f"{two}-parts"), 6))
            assert all(torch.allclose(value, averages(two)[key], atol=1e-6) for key, value in alone.items())
