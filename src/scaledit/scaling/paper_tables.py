"""The paper's tables 1 to 6 as text: as printed, beside computed values and the results of a study.

table 1  sizes     2, 3  quality at 256 and 512     4  all models     5  decoders     6  compute of U-Nets
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from scaledit.evaluation.metric import columns
from scaledit.evaluation.result import MetricValue, Result, side_by_side
from scaledit.models.config import SIZES, DiTConfig
from scaledit.models.flops import count
from scaledit.scaling import paper
from scaledit.scaling.table import DECODER, GUIDANCE, Row, Table


class PaperTable(NamedTuple):
    """A table as text. number: the paper's. note: explains the columns."""

    number: int
    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""

    def to_json(self) -> dict[str, Any]:
        rows = [dict(zip(self.header, row, strict=True)) for row in self.rows]
        return {"table": self.number, "title": self.title, "rows": rows, "note": self.note}


def all_tables(study: Table | None = None) -> list[PaperTable]:
    """study: its results of the same kind are added below the paper's."""
    return [
        _sizes(),
        _quality(2, "DiT and others on ImageNet 256 x 256", (256, 256), _measured(study, GUIDANCE)),
        _quality(3, "DiT and others on ImageNet 512 x 512", (512, 512), []),
        _models(study),
        _decoders(_measured(study, DECODER)),
        _unets(),
    ]


def _sizes() -> PaperTable:
    rows = []
    for size, (depth, width, heads) in SIZES.items():
        macs = count(DiTConfig.named(f"DiT-{size}/4", 256)).macs
        printed = paper.size_gflops(size)
        rows.append((f"DiT-{size}", f"{depth}", f"{width}", f"{heads}", f"{printed:g}", f"{macs / 1e9:.2f}"))
    return PaperTable(
        1,
        "Table 1. Sizes",
        ("", "layers", "width", "heads", "Gflops, paper", "Gflops, here"),
        tuple(rows),
        "Gflops: 1e9 multiply-adds of a forward pass at 32 x 32 latents, patch 4.",
    )


def _quality(number: int, title: str, image_size: tuple[int, int], measured: Sequence[Result]) -> PaperTable:
    header, rows = side_by_side([*paper.quality(image_size), *measured])
    note = "A study is measured on its own data: its distance compares with no other." if measured else ""
    return PaperTable(number, f"Table {number}. {title}", tuple(header), tuple(map(tuple, rows)), note)


def _models(study: Table | None) -> PaperTable:
    computed = {(row.name, row.block, row.image_size): row for row in paper.table4()}
    rows = []
    for row in paper.printed():
        model = computed[row.model, row.block, row.image_size]
        rows.append(
            (
                row.model,
                row.block,
                f"{row.image_size}",
                f"{row.steps_thousands}",
                f"{row.params_millions}",
                f"{model.params / 1e6:.2f}",
                f"{row.gflops:.2f}",
                f"{model.macs / 1e9:.2f}",
                f"{row.fid:g}",
            )
        )
    note = (
        "Thousands of steps; millions of parameters; Gflops (1e9 multiply-adds of a forward pass); FID-50K."
    )
    if study is not None:
        rows += map(_trained, study.trained())
        note += f" Below: {study.about.title}, seeds averaged, {study.about.distance}."
    distance = "FID" if study is None or study.about.distance == "FID" else f"FID, {study.about.distance}"
    header = ("", "block", "px", "k steps", "M", "M here", "G", "G here", distance)
    return PaperTable(4, "Table 4. All models", header, tuple(rows), note)


def _trained(row: Row) -> tuple[str, ...]:
    """A training of a study as a row of table 4."""
    return (
        row.name.replace(f" {row.conditioning}", ""),
        row.conditioning,
        f"{round(row.area**0.5)}",
        f"{row.steps / 1000:g}",
        "",
        f"{row.params / 1e6:.3g}",
        "",
        f"{row.macs / 1e9:.3g}",
        "" if row.fd is None else f"{row.fd:.4g}",
    )


def _decoders(measured: Sequence[Result]) -> PaperTable:
    header, rows = side_by_side([*paper.decoders(), *measured])
    title = "Table 5. Decoders, DiT-XL/2 with guidance 1.5"
    return PaperTable(5, title, tuple(header), tuple(map(tuple, rows)))


def _measured(study: Table | None, part: str) -> list[Result]:
    """The results of a part of a study."""
    if study is None:
        return []
    results = []
    keys = columns(*study.about.protocols.values())
    for row in study.part(part):
        metrics = {
            key: MetricValue(row.metrics[key], row.metrics.get(f"{key}_std"), row.metrics.get(f"{key}_real"))
            for key in keys
            if key in row.metrics
        }
        name = f"{study.about.name}: {row.name}"
        name += f" (cfg={row.guidance_scale:g})" if part == GUIDANCE else f", {row.decoder.partition(',')[0]}"
        results.append(Result(name, metrics, study.about.protocols.get(row.protocol, {}), ()))
    return results


def _unets() -> PaperTable:
    rows = tuple(
        (
            row["model"],
            f"{row['image_size']}",
            f"{row['base_gflops']}",
            "" if row["upsampler_gflops"] is None else f"{row['upsampler_gflops']}",
            f"{row['total_gflops']}",
        )
        for row in paper.unets()
    )
    header = ("", "px", "base Gflops", "upsampler Gflops", "total Gflops")
    return PaperTable(6, "Table 6. Compute of U-Nets", header, rows)
