"""Makes the files beside it: what scaledit 0.1.0 wrote, which later versions must read to the bit.

    run-flow/ run-hybrid/         runs stopped in the middle, and run-*.toml, the recipes that they go on with
    run-autoencoder/              the same of an autoencoder
    export-*/                     `scaledit convert --to scaledit`; export-latent makes latents
    autoencoder/ latents/         what decodes them, and what `scaledit encode` made with it of images/
    samples.npz grid.png          `scaledit sample`
    generated.npz.parts/          `scaledit generate`, one part of two
    result.json                   `scaledit evaluate --json`
    study.toml study/             a study with all results and its table, without checkpoints
    digits-table/                 a few rows of docs/studies/digits as it was published
    expected.json expected.npz expected-*.safetensors     what 0.1.0 makes of all these

This was run once, with 0.1.0, and is kept to say how the files were made. It uses the internals of that
version, so that later versions cannot run it; nothing calls it:

    OMP_NUM_THREADS=1 PYTHONPATH=src:tests python tests/made_by_0_1/make.py
"""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file

from made_by_0_1.same import digests, machine
from saved import weights
from scaledit import __version__, cli, load
from scaledit.autoencoders import open_autoencoder
from scaledit.autoencoders.cache import Encoding, encode
from scaledit.data.files import ImageFiles
from scaledit.data.latents import Latents
from scaledit.data.sources import open_source
from scaledit.evaluation.result import Result
from scaledit.training.learner import Learner

HERE = Path(__file__).resolve().parent
FLOW = """
# Flow matching, as in the recipe `digits`, at width 4.

[data]
name = "digits"

[model]
input_size = 8
in_channels = 1
num_classes = 10
patch_size = 2
hidden_size = 4
depth = 2
num_heads = 2

[diffusion]
schedule = "flow"
prediction = "velocity"
objective = "simple"
times = "logit_normal"

[optimizer]
learning_rate = 1e-2
betas = [0.9, 0.99]
warmup_steps = 10
decay = "linear"

[train]
steps = 620
batch_size = 32
log_every = 50

[ema]
warmup = true

[checkpoint]
every = 1000
keep = 2
background = false

[sample]
every = 300
per_class = 1
classes = 5
sampler = "dpm"
steps = 6
cfg_scale = 1.5

[evaluate]
every = 300
reference = "digits"
num = 40
seeds = 1
labels = "real"
"""

HYBRID = """
# The paper's objective with times by importance, which by step 600 are no longer drawn uniformly.

extends = "digits"

[model]
hidden_size = 8
depth = 2
num_heads = 2
conditioning = "cross_attention"
mlp_ratio = 1.0

[diffusion]
schedule = "linear"
prediction = "epsilon"
objective = "hybrid"
times = "loss_second_moment"
steps = 100

[optimizer]
learning_rate = 1e-2
betas = [0.9, 0.999]
weight_decay = 0.01
decay = "cosine"
clip = 1.0

[train]
steps = 612
accumulate = 2
log_every = 100

[checkpoint]
every = 1000
background = false

[sample]
every = 0
sampler = "ddpm"
steps = 10

[evaluate]
every = 0
reference = ""

[log]
tensorboard = false
"""

AUTOENCODER = """
trains = "autoencoder"

[data]
name = "photos"
flip = true

[model]
channels = 4
widths = [2, 2]
groups = 1

[loss]
kl_weight = 1e-5
gradient_weight = 0.5

[optimizer]
learning_rate = 1e-2
betas = [0.9, 0.99]
clip = 1.0

[train]
steps = 204
batch_size = 16
crop = 16
log_every = 50

[checkpoint]
every = 1000
keep = 2
background = false

[evaluate]
num = 4
"""

STUDY = """
title = "a study made by 0.1.0"
recipe = "digits-paper"

[sizes.S]
depth = 1
hidden_size = 8
num_heads = 2

[sizes.B]
depth = 2
hidden_size = 8
num_heads = 2

[common]
train.steps = 30
train.batch_size = 16
train.log_every = 5
optimizer.learning_rate = 1e-3
checkpoint.every = 30
sample.every = 30
sample.steps = 4
sample.per_class = 1
evaluate.every = 15
evaluate.num = 40
evaluate.seeds = 1

[[runs]]
size = ["S", "B"]
model.patch_size = 4

[[runs]]
size = "B"
model.patch_size = 4
model.conditioning = "adaln"

[[measure]]
part = "final"
evaluate.seeds = 2

[[measure]]
part = "guidance"
where.size = "S"
evaluate.cfg_scale = [1.0, 2.0]
"""

LATENT = (
    "data.name=latents",
    "data.path=latents",
    "data.flip=true",
    "model.in_channels=4",
    "model.input_size=4",
    "model.num_classes=3",
    "diffusion.schedule=cosine",
    "diffusion.prediction=start",
    "optimizer.learning_rate=0.03",
)
SHORT = (
    "model.hidden_size=4",
    "train.steps=500",
    "evaluate.every=0",
    "sample.every=0",
    "evaluate.reference=",
)
CALL = {"classes": [0, 2, 1, 2], "seed": 5, "start": 3, "steps": 6}
GUIDANCE = ({"cfg_scale": 1.0}, {"cfg_scale": 2.5, "cfg_channels": "all"}, {"cfg_scale": 1.5})
SAMPLERS = ("ddpm", "ddim", "dpm", "unipc", "heun", "euler")
ROWS = ("S/4", "XL/4 cross_attention")
"""Runs of the published study whose rows are kept."""


def main() -> None:
    assert __version__ == "0.1.0", f"this is {__version__}; what is beside this file was made by 0.1.0"
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)  # so that all paths are relative, and none of this machine gets into a file
        for name, text in (
            ("run-flow", FLOW),
            ("run-hybrid", HYBRID),
            ("run-autoencoder", AUTOENCODER),
            ("study", STUDY),
        ):
            Path(f"{name}.toml").write_text(text.lstrip())
        expected: dict[str, Any] = {"scaledit": __version__, "machine": machine()}
        made = ["run-flow.toml", "run-hybrid.toml", "run-autoencoder.toml", "study.toml"]
        made += runs(expected)
        made += autoencoders(expected)
        made += models(expected)
        made += samples(expected)
        made += studies()
        Path("expected.json").write_text(json.dumps(expected) + "\n")
        made += ["expected.json", "expected.npz"]
        for name in made:
            keep(Path(name), HERE / name)


def call(*words: str, code: int = 0) -> None:
    assert cli.main(list(words)) == code, words


def stopped(out: str, step: int, *words: str) -> None:
    """A training that gets SIGTERM in its step `step`, and so saves and ends at the next one."""
    advance, calls = Learner.advance, 0

    def counted(*arguments: Any, **named: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == step:
            os.kill(os.getpid(), signal.SIGTERM)
        return advance(*arguments, **named)

    Learner.advance = counted  # type: ignore[method-assign]
    try:
        call(*words, f"{out}.toml", "--out", out, "--device", "cpu", code=75)
    finally:
        Learner.advance = advance  # type: ignore[method-assign]


def finished(out: str, *words: str) -> Path:
    """A copy of the stopped run, trained to its end."""
    copy = Path("finished") / out
    shutil.copytree(out, copy)
    call(*words, f"{out}.toml", "--out", str(copy), "--device", "cpu", "--resume", "auto")
    return copy


def runs(expected: dict[str, Any]) -> list[str]:
    expected["finished"] = {}
    made = []
    for name in ("run-flow", "run-hybrid"):
        stopped(name, 600, "train")
        out = finished(name, "train")
        call("convert", str(out), f"model-{name}", "--to", "scaledit", "--weights", "model")
        save_file(load(f"model-{name}", "cpu").net.state_dict(), f"expected-{name}.safetensors")
        expected["finished"][name] = digests(weights(out))
        made += [name, f"expected-{name}.safetensors"]
    return made


def autoencoders(expected: dict[str, Any]) -> list[str]:
    stopped("run-autoencoder", 200, "autoencoder", "train")
    out = finished("run-autoencoder", "autoencoder", "train")
    expected["finished"]["run-autoencoder"] = digests(weights(out))
    shutil.copytree(out / "autoencoder", "autoencoder")
    for label, name in enumerate(("ant", "bee", "cat")):
        (Path("images") / name).mkdir(parents=True)
        for i in range(4):
            coarse = np.random.default_rng((label, i)).integers(0, 100, (3, 3, 3), dtype=np.uint8)
            coarse[..., label] += 150
            image = Image.fromarray(coarse).resize((8, 8), Image.Resampling.BICUBIC)
            image.save(Path("images") / name / f"{i}.png")
    # As `scaledit encode` does, which would write the full path of the autoencoder.
    source = ImageFiles(open_source("images"), 8, threads=1)
    encode(source, open_autoencoder("autoencoder", device="cpu"), Path("latents"), Encoding(per_file=5))
    return ["run-autoencoder", "autoencoder", "images", "latents"]


def models(expected: dict[str, Any]) -> list[str]:
    """Exports, and the images that each model makes."""
    call("train", "run-flow.toml", "--out", "interpolant", "diffusion.schedule=interpolant", *SHORT)
    call("convert", "interpolant", "export-interpolant", "--to", "scaledit")
    call("train", "run-flow.toml", "--out", "latent", *LATENT, *SHORT)
    call("convert", "latent", "export-latent", "--to", "scaledit")
    arrays, expected["images"] = {}, {}
    for model in ("run-flow", "run-hybrid", "export-interpolant", "export-latent"):
        pipeline, calls = (
            load(model, "cpu"),
            [{"classes": [0, 1, 2, 0]}],
        )  # the rest by the run's own settings
        for sampler in SAMPLERS if model.startswith("run-") else ("dpm", "euler"):
            calls += [{**CALL, "sampler": sampler, **guidance} for guidance in GUIDANCE]
        arrays[model] = np.stack([pipeline(**how) for how in calls])
        expected["images"][model] = calls
    latents = Latents.open("latents", flip=True)
    x0, y = latents.batch(np.arange(12) % len(latents), range(100, 112), seed=3)
    arrays |= {"x0": x0.numpy(), "y": y.numpy()}
    call("generate", "run-flow", "--num", "260", "--seed", "3", "--out", "all.npz", "--device", "cpu")
    with np.load("all.npz") as file:
        arrays |= {"generated": file["arr_0"], "labels": file["arr_1"]}
    for name, array in arrays.items():  # grey as one channel
        if array.shape[-1] == 3 and (array == array[..., :1]).all():
            arrays[name] = array[..., :1]
    np.savez_compressed("expected.npz", **arrays)
    return ["export-interpolant", "export-latent"]


def samples(expected: dict[str, Any]) -> list[str]:
    call("sample", "run-flow", "--num", "20", "--seed", "1", "--out", "samples.npz", "--device", "cpu")
    call("sample", "run-flow", "--per-class", "2", "--seed", "2", "--out", "grid.png", "--device", "cpu")
    words = ("--seed", "3", "--shard", "1/2", "--device", "cpu")
    call("generate", "run-flow", "--num", "260", *words, "--out", "generated.npz")
    call("evaluate", "samples.npz", "--reference", "digits", "--json", "judged.json", "--device", "cpu")
    expected["judged"] = json.loads(Path("judged.json").read_text())
    words = ("--reference", "digits", "--num", "40", "--seeds", "2", "--device", "cpu")
    call("evaluate", "run-flow", *words, "--json", "result.json")
    expected["printed"] = [str(figure) for figure in Result.read(Path("result.json")).figures.values()]
    return ["samples.npz", "grid.png", "generated.npz.parts", "result.json"]


def studies() -> list[str]:
    """A small study, done here, and a part of the published one."""
    call("study", "study.toml", "--out", "study", "--join", "--device", "cpu")
    call("study", "study.toml", "--out", "study", "--device", "cpu")
    published, out = HERE.parents[1] / "docs/studies/digits", Path("digits-table")
    out.mkdir()
    for name in ("table.csv", "losses.csv"):
        with (published / name).open(newline="") as file, (out / name).open("w", newline="") as to:
            lines = csv.DictReader(file)
            writer = csv.DictWriter(to, lines.fieldnames or (), lineterminator="\n")
            writer.writeheader()
            writer.writerows(line for line in lines if line["name"] in ROWS)
    about = json.loads((published / "study.json").read_text())
    about["configs"] = {name: config for name, config in about["configs"].items() if name in ROWS}
    (out / "study.json").write_text(json.dumps(about, indent=1) + "\n")
    return ["study", "digits-table"]


LEFT_OUT = ("figures", "report.html", "table.sqlite", "fits.json", "verdicts.json")


def keep(made: Path, out: Path) -> None:
    """Puts a file or folder beside this script, without what need not be kept or names a machine."""
    if out.is_dir():
        shutil.rmtree(out)
    if made.is_file():
        shutil.copyfile(made, out)
        return
    shutil.copytree(made, out, ignore=lambda folder, names: [name for name in names if name in LEFT_OUT])
    for unused in (out / ".run", out / "queue"):  # they name a machine
        shutil.rmtree(unused, ignore_errors=True)
    for run in out.glob("runs/*"):  # of a study only the pictures are read again
        for path in run.iterdir():
            if path.name != "samples":
                shutil.rmtree(path) if path.is_dir() else path.unlink()
    for journal in out.glob("journal.jsonl"):
        lines = [json.loads(line) | {"host": "machine"} for line in journal.read_text().splitlines()]
        journal.write_text("".join(json.dumps(line) + "\n" for line in lines))


if __name__ == "__main__":
    main()
