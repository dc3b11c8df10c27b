"""LoRA: what is trained, merged equals unmerged, and PEFT opens what is exported."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from layouts import distance, inputs, random_dit
from saved import identical, weights
from scaledit import DiT, assemble, checkpoint, load
from scaledit.cli import main
from scaledit.config import RunConfig, trained
from scaledit.errors import RunError, UsageError
from scaledit.interop.convert import open_model, write
from scaledit.models.lora import LoRALinear, attach
from scaledit.pipeline import Pipeline
from test_fine_tuning import averages, named, tuned
from test_training import run
from tiny import tiny

MERGED = 1e-5
"""The largest difference of merged and unmerged outputs over the largest output."""
RANK = ("lora.rank=3", "lora.alpha=6", "optimizer.learning_rate=0.01")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An exported model in which every layer contributes to the output, as if trained for ten steps."""
    config = tiny(recipe="digits-paper")
    names, net = tuple(map(str, range(10))), random_dit(config.model)
    pipeline = Pipeline(config, net, torch.device("cpu"), names, {"run": config.name, "step": 10})
    return pipeline.save_pretrained(tmp_path_factory.mktemp("base") / "exported")


@pytest.fixture(scope="module")
def adapted(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LoRA run to three classes, one of which the model knows."""
    out = tmp_path_factory.mktemp("lora") / "run"
    config = tuned(base, "train.steps=6", "checkpoint.every=3", "model.num_classes=3", *RANK)
    run(config, out, dataset=named("a", "7", "b"))
    return out


def unmerged(run: Path, part: str = "ema") -> DiT:
    """The network as it is trained, with the tensors of the newest checkpoint."""
    config = RunConfig.from_json(json.loads((run / "config.json").read_text()))
    net = assemble.trainable(config)
    found = weights(run)
    net.load_state_dict({key.removeprefix(f"{part}/"): value for key, value in found.items()
                         if key.startswith(f"{part}/")})  # fmt: skip
    return net.eval()


@torch.no_grad()
def output(net: nn.Module, config: DiT) -> Tensor:
    return net(*inputs(config.config))


def test_the_layer_is_the_papers():
    """y = W x + b + (alpha / r) B A x, and at first y = W x + b."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 4))
    x, before = torch.randn(5, 6), net[0]
    attach(net, ["0"], rank=2, scale=1.5)
    layer = net[0]
    assert isinstance(layer, LoRALinear)
    assert layer.weight is before.weight
    assert torch.equal(layer(x), before(x))
    nn.init.normal_(layer.lora_B.weight)
    term = x @ layer.lora_A.weight.T @ layer.lora_B.weight.T
    assert torch.allclose(layer(x), before(x) + 1.5 * term)
    assert float(layer.lora_A.weight.detach().abs().max()) <= 6**-0.5
    with pytest.raises(UsageError, match="matches 1, which is no linear layer"):
        attach(nn.Sequential(before, nn.GELU()), ["1"], 2, 1.0)


@pytest.mark.parametrize("also", ["[]", '["label_embed.*"]'])
def test_only_the_factors_and_what_is_named_change(tmp_path: Path, base: Path, also: str):
    config = tuned(base, "train.steps=4", "ema.decay=0.5", *RANK, f"lora.also={also}")
    run(config, tmp_path / "run")
    found, before = weights(tmp_path / "run"), averages(base)
    names = trained.names(config)
    for part in ("model", "ema"):
        tensors = {key.removeprefix(f"{part}/"): value for key, value in found.items() if f"{part}/" in key}
        assert set(tensors) == {*before, *trained.shapes(config)}
        assert {key for key in before if not torch.equal(tensors[key], before[key])} == (
            {"label_embed.weight"} if "label" in also else set()
        )
        assert all(bool(tensors[key].any()) for key in names)
    assert {key.split("/", 2)[2] for key in found if key.startswith("optimizer/exp_avg/")} == names
    seeds = [assemble.trainable(tuned(base, *RANK, f"train.seed={seed}")) for seed in (0, 0, 1)]
    first, again, other = (net.get_parameter("blocks.0.attn.qkv.lora_A.weight") for net in seeds)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert not torch.equal(first, seeds[0].get_parameter("blocks.1.attn.qkv.lora_A.weight"))


def test_merged_equals_unmerged_wherever_it_is_read(tmp_path: Path, adapted: Path, base: Path):
    pipeline = load(adapted, device="cpu")
    net = pipeline.net
    assert not [name for name in net.state_dict() if "lora" in name]
    expected = output(unmerged(adapted), net)
    assert distance(output(net, net), expected) < MERGED
    rows = averages(base)["label_embed.weight"][[10, 7, 10, 10]]
    old = DiT(net.config).eval()
    old.load_state_dict({**averages(base), "label_embed.weight": rows})
    assert distance(output(net, net), output(old, net)) > 100 * MERGED
    for to, out in {"scaledit": "exported", "diffusers": "diffusers", "official": "dit.safetensors"}.items():
        assert main(["convert", str(adapted), str(tmp_path / out), "--to", to, "--quiet"]) == 0
    for folder in ("exported", "diffusers"):
        assert identical(averages(tmp_path / folder), averages(adapted))
    assert not open_model(tmp_path / "exported").factors
    model = open_model(adapted, weights="model")
    assert distance(output(model.network(), net), output(unmerged(adapted, "model"), net)) < MERGED
    assert pipeline(["a", 1], steps=2).shape == (2, 8, 8, 3)


def test_peft_opens_the_adapter(
    tmp_path: Path, adapted: Path, base: Path, capsys: pytest.CaptureFixture[str]
):
    """On the model that the run started from, with a class table of the run's size."""
    peft = pytest.importorskip("peft")
    out = tmp_path / "adapter"
    assert main(["convert", str(adapted), str(out), "--to", "peft"]) == 0
    assert main(["convert", str(adapted), str(out), "--to", "peft"]) == 2  # it exists, and is kept
    size = sum(file.stat().st_size for file in out.iterdir())
    assert f"LoRA adapter of rank 3, ema weights, {size / 1e6:.3g} MB" in capsys.readouterr().out
    assert size < 0.5 * (base / "model.safetensors").stat().st_size
    net = load(adapted, device="cpu").net
    plain = {key: value for key, value in averages(base).items() if key != "label_embed.weight"}
    start = DiT(net.config).eval()
    start.load_state_dict(plain, strict=False)
    opened = peft.PeftModel.from_pretrained(start, str(out)).eval()
    assert "torchvision" not in sys.modules
    assert distance(output(opened, net), output(net, net)) < MERGED
    saved = load_file(out / "adapter_model.safetensors")
    theirs = peft.get_peft_model_state_dict(opened)
    assert identical(saved, {key: value.detach() for key, value in theirs.items()})
    merged = opened.merge_and_unload()
    assert distance(output(merged, net), output(net, net)) < MERGED


def test_what_has_no_adapter_or_one_that_does_not_fit_is_refused(tmp_path: Path, adapted: Path, base: Path):
    with pytest.raises(UsageError, match=r"--to peft writes the LoRA factors .* this model has none"):
        write(open_model(base), tmp_path / "out", "peft", lambda done, total: None)
    assert not (tmp_path / "out").exists()
    folder = checkpoint.find(adapted / "checkpoints")[-1]
    opened = checkpoint.open_checkpoint(folder)
    tensors = {part: dict(opened.tensors(part)) for part in ("model", "ema")}
    tensors["ema"]["blocks.0.attn.qkv.lora_A.weight"] = torch.zeros(2, 16)
    begun = checkpoint.begin(tmp_path / "checkpoints", 6)
    checkpoint.finish(begun, 6, tensors, opened.config, world=1, **opened.manifest["state"])
    with pytest.raises(UsageError, match=r"factors of blocks\.0\.attn\.qkv have the shapes \(2, 16\)"):
        open_model(tmp_path)
    damaged = next((tmp_path / "checkpoints").iterdir()) / "ema.safetensors"
    save_file(tensors["model"], damaged)
    with pytest.raises(RunError, match="corrupt"):
        open_model(tmp_path)


def test_a_lora_run_is_itself_a_model_to_start_from(tmp_path: Path, adapted: Path):
    config = tuned(adapted, "train.steps=1", "model.num_classes=3", "optimizer.learning_rate=0")
    run(config, tmp_path / "run", dataset=named("a", "7", "b"))
    found = weights(tmp_path / "run")
    assert all(torch.equal(found[f"model/{key}"], value) for key, value in averages(adapted).items())
