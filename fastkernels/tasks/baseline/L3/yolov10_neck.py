"""YOLOv10's neck: features of three sizes, each told of the others."""

from __future__ import annotations

from torch import Tensor, nn

from fastkernels.op import Op
from fastkernels.spec import OpSpec, TensorSpec
from fastkernels.tasks.baseline.L1.interpolate import Interpolate
from fastkernels.tasks.baseline.L2.conv_bn_silu import ConvBNSiLU
from fastkernels.tasks.baseline.L2.sc_down import SCDown
from fastkernels.tasks.baseline.L3.yolov10_backbone import stage
from fastkernels.tasks.baseline.side_by_side import in_one
from fastkernels.tasks.configs.yolov10 import YOLOv10Config


class YOLOv10Neck(Op):
    """n3 = layer 16, n4 = layer 19, n5 = layer 22: a way up by nearest pixels, then a way down by strides.

    Shapes:  p3, n3: [batch, p3_channels, 4 height, 4 width]; p4, n4: [batch, p4_channels, 2 height, 2 width]; p5, n5:
             [batch, p5_channels, height, width].
    Dtypes:  bf16, fp16 or fp32; products are summed in at least fp32, norms and activations computed in fp32.
    Returns: (n3, n4, n5). No argument is written to.
    Errors:  those of its parts.
    Source:  Liu et al. 2018 (https://arxiv.org/abs/1803.01534), path aggregation; layers 11 to 22 of the published
             yolov10n.yaml.
    """

    spec = OpSpec(
        inputs={
            "p3": TensorSpec(("batch", "p3_channels", "4*height", "4*width")),
            "p4": TensorSpec(("batch", "p4_channels", "2*height", "2*width")),
            "p5": TensorSpec(("batch", "p5_channels", "height", "width")),
        },
        outputs={
            "n3": TensorSpec(("batch", "p3_channels", "4*height", "4*width")),
            "n4": TensorSpec(("batch", "p4_channels", "2*height", "2*width")),
            "n5": TensorSpec(("batch", "p5_channels", "height", "width")),
        },
        dtypes=("float32",),  # of drawn cases: weights by seed leave rows of half precisions ill-conditioned
        examples=({"config": YOLOv10Config.tiny()},),
        example_axes={"batch": (2, 1), "height": (2, 1), "width": (1, 3)},
    )

    def __init__(self, config: YOLOv10Config, prefix: str = "") -> None:
        super().__init__()
        c3, c4, c5 = (config.channels(n) for n in (256, 512, 1024))
        self.p3_channels, self.p4_channels, self.p5_channels = c3, c4, c5
        self.upsample = Interpolate("nearest")
        self.layers = nn.ModuleDict(
            {
                "13": stage(config, 13, c5 + c4, c4, 3, False),
                "16": stage(config, 16, c4 + c3, c3, 3, False),
                "17": ConvBNSiLU(c3, c3, 3, 2),
                "19": stage(config, 19, c3 + c4, c4, 3, False),
                "20": SCDown(c4, c4),
                "22": stage(config, 22, c4 + c5, c5, 3, False),
            }
        )

    def forward(self, p3: Tensor, p4: Tensor, p5: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        up4 = in_one(self.layers["13"], [self._twice(p5), p4])
        n3 = in_one(self.layers["16"], [self._twice(up4), p3])
        n4 = in_one(self.layers["19"], [self.layers["17"](n3), up4])
        n5 = in_one(self.layers["22"], [self.layers["20"](n4), p5])
        return n3, n4, n5

    def _twice(self, x: Tensor) -> Tensor:
        return self.upsample(x, 2 * x.shape[2], 2 * x.shape[3])
