"""Draws the figures of docs/concepts, and prints the numbers in them.

    python docs/figures/make.py runs/demo            all figures, into docs/figures
    python docs/figures/make.py                      those that need no trained model
    python docs/figures/make.py runs/demo --check    draw into a temporary folder; fail if a figure is missing

runs/demo is the run that `make demo` trains. The figures are functions of this file, scaledit and that
run. On another processor the last digits of coordinates may differ, so equal bytes are counted, not demanded.
"""

from __future__ import annotations

import argparse
import csv
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import matplotlib
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
sys.path[:0] = [str(ROOT / "src"), str(ROOT / "tests")]

import scaledit  # noqa: E402
from scaledit import images as pixels  # noqa: E402
from scaledit.data.sets import digits  # noqa: E402
from scaledit.diffusion import (  # noqa: E402
    DDIM,
    CosineBeta,
    DPMSolver,
    Even,
    Heun,
    Karras,
    LinearBeta,
    LinearFlow,
    LogSNR,
    NetDenoiser,
    Noise,
    Quadratic,
    QuadraticBeta,
    Sampler,
    Schedule,
    Shifted,
    Sine,
    Stride,
    Times,
    UniPC,
    Velocity,
    diffuse,
    sample,
)
from scaledit.evaluation.digits import trained  # noqa: E402
from scaledit.evaluation.metrics import Statistics, frechet_distance  # noqa: E402
from test_samplers import STARTS, From, Mixture, exact_on_chain, rms  # noqa: E402  # pyright: ignore[reportMissingImports]

LARGEST = 100_000
"""Bytes that a figure may have."""
COLORS = ("#0072b2", "#d55e00", "#009e73", "#aa4499", "#333333")
INK = "#333333"

matplotlib.use("svg")
matplotlib.rcParams.update(
    {
        "svg.hashsalt": "scaledit",
        "svg.fonttype": "none",
        "font.family": "sans-serif",
        "font.size": 9,
        "axes.titlesize": 9,
        "axes.labelsize": 9,
        "legend.fontsize": 8,
        "xtick.labelsize": 8,
        "ytick.labelsize": 8,
        "text.color": INK,
        "axes.labelcolor": INK,
        "axes.edgecolor": INK,
        "xtick.color": INK,
        "ytick.color": INK,
        "figure.facecolor": "white",  # a card: readable on light and on dark pages
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "grid.color": "#e3e3e3",
        "grid.linewidth": 0.6,
        "lines.linewidth": 1.6,
        "legend.frameon": False,
    }
)


def axes(columns: int, width: float = 7.6, height: float = 2.6, **options) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, list(np.atleast_1d(figure.subplots(1, columns, **options)))


def show_images(plot: Axes, x: torch.Tensor, columns: int) -> None:
    """Digits (N, 1, 8, 8) in [-1, 1] as one raster."""
    plot.imshow(pixels.grid(pixels.to_uint8(x), columns, gap=4), interpolation="nearest", aspect="equal")
    plot.axis("off")


# ---- diffusion.md ----------------------------------------------------------------------------------------

SCHEDULES: dict[str, Schedule] = {
    "linear": LinearBeta(),
    "quadratic": QuadraticBeta(),
    "cosine": CosineBeta(),
    "flow": LinearFlow(),
}


def schedules() -> Figure:
    """alpha, sigma and log-SNR of the four schedules over the fraction of the time axis."""
    figure, (alphas, sigmas, log_snrs) = axes(3)
    for (name, schedule), color in zip(SCHEDULES.items(), COLORS, strict=False):
        u = torch.linspace(0, 1, 201, dtype=torch.float64)
        t = (schedule.clean + schedule.horizon * u).round() if schedule.discrete else u
        alpha, sigma = schedule.coefficients(t)
        alphas.plot(u, alpha, color=color, label=name)
        sigmas.plot(u, sigma, color=color)
        inner = (alpha > 0) & (sigma > 0)
        log_snrs.plot(u[inner], schedule.log_snr(t)[inner], color=color)
        ends = schedule.log_snr(torch.tensor([schedule.clean + 1, schedule.noisiest]))
        if schedule.discrete:
            print(f"schedules: {name}: lambda {float(ends[1]):.2f} at t = 999, {float(ends[0]):.2f} at t = 0")
    for plot, title in ((alphas, "α: signal"), (sigmas, "σ: noise"), (log_snrs, "λ = log(α / σ)")):
        plot.set(title=title, xlabel="fraction of the time axis", xlim=(0, 1))
    log_snrs.set_ylim(-6, 6)
    alphas.legend(loc="lower left")
    return figure


def forward() -> Figure:
    """One training digit, diffused with the same noise along two schedules."""
    x0 = digits().images[:1].expand(9, -1, -1, -1)
    eps = Noise(0, [0], (1, 8, 8)).initial().expand(9, -1, -1, -1)
    u = torch.linspace(0, 1, 9, dtype=torch.float64)
    figure = Figure(figsize=(7.6, 2.5), layout="constrained")
    for plot, name in zip(figure.subplots(2, 1), ("linear", "flow"), strict=True):
        schedule = SCHEDULES[name]
        t = (schedule.clean + schedule.horizon * u).round() if schedule.discrete else u
        show_images(plot, diffuse(schedule, x0, eps, t), 9)
        plot.set_title(f"{name}: fraction of the time axis 0, 1/8, 2/8, ..., 1", loc="left")
    return figure


# ---- guidance.md -----------------------------------------------------------------------------------------

SCALES = (1.0, 1.5, 2.0, 4.0)


def guidance_digits(run: Path) -> Figure:
    """The demo's digits from the same noise at four guidance scales: four images of each of four classes."""
    pipeline = scaledit.load(run, device="cpu")
    classes = [c for c in (1, 4, 5, 9) for _ in range(4)]
    figure = Figure(figsize=(7.6, 2.5), layout="constrained")
    for plot, scale in zip(figure.subplots(len(SCALES), 1), SCALES, strict=True):
        x = pipeline(classes, seed=0, cfg_scale=scale)
        plot.imshow(pixels.grid(x, len(classes), gap=4), interpolation="nearest")
        plot.set(xticks=[], yticks=[])
        plot.grid(False)
        plot.spines[:].set_visible(False)
        plot.set_ylabel(f"{scale:g}", rotation=0, ha="right", va="center")
    return figure


def guidance_tradeoff() -> Figure:
    """Quality over the guidance scale, of the digits study's XL/2."""
    with open(ROOT / "docs/studies/digits/table.csv", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["part"] == "guidance"]
    figure, (distance, shares) = axes(2)
    scale = [float(row["cfg_scale"]) for row in rows]

    def curve(plot: Axes, key: str, title: str, color: str) -> None:
        values, deviations = ([float(row[key + end]) for row in rows] for end in ("", "_std"))
        plot.errorbar(scale, values, deviations, color=color, marker="o", markersize=3.5, label=title)
        print(f"guidance: {title} at {scale}: {[round(value, 3) for value in values]}")

    curve(distance, "fd_digits", "FD-digits", COLORS[4])
    distance.axhline(float(rows[0]["fd_digits_real"]), color=COLORS[0], linestyle="--", linewidth=1)
    distance.annotate(
        "held-out real digits", (4, float(rows[0]["fd_digits_real"]) - 0.5), ha="right", va="top"
    )
    distance.set(title="FD-digits (lower is better)", ylim=(0, 30))
    curve(shares, "class_accuracy", "class accuracy", COLORS[4])
    curve(shares, "precision", "precision", COLORS[0])
    curve(shares, "recall", "recall", COLORS[1])
    shares.set(title="shares (higher is better)", ylim=(0, 1.05))
    shares.legend(loc="lower left")
    for plot in (distance, shares):
        plot.set(xlabel="guidance scale", xticks=scale, xticklabels=[f"{value:g}" for value in scale])
    return figure


# ---- samplers.md -----------------------------------------------------------------------------------------

EVALUATIONS = (6, 8, 10, 12, 16, 20, 30, 50, 100)


def samplers_error() -> Figure:
    """The distance from the exact solution over evaluations, on a mixture of Gaussians."""
    chain, flow = Mixture(LinearBeta()), Mixture(LinearFlow())
    exact = {
        "linear": exact_on_chain(chain, 1000),
        "flow": sample(flow, Heun(2000, times=Sine()), From(STARTS)),
    }
    lines: dict[str, dict[str, Callable[[int], Sampler]]] = {
        "linear": {
            "DDIM = Euler, even": lambda n: DDIM(n),
            "DPM-Solver++, even": lambda n: DPMSolver(n, times=Even()),
            "Heun, quadratic": lambda n: Heun((n + 1) // 2, times=Quadratic()),
            "DPM-Solver++, log_snr": lambda n: DPMSolver(n),
            "UniPC, log_snr": lambda n: UniPC(n),
        },
        "flow": {
            "DDIM = Euler, even": lambda n: DDIM(n),
            "DPM-Solver++, even": lambda n: DPMSolver(n),
            "Heun, even": lambda n: Heun((n + 1) // 2),
            "DPM-Solver++, quadratic": lambda n: DPMSolver(n, times=Quadratic()),
            "UniPC, shifted 1/3": lambda n: UniPC(n, times=Shifted(1 / 3)),
        },
    }
    figure, plots = axes(2, height=3.6, sharey=True)
    for plot, (name, mixture) in zip(plots, {"linear": chain, "flow": flow}.items(), strict=True):
        for (label, make), color, mark in zip(lines[name].items(), COLORS, "osD^v", strict=True):
            built = [make(n) for n in EVALUATIONS]
            errors = [rms(sample(mixture, sampler, From(STARTS)), exact[name]) for sampler in built]
            spent = [sampler.total_evaluations() for sampler in built]
            plot.loglog(spent, errors, color=color, marker=mark, markersize=3.5, label=label)
            pairs = ", ".join(f"{n}: {error:.2g}" for n, error in zip(spent, errors, strict=True))
            print(f"samplers: {name}, {label}: {pairs}")
        ticks = (6, 10, 20, 50, 100)
        plot.set(title=f"schedule {name}", xlabel="evaluations of the denoiser")
        plot.set_xticks(ticks, [str(tick) for tick in ticks])
        plot.xaxis.minorticks_off()
        plot.legend(loc="lower left")
    plots[0].set_ylabel("RMS error")
    return figure


def demo_errors(run: Path) -> None:
    """Prints the RMS distance of the demo's unguided samples from nearly converged ones, for 20 images."""
    pipeline = scaledit.load(run, device="cpu")
    denoiser = NetDenoiser(pipeline.net, LinearFlow(), Velocity())
    noise, y = Noise(0, range(20), (1, 8, 8)), pipeline.labels([i % 10 for i in range(20)])
    converged = sample(denoiser, Heun(80, times=Sine()), noise, y)
    coarser = sample(denoiser, Heun(40, times=Sine()), noise, y)
    print(f"demo: Heun, sine, 40 steps: {rms(coarser, converged):.4f}")
    named: dict[str, Callable[[int], Sampler]] = {
        "DDIM, even": lambda n: DDIM(n),
        "Heun, even": lambda n: Heun((n + 1) // 2),
        "DPM-Solver++, even": lambda n: DPMSolver(n),
        "DPM-Solver++, quadratic": lambda n: DPMSolver(n, times=Quadratic()),
        "UniPC, even": lambda n: UniPC(n),
        "UniPC, shifted 1/3": lambda n: UniPC(n, times=Shifted(1 / 3)),
        "UniPC, quadratic": lambda n: UniPC(n, times=Quadratic()),
    }
    for name, make in named.items():
        errors = [rms(sample(denoiser, make(n), noise, y), converged) for n in (8, 12, 20)]
        print(f"demo: {name}: 8, 12, 20: {', '.join(f'{error:.4f}' for error in errors)}")


GRIDS: dict[str, Times] = {
    "even": Even(),
    "stride": Stride(),
    "log_snr": LogSNR(),
    "karras": Karras(),
    "shifted, s = 3": Shifted(3.0),
    "shifted, s = 1/3": Shifted(1 / 3),
    "quadratic": Quadratic(),
    "sine": Sine(),
}


def grids() -> Figure:
    """The times of each grid with 12 steps, over t and over log-SNR, on a chain and on the flow."""
    figure, plots = axes(4, height=2.7, sharey=True)
    for schedule, (over_t, over_snr), name in (
        (LinearBeta(), plots[:2], "linear"),
        (LinearFlow(), plots[2:], "flow"),
    ):
        for row, (label, times) in enumerate(GRIDS.items()):
            if label == "stride" and not schedule.discrete:
                continue
            t = times.grid(schedule, 12)[:-1]  # the last one is the clean time
            color = COLORS[row % 4]
            style = {
                "color": color,
                "marker": "|",
                "markersize": 9,
                "linestyle": "none",
                "markeredgewidth": 1.5,
            }
            over_t.plot((t - schedule.clean) / schedule.horizon, [row] * len(t), **style)
            log_snr = schedule.log_snr(t)
            over_snr.plot(log_snr.clamp(-7, 7), [row] * len(t), **style)
        over_t.set(title=f"{name}: t", xlim=(-0.03, 1.03), xticks=(0, 0.5, 1))
        over_snr.set(title=f"{name}: λ", xlim=(7.3, -7.3), xticks=(6, 3, 0, -3, -6))
    plots[0].set_yticks(range(len(GRIDS)), list(GRIDS))
    plots[0].set_ylim(len(GRIDS) - 0.4, -0.6)
    return figure


# ---- fid.md ----------------------------------------------------------------------------------------------

SIZES = (50, 100, 200, 400, 719)
SPLITS = 10


def fd_bias(run: Path) -> Figure:
    """FD-digits of N images against one half of the training digits: of N digits of the other half, and of N
    images of the demo's model."""
    extractor, data = trained(), digits()
    real = extractor(torch.from_numpy(pixels.to_uint8(data.images)).permute(0, 3, 1, 2))["pool"].numpy()
    pipeline = scaledit.load(run, device="cpu")
    made = pipeline(data.labels[:719], seed=0, cfg_scale=1.0, batch_size=240)
    generated = extractor(torch.from_numpy(made).permute(0, 3, 1, 2))["pool"].numpy()
    rng = np.random.default_rng(0)
    distances: dict[str, list[list[float]]] = {"generated digits": [], "real digits": []}
    for _ in range(SPLITS):
        order = rng.permutation(len(real))
        reference = Statistics.of(real[order[:719]])
        for name, pool in (("generated digits", generated), ("real digits", real[order[719:]])):
            rows = rng.permutation(len(pool))
            distances[name].append([frechet_distance(reference, pool[rows[:n]]) for n in SIZES])
    figure, (over_n, over_inverse) = axes(2, height=2.8)
    inverse = 1 / np.array(SIZES)
    for (name, values), color, mark in zip(distances.items(), COLORS[1::-1], "so", strict=True):
        mean, deviation = np.mean(values, axis=0), np.std(values, axis=0, ddof=1)
        slope, intercept = np.polyfit(inverse[1:], mean[1:], 1)
        style = {"color": color, "marker": mark, "markersize": 4}
        over_n.errorbar(SIZES, mean, deviation, label=name, **style)
        over_inverse.errorbar(inverse, mean, deviation, **style, linestyle="none")
        line = np.array([0, inverse[1]])
        over_inverse.plot(line, intercept + slope * line, color=color, linewidth=1)
        pairs = ", ".join(f"{n}: {m:.1f} ± {d:.1f}" for n, m, d in zip(SIZES, mean, deviation, strict=True))
        print(f"fd_bias: {name}: {pairs}; line through N >= 100: {intercept:.1f} + {slope:.0f} / N")
    over_n.set(title="FD-digits over N", xlabel="N, number of images", xscale="log", ylim=(0, None))
    over_n.set_xticks(SIZES, [str(n) for n in SIZES])
    over_n.xaxis.minorticks_off()
    over_n.legend(loc="upper right")
    over_inverse.set(title="FD-digits over 1/N, with lines through N ≥ 100", ylim=(0, 13), xlim=(0, 0.0105))
    over_inverse.set_xticks([0, *inverse[1:]], ["0", *(f"1/{n}" for n in SIZES[1:])])
    return figure


# ---- all -------------------------------------------------------------------------------------------------

OF_NOTHING: dict[str, Callable[[], Figure]] = {
    "schedules": schedules,
    "forward": forward,
    "guidance-tradeoff": guidance_tradeoff,
    "samplers-error": samplers_error,
    "grids": grids,
}
OF_A_RUN: dict[str, Callable[[Path], Figure]] = {"guidance-digits": guidance_digits, "fd-bias": fd_bias}


def draw(out: Path, run: Path | None) -> list[Path]:
    """Writes the figures into `out`; returns their paths."""
    figures = {name: make() for name, make in OF_NOTHING.items()}
    if run is not None:
        figures |= {name: make(run) for name, make in OF_A_RUN.items()}
        demo_errors(run)
    paths = []
    for name, figure in figures.items():
        path = out / f"{name}.svg"
        figure.savefig(path, metadata={"Date": None})
        path.write_text("\n".join(line.rstrip() for line in path.read_text().splitlines()) + "\n")
        paths.append(path)
        print(f"{path.name}: {path.stat().st_size:,} bytes")
    return paths


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("run", nargs="?", type=Path, help="the demo's run folder")
    parser.add_argument("--check", action="store_true", help="write nothing; compare the list of files")
    args = parser.parse_args()
    torch.set_num_threads(1)  # the order of sums is part of the figures
    if not args.check:
        draw(HERE, args.run)
        return 0
    with tempfile.TemporaryDirectory() as folder:
        paths = draw(Path(folder), args.run)
        large = [path.name for path in paths if path.stat().st_size > LARGEST]
        same = [path.name for path in paths if path.read_bytes() == _bytes(HERE / path.name)]
    missing = [path.name for path in paths if not (HERE / path.name).exists()]
    listed = {f"{name}.svg" for name in (*OF_NOTHING, *OF_A_RUN)}
    stray = sorted(path.name for path in HERE.glob("*.svg") if path.name not in listed)
    print(f"byte for byte as committed: {len(same)} of {len(paths)}")
    for problem, names in (("missing", missing), ("above 100 KB", large), ("made by nothing", stray)):
        if names:
            print(f"{problem}: {', '.join(names)}")
    return int(bool(missing or large or stray))


def _bytes(path: Path) -> bytes:
    return path.read_bytes() if path.exists() else b""


if __name__ == "__main__":
    sys.exit(main())
