"""YOLOv10's one-to-one head: where the sides of a box may be and the classes' logits, for each place."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from fastkernels.op import Op
from fastkernels.spec import OpSpec, TensorSpec
from fastkernels.tasks.baseline.L1.conv2d import Conv2d
from fastkernels.tasks.baseline.L2.conv_bn_silu import ConvBNSiLU
from fastkernels.tasks.configs.yolov10 import YOLOv10Config


class YOLOv10Head(Op):
    """sides = cv2(n), logits = cv3(n) of n3, n4 and n5 in turn, place by place.

    Shapes:  n3: [batch, n3_channels, 4 height, 4 width]; n4: [batch, n4_channels, 2 height, 2 width]; n5: [batch,
             n5_channels, height, width]; sides: [batch, 21 height width, 4 * reg_max]; logits: [batch,
             21 height width, num_classes].
    Dtypes:  bf16, fp16 or fp32; products are summed in at least fp32, norms and activations computed in fp32.
    Returns: (sides, logits). No argument is written to.
    Errors:  those of its parts.
    Source:  Wang et al. 2024 (https://arxiv.org/abs/2405.14458), section 3.1; as v10Detect of ultralytics with end2end.
    """

    spec = OpSpec(
        inputs={
            "n3": TensorSpec(("batch", "n3_channels", "4*height", "4*width")),
            "n4": TensorSpec(("batch", "n4_channels", "2*height", "2*width")),
            "n5": TensorSpec(("batch", "n5_channels", "height", "width")),
        },
        outputs={
            "sides": TensorSpec(("batch", "num_places", "num_sides")),
            "logits": TensorSpec(("batch", "num_places", "num_classes")),
        },
        examples=({"config": YOLOv10Config.tiny()},),
        example_axes={"batch": (2, 1), "height": (2, 1), "width": (1, 3)},
    )

    def __init__(self, config: YOLOv10Config, prefix: str = "") -> None:
        super().__init__()
        channels = [config.channels(n) for n in (256, 512, 1024)]
        self.n3_channels, self.n4_channels, self.n5_channels = channels
        self.num_classes, self.num_sides = config.num_classes, 4 * config.reg_max
        box_channels = max(16, channels[0] // 4, 4 * config.reg_max)
        class_channels = max(channels[0], min(config.num_classes, 100))
        self.cv2 = nn.ModuleList(
            nn.Sequential(
                ConvBNSiLU(c, box_channels, 3),
                ConvBNSiLU(box_channels, box_channels, 3),
                Conv2d(box_channels, 4 * config.reg_max, 1),
            )
            for c in channels
        )
        self.cv3 = nn.ModuleList(
            nn.Sequential(
                nn.Sequential(ConvBNSiLU(c, c, 3, groups=c), ConvBNSiLU(c, class_channels)),
                nn.Sequential(
                    ConvBNSiLU(class_channels, class_channels, 3, groups=class_channels),
                    ConvBNSiLU(class_channels, class_channels),
                ),
                Conv2d(class_channels, config.num_classes, 1),
            )
            for c in channels
        )

    def forward(self, n3: Tensor, n4: Tensor, n5: Tensor) -> tuple[Tensor, Tensor]:
        sides, logits = (
            torch.cat(
                [layer(x).permute(0, 2, 3, 1).flatten(1, 2) for layer, x in zip(layers, (n3, n4, n5), strict=True)], 1
            )
            for layers in (self.cv2, self.cv3)
        )
        return sides.contiguous(), logits.contiguous()

    def derived_axes(self, sizes: Mapping[str, int]) -> dict[str, int]:
        return {"num_places": 21 * sizes["height"] * sizes["width"]}
