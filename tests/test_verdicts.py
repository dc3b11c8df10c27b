"""Verdicts on tables built from a law, with its effects reversed, hidden in noise or left out; and on the
paper's own results."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest

from made_tables import guidance, sampler
from scaledit.scaling import printed_table
from scaledit.scaling.compare import Comparison, Mean, compare, noise, outcome
from scaledit.scaling.table import FINAL, GUIDANCE, SAMPLING, TRAINING, About, Row, Table
from scaledit.scaling.verdicts import CLAIMS, DESIGNS, to_json, verdicts

SIZES = {"S": (2, 32), "B": (4, 64), "L": (6, 96), "XL": (8, 128)}
PATCHES = (4, 2, 1)


def row(size: str, patch: int, fd: float, seed: int = 0, block: str = "adaln_zero", steps: int = 1000) -> Row:
    depth, width = SIZES[size]
    tokens = (8 // patch) ** 2
    macs = 12 * depth * width**2 * tokens + 2 * depth * width * tokens**2
    words = [
        f"{size}/{patch}",
        *([block] if block != "adaln_zero" else []),
        *([f"seed {seed}"] if seed else []),
    ]
    return Row(
        name=" ".join(words),
        part=FINAL, size=size, patch_size=patch, conditioning=block, tokens=tokens,
        params=18 * depth * width**2, macs=macs, batch_size=64, steps=steps, images=64 * steps,
        train_macs=3 * 64 * steps * macs, seed=seed, loss=0.1 + 0.001 * fd, fd=fd, fd_std=0.01 * fd,
        sampler=sampler(64), guidance=guidance(1.0), decoder="",
        sampling_macs=64 * macs, num=359, sample_sets=3, protocol="p", metrics={},
    )  # fmt: skip


def build(exponent: float = 0.5, spread: float = 0.02, late: float = 0.2, seeds: int = 3) -> Table:
    """fd = 40 (Gflops / 0.1)^-exponent steps^-late e^(spread z), over sizes, patches, seeds and training;
    blocks, sampling and guidance as the paper has them."""
    draw = np.random.default_rng(5)

    def fd(one: Row, factor: float = 1.0) -> float:
        return factor * 40 * (one.gflops / 0.1) ** -exponent * math.exp(spread * draw.standard_normal())

    bare = [row(size, patch, 1.0, seed) for size in SIZES for patch in PATCHES for seed in range(seeds)]
    rows = [replace(one, fd=fd(one)) for one in bare]
    rows = [replace(one, loss=0.1 + 0.001 * (one.fd or 0)) for one in rows]
    worse = dict(zip(DESIGNS, (1.0, 1.3, 1.5, 2.0), strict=True))
    for block in DESIGNS[1:]:
        rows += [
            replace(one, fd=fd(one, worse[block]))
            for seed in range(seeds)
            for one in [row("XL", 1, 1.0, seed, block)]
        ]
    final = list(rows)
    for one in final:
        if one.conditioning == "adaln_zero" and one.seed == 0:
            for steps in (250, 500, 1000):
                early = row(one.size, one.patch_size, 1.0, steps=steps)
                rows.append(replace(early, part=TRAINING, fd=fd(one, (1000 / steps) ** late)))
            for steps in (16, 64, 256, 1000):
                rows.append(
                    replace(
                        one,
                        part=SAMPLING,
                        sampler=sampler(steps),
                        sampling_macs=steps * one.macs,
                        fd=fd(one, 1 + 4 / steps),
                    )
                )
    best = row("XL", 1, 10.0)
    for scale, value, precision, recall in (
        (1.0, 10.0, 0.6, 0.8),
        (1.5, 6.0, 0.75, 0.7),
        (3.0, 12.0, 0.9, 0.4),
    ):
        metrics = {"precision": precision, "recall": recall}
        rows.append(
            replace(best, part=GUIDANCE, guidance=guidance(scale), fd=value, fd_std=0.3, metrics=metrics)
        )
    return Table(About("made", "made", "", "FD", sizes=tuple(SIZES)), tuple(rows))


def outcomes(table: Table) -> dict[str, str]:
    return {verdict.key: verdict.outcome for verdict in verdicts(table)}


def test_what_was_built_in_is_found():
    results = outcomes(build())
    unknown = dict.fromkeys(("equal_gflops", "guidance_channels", "decoders"), "not measured")
    assert results == dict.fromkeys(CLAIMS, "holds") | unknown


def test_larger_models_that_waste_compute():
    """At equal compute C, steps are C / N: N^-0.5 (C / N)^-0.7 grows with N."""
    results = outcomes(build(late=0.7))
    assert results["compute"] == "does not hold" and results["size"] == "holds"


def test_compute_is_compared_where_a_longer_training_ends():
    """S/1 ends before the first result of XL/1; if it is trained to XL/1's compute, the two are compared
    there."""
    table = build(exponent=0.5, late=0.7)
    small = next(r for r in table.part(TRAINING) if (r.model, r.steps) == ("S/1", 1000))
    large = next(r for r in table.part(TRAINING) if (r.model, r.steps) == ("XL/1", 1000))
    steps = large.train_macs // (3 * 64 * small.macs)
    longer = replace(small, name="S/1 longer", steps=steps, train_macs=3 * 64 * steps * small.macs)
    longer = replace(longer, fd=1.5 * (large.fd or 0))

    def ratios(of: Table) -> list[float]:
        [verdict] = [verdict for verdict in verdicts(of) if verdict.key == "compute"]
        return [p["ratio"] for p in verdict.numbers["pairs"] if (p["better"], p["worse"]) == ("XL/1", "S/1")]

    assert ratios(table) == []
    assert ratios(replace(table, rows=(*table.rows, longer))) == pytest.approx([1.5], rel=1e-3)


@pytest.mark.parametrize(
    ("ratios", "expected"), [((1.1, 1.2), "holds"), ((1.1, 2.0), "undecided"), ((2, 3), "does not hold")]
)
def test_equal_gflops(ratios: tuple[float, float], expected: str):
    rows = []
    for macs, ratio in zip((10**6, 10**8), ratios, strict=True):
        for size, fd in (("S", 10.0), ("B", 10.0 * ratio)):
            rows.append(replace(row(size, 4 if macs == 10**6 else 2, fd), macs=macs))
    table = Table(About("e", "e", "", "FD", sizes=("S", "B")), tuple(rows))
    assert outcomes(table)["equal_gflops"] == expected


def test_the_opposite_is_found_out():
    """Distances that rise with compute: every claim on compute is reversed."""
    results = outcomes(build(exponent=-0.5))
    for key in ("size", "tokens", "gflops", "compute", "sampling"):
        assert results[key] == "does not hold", key


@pytest.mark.parametrize("key", ["size", "tokens"])
def test_no_effect_within_the_noise_is_undecided(key: str):
    assert outcomes(build(exponent=0.0, spread=0.3))[key] == "undecided"


def test_reversed_blocks():
    table = build()
    swap = dict(zip(DESIGNS, reversed(DESIGNS), strict=True))
    rows = tuple(replace(one, conditioning=swap[one.conditioning]) for one in table.rows)
    assert outcomes(replace(table, rows=rows))["blocks"] == "does not hold"


def test_guidance_that_only_hurts():
    table = build()
    guided = [one for one in table.rows if one.part == GUIDANCE]
    others = [one for one in table.rows if one.part != GUIDANCE]
    rows = (*others, *(replace(one, fd=10.0 * one.guidance_scale) for one in guided))
    assert outcomes(replace(table, rows=rows))["guidance"] == "does not hold"
    rows = (*others, *(replace(one, fd=10.0 / one.guidance_scale) for one in guided))
    assert outcomes(replace(table, rows=rows))["guidance"] == "undecided"  # where it ends was not measured


def test_loss_that_tells_nothing():
    table = build()
    rows = tuple(replace(one, loss=None) for one in table.rows)
    assert outcomes(replace(table, rows=rows))["loss"] == "not measured"
    draw = np.random.default_rng(0)
    rows = tuple(replace(one, loss=float(draw.uniform(0.1, 0.2))) for one in table.rows)
    assert outcomes(replace(table, rows=rows))["loss"] == "undecided"


def test_three_channels_and_all():
    table = build()
    pair = [replace(one, guidance=guidance(1.4)) for one in table.part(GUIDANCE) if one.guidance_scale == 3.0]
    table = replace(table, rows=(*table.rows, *pair))
    for factor, expected in ((1.1, "holds"), (1.5, "does not hold")):
        on_all = [replace(one, guidance=guidance(1.3, None), fd=factor * (one.fd or 0)) for one in pair]
        results = outcomes(replace(table, rows=(*table.rows, *on_all)))
        assert results["guidance_channels"] == expected


def test_nothing_is_claimed_of_nothing():
    empty = Table(About("none", "none", "", "FD"), ())
    assert set(outcomes(empty).values()) == {"not measured"}
    assert noise(empty) is None


def test_noise_is_the_pooled_deviation_over_training_seeds():
    """Worked by hand: ln fd of {0, 0.2} and {1, 1.3}: squares 0.02 and 0.045, one degree of freedom each."""
    rows = tuple(
        row(size, 1, math.exp(value), seed)
        for size, values in (("S", (0.0, 0.2)), ("B", (1.0, 1.3)), ("L", (2.0,)))
        for seed, value in enumerate(values)
    )
    assert noise(Table(About("n", "n", "", "FD"), rows)) == pytest.approx(math.sqrt((0.02 + 0.045) / 2))


@pytest.mark.parametrize(
    ("fd", "seeds", "s", "sided"),
    [
        (12.0, (1, 1), 0.1, 0),  # ln 1.2 = 0.182 < 2 * 0.1 * sqrt(2)
        (12.0, (3, 3), 0.1, 1),  # > 2 * 0.1 * sqrt(2/3) = 0.163
        (12.0, (1, 1), None, 1),  # no noise known: any difference counts
        (8.0, (3, 3), 0.1, -1),
        (10.0, (1, 1), None, 0),
    ],
)
def test_a_difference_counts_beyond_twice_its_error(
    fd: float, seeds: tuple[int, int], s: float | None, sided: int
):
    assert compare(Mean("a", 10.0, seeds[0]), Mean("b", fd, seeds[1]), s).sided == sided


@pytest.mark.parametrize(
    ("sides", "expected"),
    [
        ((1, 1, 0, 0), "holds"),
        ((1, 0, 0), "undecided"),
        ((1, 1, 1, 1, -1), "undecided"),
        ((1, -1, -1), "does not hold"),
        ((0, 0), "undecided"),
        ((), "not measured"),
    ],
)
def test_outcomes_by_the_rule(sides: tuple[int, ...], expected: str):
    assert outcome([Comparison("a", "b", 1.0, side) for side in sides]) == expected


def test_the_papers_own_numbers():
    """By its tables: sizes, tokens, blocks in order without exception, r = -0.94; L/8 (5.01 Gflops, 118.9) is
    far from B/4 (5.56, 68.4); curves and losses are plotted, not printed."""
    results = {verdict.key: verdict for verdict in verdicts(printed_table.table())}
    assert {key: verdict.outcome for key, verdict in results.items()} == {
        "size": "holds",
        "tokens": "holds",
        "gflops": "holds",
        "equal_gflops": "undecided",
        "compute": "not measured",
        "blocks": "holds",
        "loss": "not measured",
        "sampling": "holds",
        "guidance": "undecided",
        "guidance_channels": "holds",
        "decoders": "holds",
    }
    assert "18 of 18 pairs" in results["size"].said and "12 of 12 pairs" in results["tokens"].said
    assert "-0.936" in results["gflops"].said and "B/4 and L/8 1.74" in results["equal_gflops"].said


def test_verdicts_are_plain_json():
    table = build()
    values = json.loads(json.dumps(to_json(table, verdicts(table))))
    assert [verdict["key"] for verdict in values["verdicts"]] == list(CLAIMS)
    assert all(verdict["rule"] and verdict["claim"] and verdict["said"] for verdict in values["verdicts"])
