"""Spatial pyramid pooling by repeated small windows."""

from __future__ import annotations

from torch import Tensor

from fastkernels.op import Op
from fastkernels.spec import OpSpec, TensorSpec
from fastkernels.tasks.baseline.L1.max_pool2d import MaxPool2d
from fastkernels.tasks.baseline.L2.conv_bn_silu import ConvBNSiLU
from fastkernels.tasks.baseline.side_by_side import in_one

_NUM_POOLS = 3


class SPPF(Op):
    """y = cv2([h, m(h), m(m(h)), m(m(m(h)))]) with h = cv1(x), m the largest of a window.

    Shapes:  x: [batch, in_channels, height, width]; y: [batch, out_channels, height, width].
    Dtypes:  bf16, fp16 or fp32; products are summed in at least fp32, norms and activations computed in fp32.
    Returns: y. No argument is written to.
    Source:  He et al. 2014 (https://arxiv.org/abs/1406.4729); as SPPF of ultralytics, without has_act
             as it has been built since YOLO26.
    """

    spec = OpSpec(
        inputs={"x": TensorSpec(("batch", "in_channels", "height", "width"))},
        outputs={"y": TensorSpec(("batch", "out_channels", "height", "width"))},
        examples=({"in_channels": 16, "out_channels": 24}, {"in_channels": 11, "out_channels": 17, "has_act": False}),
        example_axes={"batch": (2, 1), "height": (8, 5), "width": (18, 9)},
    )

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int = 5, has_act: bool = True) -> None:
        super().__init__()
        self.in_channels, self.out_channels = in_channels, out_channels
        hidden = in_channels // 2
        self.cv1 = ConvBNSiLU(in_channels, hidden, has_act=has_act)
        self.cv2 = ConvBNSiLU((1 + _NUM_POOLS) * hidden, out_channels)
        self.m = MaxPool2d(kernel_size, stride=1, padding=kernel_size // 2)

    def forward(self, x: Tensor) -> Tensor:
        parts = [self.cv1(x)]
        for _ in range(_NUM_POOLS):
            parts.append(self.m(parts[-1]))
        return in_one(self.cv2, parts)
