"""The paper's printed results as a study's table, so that fits, verdicts and figures also run on the paper.

    macs, params: computed from each model's config (those of table 4 agree to 0.1 % and to the million)
    train_macs = 3 macs * 256 * steps            sampling_macs = macs * passes, twice that with guidance

The paper prints neither losses nor deviations over seeds. Its scaling study used the ft-MSE decoder, its
tables 2 and 3 ft-EMA: every value of XL/2 at 1.5 in table 2 is that of ft-EMA in table 5.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from scaledit.diffusion import DDPM, ClassifierFree, LinearBeta
from scaledit.evaluation.metric import built_in_columns
from scaledit.models import flops
from scaledit.models.config import SIZES, DiTConfig
from scaledit.scaling import paper
from scaledit.scaling.plan import evaluations
from scaledit.scaling.table import DECODER, FINAL, GUIDANCE, SAMPLING, TRAINING, About, Row, Table, cell

STUDY_STEPS = 400_000  # of the twelve models and the four blocks
MODEL = "DiT-XL/2"
LONGEST = {256: 7_000_000, 512: 3_000_000}
"""Steps of the XL/2 of tables 2, 3 and 5, the longest training runs, by image size (section 5.1)."""
SCALES = {"DiT-XL/2": 1.0, "DiT-XL/2-G (cfg=1.25)": 1.25, "DiT-XL/2-G (cfg=1.50)": 1.5}
STUDY, REPORTED = "ft-MSE", "ft-EMA"
"""Decoders of the scaling study and of the reported results."""


def table() -> Table:
    """final: table 4 after 400k steps, the twelve models and the other three blocks. training: XL/2 at 256
    and 512 over its training (table 4). guidance: tables 2 and 3, and guidance of all four channels. decoder:
    table 5. sampling: the two models of section 5, "Scaling model vs. sampling compute", FID-10K.

    Guidance of three channels at 1.5 is the row of table 2. Multiply-adds are computed, not as printed.
    """
    rows = [*_models(), *_guidance(), *_decoders(), *_sampling()]
    about = About(
        name="paper",
        title="Peebles & Xie 2022, Scalable Diffusion Models with Transformers",
        command="scaledit study paper",
        distance="FID-50K",
        sizes=tuple(SIZES),
        protocols=_protocols(),
        configs={row.name: {"model": _config(row).to_json()} for row in rows},
        made={"source": "the paper's tables as printed; multiply-adds and parameters computed"},
    )
    return Table(about, tuple(rows))


def _models() -> Iterator[Row]:
    """Table 4."""
    rows = [
        _row(row.config, row.model, FINAL, 1000 * row.steps_thousands, {"fid": row.fid}, "table 4")
        for row in paper.printed()
    ]
    yield from (row for row in rows if row.steps == STUDY_STEPS)
    for row in rows:
        if row.model == "XL/2" and row.conditioning == "adaln_zero":
            yield dataclasses.replace(row, part=TRAINING)


def _longest(
    image_size: int,
    part: str,
    metrics: Mapping[str, Any],
    protocol: str,
    scale: float,
    channels: int | None = 3,
    decoder: str = REPORTED,
) -> Row:
    """A result of the longest training at an image size."""
    config, steps = DiTConfig.named(MODEL, image_size), LONGEST[image_size]
    metrics = {key: metrics[key] for key in built_in_columns() if metrics.get(key) is not None}
    return _row(
        config, MODEL, part, steps, metrics, protocol, scale=scale, channels=channels, decoder=decoder
    )


def _guidance() -> Iterator[Row]:
    tables = ((256, "table2_imagenet256", "table 2"), (512, "table3_imagenet512", "table 3"))
    for image_size, key, protocol in tables:
        for row in paper.data()[key]:
            if row["model"] in SCALES:
                yield _longest(image_size, GUIDANCE, row, protocol, SCALES[row["model"]])
    row = paper.data()["guidance_channels"]["all_four"]
    yield _longest(256, GUIDANCE, {"fid": row["fid50k"]}, "all channels", row["scale"], channels=None)


def _decoders() -> Iterator[Row]:
    for row in paper.data()["table5_decoders_xl2_cfg1.5"]:
        yield _longest(256, DECODER, row, "table 5", 1.5, decoder=row["model"])


def _sampling() -> Iterator[Row]:
    for name, row in paper.data()["sampling_compute"].items():
        if name in ("DiT-L/2", "DiT-XL/2"):
            config, metrics, passes = DiTConfig.named(name), {"fid": row["fid10k"]}, row["steps"]
            result = _row(config, name, SAMPLING, STUDY_STEPS, metrics, "figure 10", sampling_steps=passes)
            yield dataclasses.replace(result, num=10_000)


def _row(
    config: DiTConfig,
    model: str,
    part: str,
    steps: int,
    metrics: Mapping[str, float],
    protocol: str,
    sampling_steps: int = 250,
    scale: float = 1.0,
    channels: int | None = 3,
    decoder: str = STUDY,
) -> Row:
    batch_size: int = paper.data()["training"]["batch_size"]
    params, macs = flops.count(config)
    sampler, guidance = DDPM(steps=sampling_steps), ClassifierFree(scale=scale, channels=channels)
    size, patch = model.removeprefix("DiT-").split("/")
    image_size = 8 * config.height
    names = [f"{size}/{patch}"]
    names += [] if config.conditioning == "adaln_zero" else [config.block.label()]
    names += [] if image_size == 256 else [str(image_size)]
    return Row(
        name=" ".join(names),
        part=part,
        size=size,
        patch_size=config.patch_size,
        conditioning=config.block.label(),
        tokens=config.tokens,
        params=params,
        macs=macs,
        batch_size=batch_size,
        steps=steps,
        images=batch_size * steps,
        train_macs=flops.train_macs(macs, batch_size * steps),
        seed=0,
        loss=None,
        fd=metrics["fid"],
        fd_std=None,
        sampler=cell(sampler.to_json()),
        guidance=cell([guidance.to_json()]),
        decoder=decoder,
        sampling_macs=macs * evaluations(sampler, [guidance], LinearBeta()),
        num=50_000,
        sample_sets=1,
        protocol=protocol,
        metrics=metrics,
    )


def _config(row: Row) -> DiTConfig:
    side = row.patch_size * round(row.tokens**0.5)
    return DiTConfig.named(f"DiT-{row.model}", 8 * side, conditioning=row.conditioning)


def _protocols() -> dict[str, dict[str, Any]]:
    """How each table was measured, by the paper."""
    training = paper.data()["training"]
    common = {
        "source": "Peebles & Xie 2022",
        "batch_size": training["batch_size"],
        "learning_rate": training["learning_rate"],
        "weights": "EMA",
        "sampler": DDPM(steps=250).to_json(),
        "n": 50_000,
        "reference": "ImageNet, ADM's statistics",
    }
    reported = {**common, "decoder": REPORTED}
    return {
        "table 2": {**reported, "table": 2, "image_size": [256, 256]},
        "table 3": {**reported, "table": 3, "image_size": [512, 512]},
        "table 4": {**common, "table": 4, "decoder": STUDY, "guidance": []},
        "table 5": {
            **common,
            "table": 5,
            "image_size": [256, 256],
            "guidance": [ClassifierFree(scale=1.5, channels=3).to_json()],
        },
        "all channels": {**reported, "image_size": [256, 256], "guidance": "on all channels"},
        "figure 10": {**common, "figure": 10, "decoder": STUDY, "n": 10_000, "sampler": "a row's own"},
    }
