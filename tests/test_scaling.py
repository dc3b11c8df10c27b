"""The paper's table 4 computed, and the plan of a run against the paper and against measurements."""

from __future__ import annotations

import json
import subprocess
import sys
from contextlib import nullcontext

import pytest
import torch
from torch import Tensor

from scaledit import DiT, DiTConfig, assemble, part
from scaledit.cli import main
from scaledit.config import SampleConfig, load, with_values
from scaledit.diffusion import ClassifierFree, Interval, LinearBeta, LinearFlow, sample
from scaledit.errors import UsageError
from scaledit.models.blocks import Block
from scaledit.scaling import devices, paper
from scaledit.scaling.plan import (
    Hardware,
    activation_bytes,
    describe,
    evaluations,
    plan,
)
from scaledit.training.ranks import Ranks
from scaledit.training.state import TrainState

# A TPU v3 chip has two cores and 123 TFLOP/s (docs.cloud.google.com/tpu/docs/v3); v3-256 counts cores.
TPU_V3_CORE, CORES = 123e12 / 2, 256


@pytest.mark.parametrize("row", paper.table4(), ids=lambda row: f"{row.name}-{row.image_size}-{row.block}")
def test_table_4_is_what_the_paper_prints(row: paper.Computed):
    """The rule is repeated here so that neither the tolerance nor the table can drift."""
    [*printed] = {
        (r["params_millions"], r["gflops"])
        for r in paper.data()["table4_models"]
        if (r["model"], r["image_size"]) == (row.name, row.image_size)
        and r["block"].lower() == row.block.replace("_", "-")
    }
    assert printed == [(row.paper_params_millions, row.paper_gflops)]
    millions, gflops = printed[0]
    assert f"{row.params / 1e6:.0f}" == str(millions)
    computed = row.macs / 1e9
    assert abs(computed / gflops - 1) <= 1e-3 or f"{computed:.2f}" == f"{gflops:.2f}"
    assert row.agrees
    assert len(row.cells()) == len(paper.HEADER)
    for wrong in (row._replace(paper_gflops=gflops * 1.02), row._replace(paper_params_millions=millions + 1)):
        assert not wrong.agrees


def test_table_4_is_complete():
    rows = paper.table4()
    assert len({(row.name, row.image_size, row.block) for row in rows}) == len(rows) == 16
    [xl2] = [r for r in rows if (r.name, r.image_size, r.block) == ("DiT-XL/2", 256, "adaln_zero")]
    assert (xl2.params, xl2.tokens) == (674_834_720, 256)


def test_the_papers_own_run_took_19_and_a_half_hours():
    """XL/2, 400K steps at 5.7 iterations/s on a TPU v3-256 pod."""
    reported = paper.data()["training"]["throughput"]
    config = load("imagenet256-xl2")
    assert (reported["model"], reported["hardware"]) == ("DiT-XL/2", "TPU v3-256 pod")
    speed = reported["iterations_per_second"]
    measured = plan(config, Hardware(TPU_V3_CORE, CORES, price=2.0), speed)
    assert round(measured.hours, 1) == 19.5
    assert measured.device_hours == pytest.approx(400_000 / 5.7 / 3600 * 256)
    assert measured.cost == pytest.approx(measured.device_hours * 2)
    per_second = 118.64e9 * 256 * 3 * 2 * 5.7
    assert measured.utilization == pytest.approx(per_second / (CORES * TPU_V3_CORE), rel=1e-3)
    assert measured.utilization is not None
    forward = plan(config, Hardware(TPU_V3_CORE, CORES, measured.utilization, price=2.0))
    planned, back = forward.to_json(), measured.to_json()
    assert planned.pop("warnings") == back.pop("warnings") == []
    assert planned == pytest.approx(back)
    planned = dict(describe(forward))
    assert planned["time"].startswith("19.5 hours")
    assert planned["speed"] == (
        "5.7 iterations/s on 256 devices, 6.6% of their peak of 61.5e12 FLOP/s in tf32"
    )
    assert planned["training"].startswith("3.64e19 multiply-adds, 7.29e19 FLOP (400,000 steps of batch 256)")


def test_without_a_speed_a_plan_says_what_needs_none():
    """By hand: the multiply-adds of 3 forward passes per training step, 20 bytes per parameter."""
    planned = plan(load("imagenet256-xl2"), Hardware())
    assert (planned.iterations_per_second, planned.hours, planned.device_hours, planned.cost) == (None,) * 4
    assert planned.train_macs == 118_621_421_568 * 3 * 256 * 400_000
    assert planned.train_flops == 2 * planned.train_macs and planned.state_bytes == 20 * 674_834_720
    described = dict(describe(planned))
    assert "7.29e19 FLOP" in described["training"] and described["speed"].startswith("unknown: pass --gpu")
    assert "time" not in described and "12.57 GiB" in described["memory: state"]


@pytest.mark.parametrize(
    ("gpu", "precision", "peak"),
    [
        ("h100", "tf32", 494.7e12),
        ("H100", "bf16", 989.4e12),
        ("a100", "tf32", 156e12),
        ("4090", "fp32", 82.6e12),
    ],
)
def test_hours_of_a_gpu_by_hand(gpu: str, precision: str, peak: float, capsys: pytest.CaptureFixture):
    """The dense peak in the recipe's own precision, which for the paper's is tf32."""
    call = ["plan", "imagenet256-xl2", "--gpu", gpu, "--devices", "8", "--price", "2.5", "--json"]
    assert main([*call, *([] if precision == "tf32" else [f"train.precision={precision}"])]) == 0
    values = json.loads(capsys.readouterr().out)
    hours = 2 * 3 * 118_621_421_568 * 256 * 400_000 / (peak * 8 * 0.4) / 3600
    assert (values["peak"], values["precision"], values["warnings"]) == (peak, precision, [])
    assert values["hours"] == pytest.approx(hours, rel=1e-12)
    assert values["cost"] == pytest.approx(hours * 8 * 2.5, rel=1e-12)


def test_hours_of_a_gpu_become_a_budget(capsys: pytest.CaptureFixture):
    call = ["plan", "--hours", "24", "--gpu", "h100", "--devices", "8"]
    for precision, peak in (("tf32", 494.7e12), ("bf16", 989.4e12)):
        assert main([*call, "--precision", precision, "--json"]) == 0
        values = json.loads(capsys.readouterr().out)
        assert values["budget"] == pytest.approx(24 * 3600 * peak * 8 * 0.4 / 2, rel=1e-12)
    assert main(call) == 0
    assert "494.7e12 FLOP/s in tf32" in capsys.readouterr().out


def test_every_peak_is_dense_and_ordered():
    """Narrower formats are never slower; no entry is a rate with sparsity."""
    for rates in devices.PEAKS.values():
        ordered = [rates[name] for name in ("fp32", "tf32", "bf16") if name in rates]
        assert ordered == sorted(ordered)
        assert rates.keys() <= {"fp32", "tf32", "bf16", "fp16"} and min(rates.values()) > 1e12
        if {"tf32", "bf16"} <= rates.keys() and "fp32" in rates:
            assert rates["bf16"] / rates["tf32"] == pytest.approx(2, rel=0.02)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--peak", "989e12"], "989e12 FLOP/s is the bf16 peak of h100, whose tf32 peak is 494.7e12"),
        (["--peak", "989e12", "--gpu", "h100"], "is more than the tf32 peak of h100, 494.7e12"),
        (["--peak", "312e12"], "is the bf16 peak of a100, whose tf32 peak is 156e12"),
        (["--peak", "1979e12", "train.precision=bf16"], "is the bf16 peak with sparsity of h100"),
        (["--peak", "989e12", "train.precision=bf16"], None),
        (["--peak", "494.7e12"], None),
        (["--peak", "400e12", "--gpu", "h100"], None),
        (["--peak", "61.5e12"], None),
    ],
)
def test_a_peak_that_does_not_fit_is_warned_of(options: list[str], message: str | None, capsys):
    assert main(["plan", "imagenet256-xl2", *options, "--json"]) == 0
    warnings = json.loads(capsys.readouterr().out)["warnings"]
    assert len(warnings) == (message is not None)
    assert main(["plan", "imagenet256-xl2", *options]) == 0
    output = capsys.readouterr().out
    assert ("warning" in output) == (message is not None) and (message or "") in output


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--gpu", "h10"], "unknown device 'h10'; did you mean 'h100'?"),
        (["--gpu", "v100"], "v100 has no tf32 peak (it has fp32, fp16); choose another train.precision"),
        (["--price", "2"], "--price needs the hours, and so a speed"),
        (["--utilization", "0.3"], "--utilization is a share of the peak speed"),
        (
            ["--gpu", "a100", "--utilization", "0.3", "--iterations-per-second", "5"],
            "leave --utilization out",
        ),
        (["--precision", "bf16"], "train.precision=bf16"),
        (["--peak", "nan"], "peak must be FLOP/s"),
        (["--devices", "1e7"], "--devices must be at most 1000000, got 10000000"),
        (["--devices", "1000000000"], "--devices must be at most 1000000"),
        (["--iterations-per-second", "inf"], "iterations per second must be positive, got inf"),
        (["--gpu", "a100", "--price", "-1"], "price of a device-hour must be at least 0"),
    ],
)
def test_plans_of_nothing_exit_2(options: list[str], message: str, capsys: pytest.CaptureFixture):
    assert main(["plan", "imagenet256-xl2", *options]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_without_peak_or_price_a_plan_claims_neither():
    unpriced = plan(load("digits"), Hardware(), 10.0)
    assert unpriced.utilization is None and unpriced.cost is None and unpriced.hours > 0
    assert "cost" not in dict(describe(unpriced)) and "%" not in dict(describe(unpriced))["speed"]


@pytest.mark.parametrize(
    ("call", "names"),
    [
        (lambda c: plan(c, Hardware(1e12, 1, 40)), "utilization.*0.4"),
        (lambda c: plan(c, Hardware(0, 1, 0.4)), "peak"),
        (lambda c: plan(c, Hardware(1e12, 0, 0.4)), "devices"),
        (lambda c: plan(c, Hardware(1e12, 1, 0.4, price=-1)), "price"),
        (lambda c: plan(c, Hardware(1e12, 3, 0.4)), "train.batch_size 256.*3 devices"),
        (lambda c: plan(c, Hardware(), 0.0), "iterations per second"),
        (lambda c: plan(c, Hardware(312e12), 5.7), "333%.*peak"),
    ],
)
def test_impossible_plans_are_refused(call, names: str):
    with pytest.raises(UsageError, match=names):
        call(load("imagenet256-xl2"))


@pytest.mark.parametrize("sampler", ["ddpm", "ddim", "dpm", "unipc", "heun", "euler"])
@pytest.mark.parametrize("scale", [1.0, 1.5])
def test_sampling_cost_is_what_the_sampler_runs(sampler: str, scale: float):
    """Counted on the network itself: forward passes for one image."""
    config = load("digits")
    values = {"sample.sampler": sampler, "sample.sampler.steps": 6}
    config = with_values(config, {**values, "sample.guidance.classifier_free.scale": scale})
    settings = config.sample
    net, seen = assemble.network(config.model, seed=0).eval(), 0

    def count(module: torch.nn.Module, inputs: tuple[Tensor, ...]) -> None:
        nonlocal seen
        seen += len(inputs[0])

    net.register_forward_pre_hook(count)
    denoiser = assemble.guided(assemble.denoiser(config.diffusion, net), settings.guidance)

    class Zero:
        def initial(self) -> Tensor:
            return torch.zeros(1, *config.model.shape)

        def step(self, i: int) -> Tensor:
            return self.initial()

    sample(denoiser, settings.sampler, Zero(), torch.tensor([3]))
    assert evaluations(settings.sampler, settings.guidance, config.diffusion.schedule) == seen
    planned = plan(config, Hardware(), 1.0)
    assert planned.sampling_macs == seen * planned.macs


def test_sampling_cost_of_a_sampler_with_error_control_is_its_most():
    config = with_values(load("digits"), {"sample.sampler": "adaptive"})
    made = plan(config, Hardware(), 1.0)
    assert made.sampling_evaluations == 2 * config.sample.sampler.total_evaluations()  # guided
    assert any("decides its steps for each image" in warning for warning in made.warnings)
    limited = (ClassifierFree(scale=2.0), Interval(high=0.5))
    assert evaluations(config.sample.sampler, limited, LinearFlow()) == pytest.approx(1500, abs=2)


def test_sampling_cost_of_the_paper():
    assert evaluations(SampleConfig().sampler, (), LinearBeta()) == 250


def test_state_is_20_bytes_per_parameter():
    """Counted on a real training state: weights, gradients, Adam's two moments, EMA."""
    config = load("digits", ["train.batch_size=4", "model.depth=2"])
    state = TrainState.create(config, assemble.dataset(config.data), Ranks(torch.device("cpu")))
    state.train_step()
    tensors = [*state.net.parameters(), *state.ema.parameters()]
    tensors += [p.grad for p in state.net.parameters() if p.grad is not None]
    tensors += [moment for s in state.optimizer.state.values() for key, moment in s.items() if key != "step"]
    assert plan(config, Hardware(), 1.0).state_bytes == sum(t.nbytes for t in tensors)


def saved_bytes(config: DiTConfig, batch: int, precision: str) -> int:
    """Bytes that autograd keeps of one forward pass: each storage once, without parameters and buffers."""
    net, saved = DiT(config), {}
    own = {t.untyped_storage().data_ptr() for t in (*net.parameters(), *net.buffers())}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor  # kept alive by the graph, so that no address is used twice

    x, t, y = torch.randn(batch, *config.shape), torch.full((batch,), 7.0), torch.arange(batch)
    cast = torch.autocast("cpu", torch.bfloat16) if precision == "bf16" else nullcontext()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor), cast:
        out = net(x, t, y)
    assert out.requires_grad
    return sum(saved.values())


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("block", part.names(Block))
def test_activation_memory_against_autograd(block: str, precision: str):
    """The closed form is an estimate (other attention kernels keep a little more or less): 3 %."""
    paper_size = DiTConfig.named("DiT-S/4", conditioning=block)
    odd = DiTConfig((24, 16), 2, 3, 64, 5, 4, 10, conditioning=block, mlp_ratio=2.0, learn_sigma=False)
    for config, batch in ((paper_size, 2), (odd, 6)):
        measured = saved_bytes(config, batch, precision)
        assert activation_bytes(config, batch, precision) == pytest.approx(measured, rel=0.03)


def test_the_batch_of_a_device_is_what_memory_is_planned_for():
    config = load("imagenet256-xl2", ["train.accumulate=4"])
    shared = plan(config, Hardware(1e12, 8, 0.4))
    assert shared.micro_batch == 8
    assert shared.activation_bytes == activation_bytes(config.model, 8, "tf32")
    assert shared.hours == pytest.approx(plan(config, Hardware(1e12, 1, 0.4)).hours / 8)


def test_plans_need_no_torch():
    code = "import sys, scaledit.scaling.plan, scaledit.scaling.paper as p; p.table4(); "
    code += "print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
