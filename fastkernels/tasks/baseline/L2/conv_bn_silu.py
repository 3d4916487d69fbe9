"""A convolution, its batch normalisation and its activation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from fastkernels.op import Op
from fastkernels.spec import Cost, OpSpec, TensorSpec
from fastkernels.tasks.baseline.L1.batch_norm2d import BatchNorm2d
from fastkernels.tasks.baseline.L1.conv2d import Conv2d

EPS = 1e-3
"""As ultralytics sets for every BatchNorm2d of a model."""


class ConvBNSiLU(Op):
    """y = act(bn(conv(x))), act SiLU or nothing; the input is padded by half of the kernel.

    Shapes:  x: [batch, in_channels, height, width]; y: [batch, out_channels, out_height, out_width].
    Dtypes:  bf16, fp16 or fp32; products are summed in at least fp32, norm and activation computed in fp32.
    Returns: y. No argument is written to.
    Errors:  those of its parts.
    Source:  Jocher et al. (https://github.com/ultralytics/ultralytics), Conv; names of parameters as there.
    """

    spec = OpSpec(
        inputs={"x": TensorSpec(("batch", "in_channels", "height", "width"))},
        outputs={"y": TensorSpec(("batch", "out_channels", "out_height", "out_width"))},
        examples=(
            {"in_channels": 12, "out_channels": 24, "kernel_size": 3, "stride": 2},
            {"in_channels": 17, "out_channels": 17, "kernel_size": 7, "groups": 17, "has_act": False},
        ),
        example_axes={"batch": (2, 1), "height": (8, 9), "width": (36, 7)},
    )

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 1,
        stride: int = 1,
        groups: int = 1,
        has_act: bool = True,
    ) -> None:
        super().__init__()
        self.in_channels, self.out_channels = in_channels, out_channels
        self.conv = Conv2d(in_channels, out_channels, kernel_size, stride, kernel_size // 2, groups=groups, bias=False)
        self.bn = BatchNorm2d(out_channels, EPS, "silu" if has_act else None)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.conv(x))

    def derived_axes(self, sizes: Mapping[str, int]) -> dict[str, int]:
        return self.conv.derived_axes(sizes)

    def cost(self, inputs: dict[str, Any], outputs: dict[str, Tensor]) -> Cost:
        return Cost(super().cost(inputs, outputs).num_bytes, self.conv.cost(inputs, outputs).num_flops)
