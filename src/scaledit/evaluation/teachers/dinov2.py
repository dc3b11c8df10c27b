"""DINOv2 as a teacher: the normalized tokens of its patches, as in REPA (scaledit.evaluation.dinov2)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from scaledit.diffusion.teachers import Map, Teacher
from scaledit.errors import UsageError
from scaledit.lazy import Tensor, torch
from scaledit.part import field


@dataclass(frozen=True)
class DINOv2Teacher(Teacher, name="dinov2"):
    """A local DINOv2 in transformers' format; REPA uses dinov2-base. Needs the extra "scaledit[dinov2]"."""

    MULTIPLE: ClassVar[int] = 14

    folder: str = field("", path=True, doc="a folder with config.json and model.safetensors")

    def width(self) -> int:
        from scaledit.evaluation import dinov2

        return dinov2.described(self.folder).hidden_size

    def ready(self) -> None:
        from scaledit.evaluation import dinov2

        if not self.folder:
            raise UsageError(
                "the teacher dinov2 needs its folder; set diffusion.terms.alignment.teacher.folder"
            )
        dinov2.described(self.folder)

    def load(self, device: torch.device) -> Map:
        from scaledit.evaluation import dinov2

        network = dinov2.load(self.folder, device).network.requires_grad_(False)
        mean, deviation = (
            torch.tensor(values, device=device)[:, None, None] for values in (dinov2.MEAN, dinov2.DEVIATION)
        )
        patch = network.config.patch_size

        def feature_map(x: Tensor) -> Tensor:
            tokens = network(pixel_values=(x - mean) / deviation).last_hidden_state[:, 1:]
            return tokens.transpose(1, 2).unflatten(2, (x.shape[2] // patch, x.shape[3] // patch))

        return feature_map

    def macs(self, height: int, width: int) -> int:
        from scaledit.evaluation import dinov2, macs

        network = dinov2.on_meta(self.folder)
        x = torch.empty(1, 3, height, width, device="meta")
        return macs.of(lambda x: network(pixel_values=x).last_hidden_state, x)
