"""The cost of a run, from its config alone: multiply-adds, hours, money, memory; imports no torch.

    train_macs  = steps (batch (3 macs + extra) + step)    compute.py; a backward pass is two forward ones
    train_flops = 2 train_macs                             vendors count a multiply-add as two
    hours       = train_flops / (peak * devices * utilization) / 3600
    state       = 8 bytes per parameter                    float32: weight, EMA
                  and 4 and the optimizer's (AdamW: 8; Muon: 4 in matrices) per trained parameter
    activations = micro-batch (4 wide + b narrow)          see `activation_bytes`; b = 4, or 2 in bf16
    sampling    = macs * evaluations                       twice that with guidance

If weights are frozen (train.freeze, LoRA), a step costs less than 3 forward passes, since their gradients are
not computed; train_macs is then an upper bound.

Muon's matrix products are divided over the ranks. Not included: encoding images, decoding samples, reading
data, the rest of the optimizer's arithmetic.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from scaledit.config import RunConfig, trained
from scaledit.config.updates import matrix_weights, update_macs
from scaledit.diffusion import Guidance, Sampler, Schedule
from scaledit.diffusion.guidance import active, spent
from scaledit.errors import UsageError, counted
from scaledit.models import flops
from scaledit.models.config import DiTConfig
from scaledit.models.description import Description
from scaledit.scaling.compute import train_macs_of
from scaledit.scaling.devices import peak_warning, terse

BYTES_PER_PARAMETER, BYTES_PER_TRAINED_PARAMETER = 2 * 4, 4
"""Weight and EMA; the gradient. The optimizer says what it keeps."""
FLOPS_PER_MAC = 2


@dataclass(frozen=True)
class Hardware:
    """The devices that a run is planned for.

    peak: dense FLOP/s of one device in the run's precision (see `devices.peak`), None if unknown. devices:
    how many. utilization: the share of the peak that training is assumed to reach (MFU), in (0, 1]. price:
    money per device-hour, in any currency, or None. name: of the device, as in `devices.PEAKS`; a higher peak
    gives a warning.

    Raises UsageError for values out of range.
    """

    peak: float | None = None
    devices: int = 1
    utilization: float = 0.4
    price: float | None = None
    name: str | None = None

    def __post_init__(self) -> None:
        if self.peak is not None and not 0 < self.peak < math.inf:
            raise UsageError(f"peak must be FLOP/s of one device, such as 312e12; got {self.peak}")
        if self.devices < 1:
            raise UsageError(f"devices must be at least 1, got {self.devices}")
        if not 0 < self.utilization <= 1:
            raise UsageError(f"utilization must be in (0, 1], got {self.utilization}; 40 % is 0.4")
        if self.price is not None and not 0 <= self.price < math.inf:
            raise UsageError(f"price of a device-hour must be at least 0, got {self.price}")

    def warnings(self, precision: str) -> tuple[str, ...]:
        """Warns of a peak that these devices, or any, do not have in this precision."""
        warning = "" if self.peak is None else peak_warning(self.peak, precision, self.name)
        return (warning,) if warning else ()

    @property
    def macs_per_hour(self) -> float | None:
        """Multiply-adds of training per hour on all devices; None without a peak."""
        if self.peak is None:
            return None
        return 3600 * self.peak * self.devices * self.utilization / FLOPS_PER_MAC


@dataclass(frozen=True)
class Plan:
    """The cost of a run.

    params: of the model; trained_params: of those and LoRA's, the trained ones. macs: multiply-adds of one
    forward pass at batch 1; train_macs and train_flops: of the full training. optimizer_macs: of the matrix
    products in one step of the optimizer, on all devices together; train_macs includes them.
    peak: as in `Hardware`. utilization: the share of it, None without a peak. iterations_per_second, hours,
    device_hours: None if no speed is known. cost: device_hours * price, None without either. micro_batch:
    images per device and forward pass. state_bytes: per device, exact. activation_bytes: per device, an
    estimate of what one micro-batch keeps for its backward pass, without temporaries and the allocator's
    overhead. sampling_evaluations: forward passes for one image (guidance takes two per evaluation);
    sampling_macs: their multiply-adds. warnings: of a peak that does not fit the device, and of
    batches of other sizes.
    """

    recipe: str
    params: int
    trained_params: int
    macs: int
    batch_size: int
    steps: int
    precision: str
    train_macs: int
    train_flops: int
    optimizer_macs: int
    devices: int
    peak: float | None
    utilization: float | None
    iterations_per_second: float | None
    hours: float | None
    device_hours: float | None
    price: float | None
    cost: float | None
    micro_batch: int
    state_bytes: int
    activation_bytes: int
    sampling_evaluations: int
    sampling_macs: int
    warnings: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        return {**dataclasses.asdict(self), "warnings": list(self.warnings)}


def _of_sizes(config: RunConfig) -> tuple[str, ...]:
    """Warns that batches of other sizes cost something else."""
    if not config.data.buckets:
        return ()
    return (
        f"the costs are those of images of the model's own size, {config.model.height}x{config.model.width} "
        f"inputs, but data.buckets has {', '.join(config.data.buckets)}",
    )


def plan(config: RunConfig, hardware: Hardware, iterations_per_second: float | None = None) -> Plan:
    """The cost of training `config` on `hardware`, at the speed given by its peak and utilization, or at a
    measured `iterations_per_second`, which then gives the utilization (None without a peak). With neither,
    only multiply-adds and memory are known.

    Raises UsageError if the measured speed exceeds the peak, and if the batch does not divide over devices
    and micro-batches.
    """
    train, model, devices = config.train, config.model, hardware.devices
    counts, parameters = flops.count(model), trained.count(config)
    algorithm = config.optimizer.algorithm
    state_bytes = BYTES_PER_PARAMETER * parameters.all + BYTES_PER_TRAINED_PARAMETER * parameters.trained
    state_bytes += algorithm.state_bytes(parameters.trained, matrix_weights(config))
    in_update = update_macs(config)
    train_macs = train_macs_of(config)
    flops_per_step = FLOPS_PER_MAC * train_macs // train.steps
    speed, utilization = _speed(hardware, flops_per_step, iterations_per_second)
    if train.batch_size % (devices * train.accumulate):
        raise UsageError(
            f"train.batch_size {train.batch_size} is not divisible by {counted(devices, 'device')} times "
            f"train.accumulate {train.accumulate}; change one of the three"
        )
    micro_batch = train.batch_size // (devices * train.accumulate)
    hours = None if speed is None else train.steps / speed / 3600
    device_hours = None if hours is None else hours * devices
    passes = evaluations(config.sample.sampler, config.sample.guidance, config.diffusion.schedule)
    return Plan(
        recipe=config.name,
        params=counts.params,
        trained_params=parameters.trained,
        macs=counts.macs,
        batch_size=train.batch_size,
        steps=train.steps,
        precision=train.precision,
        train_macs=train_macs,
        train_flops=train_macs * FLOPS_PER_MAC,
        optimizer_macs=in_update,
        devices=devices,
        peak=hardware.peak,
        utilization=utilization,
        iterations_per_second=speed,
        hours=hours,
        device_hours=device_hours,
        price=hardware.price,
        cost=None if device_hours is None or hardware.price is None else device_hours * hardware.price,
        micro_batch=micro_batch,
        state_bytes=state_bytes,
        activation_bytes=activation_bytes(model, micro_batch, train.precision),
        sampling_evaluations=passes,
        sampling_macs=passes * counts.macs,
        warnings=(
            *hardware.warnings(train.precision),
            *_sampling_warnings(config.sample.sampler),
            *_of_sizes(config),
        ),
    )


def _sampling_warnings(sampler: Sampler) -> list[str]:
    if not sampler.paced:
        return []
    return [
        f"the sampler {sampler.part_name()} decides its steps for each image, so the forward passes of "
        f"sampling are the most that it may take, {sampler.total_evaluations():,} evaluations"
    ]


def _speed(
    hardware: Hardware, flops_per_step: int, measured: float | None
) -> tuple[float | None, float | None]:
    """Iterations per second and utilization; None for what is unknown."""
    peak = None if hardware.peak is None else hardware.peak * hardware.devices
    if measured is None:
        if peak is None:
            return None, None
        return peak * hardware.utilization / flops_per_step, hardware.utilization
    if not 0 < measured < math.inf:
        raise UsageError(f"iterations per second must be positive, got {measured}")
    if peak is None:
        return measured, None
    utilization = measured * flops_per_step / peak
    if utilization > 1:
        raise UsageError(
            f"{measured:g} iterations/s would be {utilization:.0%} of the peak; check that peak is FLOP/s of "
            f"one device, such as 312e12, and that devices is {hardware.devices}"
        )
    return measured, utilization


def evaluations(sampler: Sampler, guidance: Sequence[Guidance], schedule: Schedule) -> int:
    """Forward passes for one image: the sampler's, times those of each guidance part at the time. A weaker
    model of autoguidance counts as much as the model."""
    parts = active(guidance)
    if all(not part.modifies and type(part).spent is Guidance.spent for part in parts):
        return sampler.total_evaluations() * math.prod(part.evaluations for part in parts)
    return round(float(spent(parts, schedule, sampler.evaluated(schedule)).sum()))


def activation_bytes(model: DiTConfig, batch: int, precision: str) -> int:
    """Bytes that a forward pass of `batch` images keeps for its backward pass, without parameters.

    An estimate for the network alone: the tensors that autograd saves for T tokens (in-context: two more) of
    width d, with an MLP of width m and fused attention, which stores no T x T matrix. A LayerNorm saves its
    input x, a Linear its input, an attention q, k, v and its output, GELU its input, a modulation and a gate
    both factors. Each layer of the network's description knows its own (`Layer.activations`,
    `Block.activations`); the sums are, in values per image and block:

                          wide, 4 bytes        narrow, 4 bytes, or 2 under bf16 autocast
        in_context        2 T d  (x)         + 6 T d + 2 T m          LN x; q, k, v, attention; MLP
        cross_attention   3 T d  (x)         + 9 T d + 2 T m + 6 d    and LN x, q, attention; [t, c], k, v
        adaln             4 T d  (x, LN x)   + 6 T d + 2 T m + 4 d    modulated LN x; q, k, v, attention; MLP
        adaln_zero        4 T d  (x, LN x)   + 8 T d + 2 T m + 10 d   and the gates' factors

    (x, LN x and modulated LN x once per norm), and a few values per token for each norm and head. Factors and
    results of matrix products are narrow; bf16 autocast also keeps a bf16 copy of the weights. Registers are
    tokens too, and other parts of the network (model.mlp, model.qk_norm, ...) count their own.
    """
    description = Description.of(model)
    activations = description.activations()
    if precision != "bf16":
        return batch * 4 * (activations.wide + activations.narrow)
    return batch * (4 * activations.wide + 2 * activations.narrow) + 2 * description.cast_params


def scientific(count: float) -> str:
    """1.86e18, as multiply-adds of a training are printed, also in recipes."""
    return f"{count:.2e}".replace("e+", "e")


def describe(plan: Plan) -> list[tuple[str, str]]:
    """Labels and values with units, to print."""
    devices = f"{plan.devices:,} device{'s' if plan.devices > 1 else ''}"
    share = ""
    if plan.utilization is not None and plan.peak is not None:
        share = f", {plan.utilization:.1%} of their peak of {terse(plan.peak)} FLOP/s in {plan.precision}"
    is_partial = plan.trained_params < plan.params
    parts = f", {plan.trained_params:,} trained" if is_partial else ""
    bound = ", at most: frozen weights need no gradients" if is_partial else ""
    rows = [
        ("parameters", f"{plan.params:,}{parts}"),
        ("forward pass", f"{prefixed(plan.macs)} multiply-adds per image"),
        (
            "training",
            f"{scientific(plan.train_macs)} multiply-adds, {scientific(plan.train_flops)} FLOP "
            f"({counted(plan.steps, 'step')} of batch {plan.batch_size:,}{bound})",
        ),
    ]
    if plan.optimizer_macs:
        rows.append(("optimizer", f"{prefixed(plan.optimizer_macs)} multiply-adds per step, on all devices"))
    if plan.iterations_per_second is None or plan.hours is None:
        rows.append(("speed", "unknown: pass --gpu, --peak or --iterations-per-second for the hours"))
    else:
        rows += [
            ("speed", f"{plan.iterations_per_second:,.3g} iterations/s on {devices}{share}"),
            ("time", f"{duration(plan.hours)}, {plan.device_hours:,.4g} device-hours"),
        ]
    if plan.cost is not None:
        rows.append(("cost", f"{plan.cost:,.2f}, at {plan.price:,.2f} per device-hour"))
    return [
        *rows,
        ("memory: state", f"{_bytes(plan.state_bytes)} per device"),
        (
            "memory: activations",
            f"about {_bytes(plan.activation_bytes)} per device "
            f"({plan.micro_batch:,} image{'s' if plan.micro_batch > 1 else ''} at once, {plan.precision})",
        ),
        (
            "sampling",
            f"{prefixed(plan.sampling_macs)} multiply-adds per image "
            f"({counted(plan.sampling_evaluations, 'forward pass', 'forward passes')})",
        ),
        *(("warning", text) for text in plan.warnings),
    ]


def prefixed(count: float) -> str:
    """118.62 G"""
    power = min(max(int(math.log10(count)) // 3, 0), 5)
    return f"{count / 1000**power:.2f} {' kMGTP'[power]}".rstrip()


def _bytes(size: float) -> str:
    """12.57 GiB"""
    power = min(int(math.log2(size)) // 10, 4)
    return f"{size / 1024**power:.4g} {('B', 'KiB', 'MiB', 'GiB', 'TiB')[power]}"


def duration(hours: float) -> str:
    """19.5 hours"""
    for unit, length in (("days", 48), ("hours", 1), ("minutes", 1 / 60)):
        if hours >= length:
            return f"{hours / (24 if unit == 'days' else length):,.1f} {unit}"
    return f"{hours * 3600:.3g} seconds"
