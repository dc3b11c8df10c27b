"""EfficientNet-Lite0 as a teacher: the feature map after one of its stages. Its ImageNet weights come with a
Python package (scaledit.evaluation.efficientnet)."""

from __future__ import annotations

from dataclasses import dataclass

from scaledit.diffusion.teachers import Map, Teacher
from scaledit.errors import UsageError
from scaledit.lazy import Tensor, torch
from scaledit.part import field

STAGES = 7


@dataclass(frozen=True)
class EfficientNetTeacher(Teacher, name="efficientnet-lite0"):
    """EfficientNet-Lite0 trained on ImageNet, at 1/2, 1/4, 1/8, 1/16, 1/16, 1/32 and 1/32 of the side after
    its seven stages. Needs the extra "scaledit[features]"."""

    stage: int = field(5, ge=1, le=STAGES, doc="the stage after which the feature map is read")

    def width(self) -> int:
        from scaledit.evaluation import efficientnet

        return efficientnet.STAGES[self.stage - 1].width

    def ready(self) -> None:
        from scaledit.evaluation import efficientnet

        if efficientnet.weights_file() is None:
            raise UsageError(efficientnet.MISSING)

    def load(self, device: torch.device) -> Map:
        from scaledit.evaluation import efficientnet

        network = efficientnet.pretrained().to(device).requires_grad_(False)
        mean, deviation, stage = efficientnet.MEAN, efficientnet.DEVIATION, self.stage

        def feature_map(x: Tensor) -> Tensor:
            return network.stages((255 * x - mean) / deviation, stage)[-1]

        return feature_map

    def macs(self, height: int, width: int) -> int:
        from scaledit.evaluation import efficientnet, macs

        with torch.device("meta"):
            network = efficientnet.EfficientNetLite0().eval()
        return macs.of(
            lambda x: network.stages(x, self.stage), torch.empty(1, 3, height, width, device="meta")
        )
