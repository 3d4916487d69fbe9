"""YOLOv10's backbone: an image to features at an eighth, a sixteenth and a thirty-second of its size."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from fastkernels.op import Op
from fastkernels.spec import OpSpec, TensorSpec
from fastkernels.tasks.baseline.L2.c2f import C2f, C2fCIB
from fastkernels.tasks.baseline.L2.conv_bn_silu import ConvBNSiLU
from fastkernels.tasks.baseline.L2.psa import PSA
from fastkernels.tasks.baseline.L2.sc_down import SCDown
from fastkernels.tasks.baseline.L2.sppf import SPPF
from fastkernels.tasks.configs.yolov10 import YOLOv10Config

_TAPS = ("4", "6", "10")


def stage(
    config: YOLOv10Config, number: int, in_channels: int, out_channels: int, repeats: int, shortcut: bool
) -> nn.Module:
    """The C2f of layer `number`, of compact inverted blocks where the configuration says so."""
    n = config.repeats(repeats)
    if number not in config.cib_layers:
        return C2f(in_channels, out_channels, n, shortcut)
    return C2fCIB(in_channels, out_channels, n, True, number in config.large_kernel_layers)


class YOLOv10Backbone(Op):
    """p3, p4, p5 = layers 4, 6 and 10 of: stem, two stages, two that downsample channels and places apart, SPPF, PSA.

    Shapes:  x: [batch, 3, height, width], sides multiples of 32; p3: [batch, p3_channels, height / 8, width / 8];
             p4, p5: the same at a sixteenth and a thirty-second.
    Dtypes:  bf16, fp16 or fp32; products are summed in at least fp32, norms, activations and softmax computed in fp32.
    Returns: (p3, p4, p5). No argument is written to.
    Errors:  those of its parts.
    Source:  Wang et al. 2024 (https://arxiv.org/abs/2405.14458); layers 0 to 10 of the published yolov10n.yaml.
    """

    spec = OpSpec(
        inputs={"x": TensorSpec(("batch", "3", "8*height", "8*width"))},
        outputs={
            "p3": TensorSpec(("batch", "p3_channels", "height", "width")),
            "p4": TensorSpec(("batch", "p4_channels", "half_height", "half_width")),
            "p5": TensorSpec(("batch", "p5_channels", "quarter_height", "quarter_width")),
        },
        dtypes=("float32",),  # of drawn cases: weights by seed leave rows of half precisions ill-conditioned
        examples=({"config": YOLOv10Config.tiny()},),
        example_axes={"batch": (2, 1), "height": (8, 4), "width": (4, 8)},
    )

    def __init__(self, config: YOLOv10Config, prefix: str = "") -> None:
        super().__init__()
        c1, c2, c3, c4, c5 = (config.channels(n) for n in (64, 128, 256, 512, 1024))
        self.p3_channels, self.p4_channels, self.p5_channels = c3, c4, c5
        layers: list[nn.Module] = [
            ConvBNSiLU(3, c1, 3, 2),
            ConvBNSiLU(c1, c2, 3, 2),
            stage(config, 2, c2, c2, 3, True),
            ConvBNSiLU(c2, c3, 3, 2),
            stage(config, 4, c3, c3, 6, True),
            SCDown(c3, c4),
            stage(config, 6, c4, c4, 6, True),
            SCDown(c4, c5),
            stage(config, 8, c5, c5, 3, True),
            SPPF(c5, c5),
            PSA(c5),
        ]
        self.layers = nn.ModuleDict({str(i): layer for i, layer in enumerate(layers)})

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        kept = []
        for name, layer in self.layers.items():
            x = layer(x)
            if name in _TAPS:
                kept.append(x)
        return kept[0], kept[1], kept[2]

    def derived_axes(self, sizes: Mapping[str, int]) -> dict[str, int]:
        height, width = sizes["height"], sizes["width"]
        return {
            "half_height": height // 2,
            "half_width": width // 2,
            "quarter_height": height // 4,
            "quarter_width": width // 4,
        }
