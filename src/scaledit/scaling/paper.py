"""The paper's printed results as data (paper.json), and its table 4 computed beside them; imports no torch.

    agrees:  round(params / 1e6) = printed millions;   |macs / 1e9 - printed| <= max(0.1 %, half a last digit)

The paper's Gflops are 1e9 multiply-adds of one forward pass at batch 1, without the autoencoder.
"""

from __future__ import annotations

import functools
import json
from importlib.resources import files
from typing import Any, NamedTuple

from scaledit.evaluation.result import MetricValue, Result
from scaledit.models.config import DiTConfig
from scaledit.models.flops import count

GFLOPS_TOLERANCE = 1e-3
LAST_DIGIT = 0.01  # table 4 prints two decimals throughout
HEADER = ("model", "block", "px", "tokens", "Mparams", "paper", "Gflops", "paper", "agrees")
"""Columns of `Computed.cells`."""


class Printed(NamedTuple):
    """A row of table 4 as printed. block: spelled as `DiTConfig.conditioning`. gflops: 1e9 multiply-adds.
    fid: FID-50K after so many thousand steps of batch 256, with 250 DDPM steps and no guidance."""

    model: str
    image_size: int
    block: str
    gflops: float
    params_millions: int
    steps_thousands: int
    fid: float

    @property
    def config(self) -> DiTConfig:
        return DiTConfig.named(self.model, self.image_size, conditioning=self.block)


class Computed(NamedTuple):
    """A model of table 4, computed from its config, beside the printed values.

    tokens: patches of one image. params: trainable. macs: multiply-adds of one forward pass at batch 1.
    """

    name: str
    block: str
    image_size: int
    tokens: int
    params: int
    macs: int
    paper_params_millions: int
    paper_gflops: float

    @property
    def params_agree(self) -> bool:
        """Whether they agree to the printed million."""
        return round(self.params / 1e6) == self.paper_params_millions

    @property
    def gflops_agree(self) -> bool:
        """Whether they agree within 0.1 % or when rounded as printed."""
        tolerance = max(GFLOPS_TOLERANCE * self.paper_gflops, LAST_DIGIT / 2)
        return abs(self.macs / 1e9 - self.paper_gflops) <= tolerance

    @property
    def agrees(self) -> bool:
        return self.params_agree and self.gflops_agree

    def cells(self) -> tuple[str, ...]:
        """The row under `HEADER`."""
        return (
            self.name,
            self.block,
            str(self.image_size),
            str(self.tokens),
            f"{self.params / 1e6:.2f}",
            str(self.paper_params_millions),
            f"{self.macs / 1e9:.2f}",
            f"{self.paper_gflops:.2f}",
            "yes" if self.agrees else "no",
        )

    def to_json(self) -> dict[str, Any]:
        return {
            **self._asdict(),
            "gflops": self.macs / 1e9,
            "params_agree": self.params_agree,
            "gflops_agree": self.gflops_agree,
            "agrees": self.agrees,
        }


@functools.cache
def data() -> dict[str, Any]:
    """paper.json: all values as printed."""
    return json.loads(files("scaledit.scaling").joinpath("paper.json").read_text(encoding="utf-8"))


def printed() -> list[Printed]:
    """All 19 rows of table 4 in the paper's order, longer training runs of the same model included."""
    return [
        Printed(
            model=row["model"],
            image_size=row["image_size"],
            block=row["block"].lower().replace("-", "_"),
            gflops=row["gflops"],
            params_millions=row["params_millions"],
            steps_thousands=row["steps_thousands"],
            fid=row["fid50k_no_guidance"],
        )
        for row in data()["table4_models"]
    ]


@functools.cache
def designs() -> tuple[str, ...]:
    """The block designs that the paper compares (figure 5), best first: by their FID in table 4, at the model
    and number of steps with the most designs."""
    models: dict[tuple[str, int, int], list[Printed]] = {}
    for row in printed():
        models.setdefault((row.model, row.image_size, row.steps_thousands), []).append(row)
    compared = max(models.values(), key=len)
    return tuple(row.block for row in sorted(compared, key=lambda row: row.fid))


def quality(image_size: tuple[int, ...]) -> list[Result]:
    """The rows of table 2 (256 x 256) or 3 (512 x 512) as printed; none for other sizes."""
    tables: dict[tuple[int, ...], str] = {(256, 256): "table2_imagenet256", (512, 512): "table3_imagenet512"}
    table = tables.get(image_size)
    return [] if table is None else _results(table, image_size)


def decoders() -> list[Result]:
    """Table 5: XL/2 at 256 with guidance 1.5, through three decoders of the same latents."""
    return _results("table5_decoders_xl2_cfg1.5", (256, 256))


def _results(table: str, image_size: tuple[int, ...]) -> list[Result]:
    return [
        Result(
            name=f"paper: {row['model']}",
            metrics={
                key: MetricValue(value) for key, value in row.items() if key != "model" and value is not None
            },
            protocol={"source": f"Peebles & Xie 2022, {table}", "image_size": list(image_size)},
            warnings=(),
        )
        for row in data()[table]
    ]


def size_gflops(size: str) -> float:
    """Table 1's Gflops of a size ("XL"), at 32 x 32 latents and patch 4."""
    return next(row["gflops_i32_p4"] for row in data()["table1_configs"] if row["model"] == f"DiT-{size}")


def unets() -> list[dict[str, Any]]:
    """Table 6 as printed: model, image_size, base_gflops, upsampler_gflops (or None), total_gflops."""
    return data()["table6_unets"]


def table4() -> list[Computed]:
    """The sixteen models of table 4: twelve sizes at 256, the other three blocks at XL/2, XL/2 at 512."""
    rows = {(row.model, row.image_size, row.block): row for row in printed()}.values()
    return [
        Computed(
            row.model,
            row.block,
            row.image_size,
            row.config.tokens,
            *count(row.config),
            row.params_millions,
            row.gflops,
        )
        for row in rows
    ]
