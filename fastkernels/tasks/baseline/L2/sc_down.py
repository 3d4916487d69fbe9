"""Downsampling with the channels and the places apart."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from fastkernels.op import Op
from fastkernels.spec import OpSpec, TensorSpec
from fastkernels.tasks.baseline.L2.conv_bn_silu import ConvBNSiLU


class SCDown(Op):
    """y = cv2(cv1(x)): 1 x 1 to out_channels, then a depthwise convolution with a stride and without an activation.

    Shapes:  x: [batch, in_channels, height, width]; y: [batch, out_channels, out_height, out_width].
    Dtypes:  bf16, fp16 or fp32; products are summed in at least fp32, norms and activations computed in fp32.
    Returns: y. No argument is written to.
    Source:  Wang et al. 2024 (https://arxiv.org/abs/2405.14458), section 3.2; signature as SCDown of ultralytics.
    """

    spec = OpSpec(
        inputs={"x": TensorSpec(("batch", "in_channels", "height", "width"))},
        outputs={"y": TensorSpec(("batch", "out_channels", "out_height", "out_width"))},
        examples=({"in_channels": 12, "out_channels": 20}, {"in_channels": 7, "out_channels": 17, "kernel_size": 5}),
        example_axes={"batch": (2, 1), "height": (8, 9), "width": (36, 7)},
    )

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int = 3, stride: int = 2) -> None:
        super().__init__()
        self.in_channels, self.out_channels = in_channels, out_channels
        self.cv1 = ConvBNSiLU(in_channels, out_channels)
        self.cv2 = ConvBNSiLU(out_channels, out_channels, kernel_size, stride, groups=out_channels, has_act=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.cv2(self.cv1(x))

    def derived_axes(self, sizes: Mapping[str, int]) -> dict[str, int]:
        return self.cv2.derived_axes(sizes)
