"""What a pipeline refuses, instead of rounding it, guessing it or handing out black pictures."""

from __future__ import annotations

import copy
import json
import os
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from scaledit import DiT, Pipeline, assemble, machine
from scaledit.autoencoders.decoder import Decoder
from scaledit.cli import main
from scaledit.config import RunConfig
from scaledit.data.latents import AutoencoderInfo
from scaledit.data.sets import Images, digits
from scaledit.diffusion import (
    DDPM,
    ClassifierFree,
    LinearBeta,
    LogSNR,
    Noise,
    NonFiniteError,
    Prediction,
    Schedule,
    UniPC,
    sample,
)
from scaledit.errors import RunError, UsageError
from scaledit.images import to_uint8
from scaledit.sampling.generate import generate
from scaledit.sampling.request import Request, labels_at, parse_classes
from scaledit.training.dit import train
from tiny import tiny

NAMES = ("cat", "3", "1", "dog, a small one", "name:9", "2", "cat", "7", "8", "9")


def made(*overrides: str, names: tuple[str, ...] = tuple("0123456789")) -> Pipeline:
    """Of a small network as initialized, its last layer changed so that its answers depend on all."""
    run = tiny("diffusion.schedule=linear", "sample.cfg_scale=1.0", *overrides)
    torch.manual_seed(0)
    net = DiT(run.model).eval()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(torch.randn(parameter.shape) * 0.02)
    return Pipeline(run, net, torch.device("cpu"), names, {"run": "tiny", "step": 0})


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    return made()


# ---- numbers that are not finite -------------------------------------------------------------------------


class Breaks:
    """A denoiser that answers with nan for one row, from one time on."""

    schedule: Schedule = LinearBeta()

    def __call__(self, x_t: Tensor, t: Tensor, y: Tensor | None) -> Prediction:
        x0 = torch.full_like(x_t, 0.5)
        x0[(t < 500) & (torch.arange(len(x_t)) == 2)] = torch.nan
        return Prediction(x0, x_t, None)


@pytest.mark.parametrize("sampler", [DDPM(10), UniPC(10)])
def test_the_step_and_the_rows_where_numbers_stop_being_finite_are_named(sampler):
    grid = sampler.grid(LinearBeta()).tolist()
    step = next(i for i, t in enumerate(grid) if t < 500)
    steps_seen = []
    with pytest.raises(NonFiniteError) as caught:
        sample(Breaks(), sampler, Noise(0, range(5), (1, 2, 2)), on_step=lambda i, _: steps_seen.append(i))
    error = caught.value
    assert (error.rows, error.step, error.t, error.s) == ([2], step, grid[step], grid[step + 1])
    when = f"first in step {step + 1} of 10, from time {grid[step]:g} to {grid[step + 1]:g}, in row 2"
    assert when in str(error)
    assert steps_seen == list(range(step))  # no further step was made


def test_noise_that_is_not_finite_is_told_from_a_step_that_is_not():
    class Bad(Noise):
        def initial(self) -> Tensor:
            x = super().initial()
            x[1, 0, 0, 0] = torch.inf
            return x

    with pytest.raises(RunError, match="the noise that sampling starts from is not finite in row 1"):
        sample(Breaks(), DDPM(4), Bad(0, range(3), (1, 2, 2)))


def test_weights_guidance_and_decoders_that_break_are_named(pipeline: Pipeline, tmp_path: Path):
    bad = replace(pipeline, net=copy.deepcopy(pipeline.net))
    with torch.no_grad():
        bad.net.blocks[1].mlp.fc1.bias[3] = torch.nan
    said = (
        r"not finite: first in step 1 of 4, from time 999 to \d+, in images 5, 6; "
        r"the model's weights are not finite: blocks.1.mlp.fc1.bias$"
    )
    with pytest.raises(RunError, match=said):
        bad([0, 1], start=5)
    request = Request((0, 1), bad.settings(), num=4)
    with pytest.raises(RunError, match="not finite"):
        generate(bad, request, tmp_path / "x.npz")
    assert not (tmp_path / "x.npz").exists()
    with pytest.raises(
        RunError,
        match=r"image 0; the weights are finite: try less .* classifier_free, scale 1e\+38",
    ):
        pipeline([3], cfg_scale=1e38)

    class Autoencoder:
        name, sha256, encoder_sha256, scale, channels, downsampling = "broken", "0" * 64, "", 1.0, 1, 1

        def decode(self, z: Tensor) -> Tensor:
            """The last 4 of 20 come by themselves: the second of those breaks."""
            z = z.clone()
            z[1 : 2 if len(z) == 4 else 1] = torch.nan
            return z

    decoder = Decoder("broken", AutoencoderInfo("broken", "0" * 64, "", 1.0, 1, 1))
    decoder.__dict__["autoencoder"] = Autoencoder()
    said = "the decoder returned pixels that are not finite, first for image 17, .*: broken, fp32"
    with pytest.raises(RunError, match=said):
        replace(pipeline, decoder=decoder)([0] * 20)


def test_bytes_are_made_of_finite_pixels_only():
    x = torch.zeros(3, 1, 2, 2)
    assert to_uint8(x).shape == (3, 2, 2, 3)
    for value in (torch.nan, torch.inf, -torch.inf):
        x[2, 0, 1, 1] = value
        with pytest.raises(RunError, match="1 of 3 images have pixels that are not finite, first image 2"):
            to_uint8(x)


# ---- guidance --------------------------------------------------------------------------------------------


def test_guidance_without_a_trained_null_label_is_refused(tmp_path: Path):
    never = made("model.class_dropout=0.0")
    assert never([3]).shape == (1, 8, 8, 3)
    inside = assemble.denoiser(never.config.diffusion, never.net)
    assert assemble.guided(inside, [ClassifierFree(scale=1.0)]) is inside
    for call in (
        lambda: never([3], cfg_scale=1.5),
        lambda: never.settings(cfg_scale=0.0),
        lambda: never.sample([3], replace(never.config.sample, guidance=(ClassifierFree(scale=1.5),))),
        lambda: assemble.guided(inside, [ClassifierFree(scale=1.5)]),
    ):
        with pytest.raises(UsageError, match=r"cannot be guided: it was trained with model.class_dropout=0"):
            call()
    inside = assemble.denoiser(never.config.diffusion, made().net)
    assert assemble.guided(inside, [ClassifierFree(scale=2.0, channels=3)]) == ClassifierFree(inside, 2.0, 3)
    # A run that says so is refused when it begins.
    for key in ("sample", "evaluate"):
        config = tiny("model.class_dropout=0.0", "sample.cfg_scale=1.0", f"{key}.cfg_scale=1.5")
        with pytest.raises(
            UsageError, match=f"^{key}.guidance is classifier_free, scale 1.5, .* use no guidance "
        ):
            next(train(config, tmp_path / "run", device="cpu"))
    assert not (tmp_path / "run").exists()


def test_guidance_of_one_class_is_warned_of_once():
    one = made("model.num_classes=1", names=("all",))
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("default")
        one([0])
        assert not said
        one([0], cfg_scale=1.5)
        one([0], cfg_scale=1.5)
    assert [str(one.message) for one in said] == [
        "guidance is classifier_free, scale 1.5, channels 3, but this model has only one class, so "
        "guidance can only enlarge its errors; use no guidance"
    ]


def test_a_model_has_as_many_classes_as_its_data(tmp_path: Path):
    """Unless it was begun with more, when that was not refused: then it goes on."""
    config = tiny("train.steps=2", "checkpoint.every=1")
    data = digits()
    nine = Images(data.images, data.labels.clamp(max=8), data.class_names[:9])
    refused = "the data has 9 classes, but the model has 10; the others .* trained; set model.num_classes=9"
    with pytest.raises(UsageError, match=refused):
        next(train(config, tmp_path / "run", device="cpu", dataset=nine))
    assert not (tmp_path / "run").exists()
    for _ in train(config, tmp_path / "run", device="cpu", dataset=data):
        pass
    changed = replace(config.data, changed="accept")  # its record says ten classes
    more = replace(config, train=replace(config.train, steps=3), data=changed)
    assert list(train(more, tmp_path / "run", device="cpu", dataset=nine, resume="auto"))


# ---- seeds and classes -----------------------------------------------------------------------------------

WRONG_SEEDS = (
    1.5,
    1.0,
    "1",
    True,
    None,
    np.float64(2),
    np.bool_(True),
    torch.tensor(1.5),
    2**64,
    -(2**63) - 1,
)


@pytest.mark.parametrize("seed", WRONG_SEEDS, ids=repr)
def test_a_seed_is_a_whole_number_of_64_bits(pipeline: Pipeline, seed):
    for call in (
        lambda: pipeline([3], seed=seed),
        lambda: pipeline.sample([3], replace(pipeline.config.sample, seed=seed)),
        lambda: Noise(seed, [0], (2,)).initial(),
        lambda: replace(pipeline.config, train=replace(pipeline.config.train, seed=seed)),
        lambda: replace(pipeline.config, evaluate=replace(pipeline.config.evaluate, seed=seed)),
    ):
        with pytest.raises(UsageError, match=r"seed must (be a whole number|fit into 64 bits)"):
            call()


def test_seeds_of_any_whole_kind_are_the_same_seed(pipeline: Pipeline):
    wanted = pipeline([3], seed=5)
    for seed in (np.int64(5), np.uint8(5), torch.tensor(5)):
        assert np.array_equal(pipeline([3], seed=seed), wanted)  # type: ignore[arg-type]
    ends = [pipeline([3], seed=seed) for seed in (2**64 - 1, -1, -(2**63), 2**63)]
    assert np.array_equal(ends[0], ends[1])
    assert np.array_equal(ends[2], ends[3])
    assert not np.array_equal(ends[0], ends[2])


def test_classes_are_whole_numbers_or_names(pipeline: Pipeline):
    for classes in ([3, 1], (np.int64(3), np.uint8(1)), np.array([3, 1]), torch.tensor([3, 1]), ["3", 1]):
        assert pipeline.labels(classes).tolist() == [3, 1]
    assert pipeline.labels(3).tolist() == pipeline.labels("3").tolist() == [3]
    for wrong in ([1.5], [1.0], 1.5, [True], np.array([1.0]), torch.tensor([True]), [None], [[1]]):
        with pytest.raises(UsageError, match="a class must be a whole number, got"):
            pipeline(wrong)  # type: ignore[arg-type]
    for wrong, says in (([10], "class 10 is out"), ([-1], "class -1 is out"), (["10"], "unknown class '10'")):
        with pytest.raises(UsageError, match=says):
            pipeline(wrong)
    for option, value, says in (
        ("start", -1, "start must be at least 0"),
        ("start", 1.5, "start must be a whole number"),
        ("start", 2**63, "start must be at most"),
        ("batch_size", 0, "batch_size must be at least 1"),
        ("batch_size", 2.5, "batch_size must be a whole number"),
        ("steps", 2.5, "steps must be a whole number"),
        ("steps", True, "steps must be a whole number"),
        ("steps", 1001, "steps 1001 exceeds diffusion.schedule.steps 1000"),
        ("cfg_scale", float("nan"), "cfg_scale must be finite"),
        ("cfg_scale", "1.5", "cfg_scale must be a number"),
        ("cfg_channels", "four", "cfg_channels must be a number of channels or all, got 'four'"),
        ("cfg_channels", 0, "cfg_channels must be at least 1"),
        ("sampler", "plms", "unknown sampler 'plms'"),
    ):
        with pytest.raises(UsageError, match=says):
            pipeline([3], **{option: value})


def test_a_name_and_a_number_of_two_classes_are_told_apart():
    named, said = made(names=NAMES), []

    def parsed(text: str) -> list[int]:
        said.clear()
        return list(parse_classes(text, named, said.append))

    assert named.labels(["3", 3, "1", 1]).tolist() == [1, 3, 2, 1]
    assert parsed("3") == [1]
    assert said == [
        "class 3 is read as the name of class number 1, while class number 3 is 'dog, a small one'; write "
        "name:3 or number:3 to choose"
    ]
    for text, wanted in (
        ("name:3,number:3", [1, 3]),
        ("0, 4 ,number:9", [0, 4, 9]),
        ("dog, a small one", [3]),
        ("name:9", [4]),  # a class is called so
        ("7", [7]),
        ("9", [9]),
    ):
        assert parsed(text) == wanted
        assert not said
    for text, says in (
        ("cat", r"2 classes are called 'cat'; choose one by its number: 0 or 6"),
        ("number:cat", "the number of a class must be a whole number, got 'cat'"),
        ("number:10", "class 10 is out of range"),
        ("1.5", "unknown class '1.5'"),
        ("1e1", "unknown class '1e1'"),
        ("²", "unknown class '²'"),
        ("", "unknown class ''"),
    ):
        with pytest.raises(UsageError, match=says):
            parsed(text)


# ---- more than there is ----------------------------------------------------------------------------------


def peta(config: Callable[[], object]) -> None:
    says = r"would take [\d,.e+]+ [TPE]B, more than the [\d.]+ [GT]B (of memory that|free at)"
    with pytest.raises(UsageError, match=says):
        config()


def test_what_is_larger_than_the_machine_is_refused_by_what_it_would_take(pipeline: Pipeline, tmp_path: Path):
    settings, huge = pipeline.config.sample, 10**13
    peta(lambda: Request((0, 1), settings, num=huge).labels())
    peta(lambda: Request((0, 1), settings, per_class=huge).labels())
    peta(lambda: generate(pipeline, Request((0, 1), settings, num=huge), tmp_path / "x.npz"))
    peta(lambda: generate(pipeline, Request((0, 1), settings, num=huge), tmp_path / "parts"))
    assert not list(tmp_path.iterdir())
    for change in (
        "model.depth=1000000000",
        "model.hidden_size=1000000000",
        "train.batch_size=10000000000000",
    ):
        peta(lambda change=change: next(train(tiny(change), tmp_path / "run", device="cpu")))
    for change in ("sample.per_class", "evaluate.num"):
        section = change.partition(".")[0]
        config = tiny(f"{change}={huge}", f"{section}.every=1")
        peta(lambda config=config: next(train(config, tmp_path / "run", device="cpu")))
    peta(lambda: assemble.network(replace(tiny().model, depth=10**9), seed=0))
    assert not list(tmp_path.iterdir())
    for key, named in (("sample.steps", "sample.sampler"), ("diffusion.steps", "diffusion.schedule")):
        says = f"{named}.steps must be at most 1,000,000, got 10,000,000,000,000"
        with pytest.raises(UsageError, match=says):
            tiny(f"{key}={huge}")
    with pytest.raises(UsageError, match="start and the number of images together must be at most"):
        Request((0,), settings, start=2**63 - 1, num=2)


def test_a_batch_too_large_for_the_network_is_refused(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch):
    """By the memory there is: 64 KB, here."""
    monkeypatch.setattr(machine, "memory", lambda device="cpu": 1 << 16)
    assert pipeline([0] * 16, batch_size=4).shape == (16, 8, 8, 3)
    with pytest.raises(UsageError, match=r"sampling 200 images at once would take .* a smaller batch_size"):
        pipeline([0] * 200, batch_size=1000)
    with pytest.raises(UsageError, match=r"300 images at once would take 76.8 kB, more than the 65.5 kB of"):
        pipeline([0] * 300, batch_size=4)


def test_the_memory_of_this_machine_is_its_own_or_its_containers():
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert machine.peak_memory() < machine.memory() <= physical


# ---- the command line ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("pipeline") / "model"
    return made(names=NAMES).save_pretrained(out)


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (["--cfg-scale", "nan"], 2, "cfg_scale must be finite, got nan"),
        (["--cfg-scale", "inf"], 2, "cfg_scale must be finite, got inf"),
        (["--cfg-scale", "1e38"], 1, "numbers that are not finite: first in step"),
        (["--seed", "18446744073709551616"], 2, "seed must fit into 64 bits"),
        (
            ["--seed", "1e30"],
            2,
            "seed must fit into 64 bits, from -2^63 to 2^64 - 1; got 1000",
        ),
        (["--seed", "1.5"], 2, "--seed must be a whole number, got '1.5'"),
        (["--num", "1000000000000"], 2, "would take"),
        (["--steps", "1000000000000"], 2, "steps must be at most 1,000,000, got 1,000,000,000,000"),
        (["--steps", "1001"], 2, "exceeds diffusion.schedule.steps"),
        (["--classes", "1.5"], 2, "unknown class '1.5'"),
    ],
)
@pytest.mark.parametrize("command", ["sample", "generate"])
def test_the_command_line_refuses_what_a_config_refuses(
    command: str, words: list[str], code: int, says: str, folder: Path, tmp_path: Path, capsys
):
    num = [] if "--num" in words else ["--num", "3"]
    out = tmp_path / "x.npz"
    assert main([command, str(folder), *num, *words, "--out", str(out)]) == code
    error = capsys.readouterr().err
    assert says in error
    assert "Traceback" not in error
    assert not out.exists()


def test_the_command_line_says_which_class_was_taken(folder: Path, tmp_path: Path, capsys):
    out = tmp_path / "x.npz"
    words = ["sample", str(folder), "--per-class", "1", "--out", str(out), "--sampler", "unipc", "--json"]
    for classes, wanted in (("3", 1), ("number:3", 3), ("name:3", 1)):
        assert main([*words, "--classes", classes]) == 0
        said = capsys.readouterr()
        assert np.load(out)["arr_1"].tolist() == [wanted]
        assert ("class 3 is read as the name of class number 1" in said.err) == (classes == "3")
        # And how: times that a sampler chose are part of the origin.
        origin = json.loads(said.out)
        assert origin["sampler"] == UniPC(4, LogSNR()).to_json()


def test_times_are_part_of_what_a_batch_is(pipeline: Pipeline):
    """So that parts sampled at other times do not mix with these: a sampler that chooses by the schedule says
    what it chose."""

    def times(of: Pipeline, **how: object) -> str:
        return Request((0,), of.settings(**how), num=2).origin(of)["sampler"]["times"]["name"]  # type: ignore

    flow = made("diffusion.schedule=flow", "diffusion.prediction=velocity")
    assert times(pipeline, sampler="ddim") == times(flow, sampler="dpm") == "even"
    assert times(pipeline, sampler="dpm") == "log_snr"
    assert times(pipeline, sampler={"name": "ddim", "times": "quadratic"}) == "quadratic"
    assert labels_at("equal", range(2**63 - 2, 2**63), (4, 5), 0).tolist() == [4, 5]


def test_configs_from_before_still_open():
    config = tiny("model.class_dropout=0.0", "sample.cfg_scale=1.5")
    assert RunConfig.from_json(config.to_json()) == config
