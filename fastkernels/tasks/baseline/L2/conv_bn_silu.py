"""A convolution, its batch normalisation and its activation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from fastkernels.kernels.conv_norm_act import MOST_PARTS, packed_weight
from fastkernels.op import Op, is_baseline
from fastkernels.spec import Cost, OpSpec, TensorSpec
from fastkernels.tasks.baseline.L1.batch_norm2d import BatchNorm2d
from fastkernels.tasks.baseline.L1.conv2d import Conv2d
from fastkernels.tasks.baseline.L1.conv_norm_act import ConcatConvNormAct, ConvNormAct

EPS = 1e-3
"""As ultralytics sets for every BatchNorm2d of a model."""

_HALVES = (torch.bfloat16, torch.float16)


class ConvBNSiLU(Op):
    """y = act(bn(conv(x))), act SiLU or nothing; the input is padded by half of the kernel.

    Half precisions go through one kernel and are rounded once, unless another implementation stands in for conv or bn.

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
        self.is_depthwise = groups > 1
        self.conv = Conv2d(in_channels, out_channels, kernel_size, stride, kernel_size // 2, groups=groups, bias=False)
        self.bn = BatchNorm2d(out_channels, EPS, "silu" if has_act else None)
        self.conv_norm_act: ConvNormAct | None = None
        self.concat: ConcatConvNormAct | None = None
        if kernel_size % 2 and (groups == 1 or groups == in_channels == out_channels):
            self.conv_norm_act = ConvNormAct(
                in_channels, out_channels, kernel_size, stride, groups, EPS, self.bn.activation
            )
            if kernel_size == stride == groups == 1:
                self.concat = ConcatConvNormAct(out_channels, EPS, self.bn.activation)

    def forward(self, x: Tensor) -> Tensor:
        y = self.fused([x])
        return self.bn(self.conv(x)) if y is None else y

    def fused(
        self, parts: list[Tensor], residual: Tensor | None = None, op: ConvNormAct | None = None
    ) -> Tensor | None:
        """forward(the parts side by side) (+ residual) in one kernel; None where there is none that does.

        op: in the place of conv_norm_act, with another activation.
        """
        op, is_ours = op or self.conv_norm_act, is_baseline(self.conv) and is_baseline(self.bn)
        if parts[0].dtype not in _HALVES or not is_ours or op is None:
            return None
        if len(parts) == 1:
            return op(parts[0], *self.parameters_in_order(), residual)
        if self.concat is None or residual is not None:
            return None
        if len(parts) > MOST_PARTS:
            parts = [*parts[: MOST_PARTS - 1], torch.cat(parts[MOST_PARTS - 1 :], 1)]
        return self.concat(*parts[:2], *self.parameters_in_order(), *parts[2:])

    def parameters_in_order(self) -> tuple[Tensor, ...]:
        """As ConvNormAct takes them."""
        bn = self.bn
        return self.conv.weight, bn.weight, bn.bias, bn.running_mean, bn.running_var

    def process_weights_after_loading(self) -> None:
        """In the order in which the kernel reads them."""
        weight = self.conv.weight
        if weight.is_cuda and weight.dtype in _HALVES and self.conv_norm_act is not None:
            weight.data = packed_weight(weight.data, self.is_depthwise)

    def derived_axes(self, sizes: Mapping[str, int]) -> dict[str, int]:
        return self.conv.derived_axes(sizes)

    def cost(self, inputs: dict[str, Any], outputs: dict[str, Tensor]) -> Cost:
        return Cost(super().cost(inputs, outputs).num_bytes, self.conv.cost(inputs, outputs).num_flops)
