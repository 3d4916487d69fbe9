"""One-dimensional convolution."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import conv1d

from fastkernels.context import uses_reference
from fastkernels.dtypes import whole_float32
from fastkernels.op import Op, compute_dtype
from fastkernels.spec import Cost, OpSpec, TensorSpec


class Conv1d(Op):
    """y[b, o] = sum over i of x[b, i] * weight[o, i] (+ bias[o]), * the cross-correlation over the last axis.

    Shapes:  x: [batch, in_channels, length]; weight: [out_channels, in_channels / groups, kernel_size];
             bias: [out_channels]; y: [batch, out_channels, out_length].
    Dtypes:  x, weight and bias alike, bf16, fp16 or fp32; products are summed in at least fp32.
    Returns: y. No argument is written to.
    Errors:  ValueError when x has other channels or is shorter than the kernel.
    Source:  signature as torch.nn.Conv1d.
    """

    spec = OpSpec(
        inputs={"x": TensorSpec(("batch", "in_channels", "length"))},
        outputs={"y": TensorSpec(("batch", "out_channels", "out_length"))},
        examples=(
            {"in_channels": 16, "out_channels": 24, "kernel_size": 3, "padding": 1},
            {"in_channels": 11, "out_channels": 37, "kernel_size": 3, "stride": 2, "padding": 1},
            {"in_channels": 12, "out_channels": 12, "kernel_size": 5, "dilation": 2, "groups": 12, "bias": False},
        ),
        example_axes={"batch": (2, 1), "length": (41, 18)},
        is_exact_on_integers=True,
    )

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        stride: int = 1,
        padding: int = 0,
        dilation: int = 1,
        groups: int = 1,
        bias: bool = True,
    ) -> None:
        super().__init__()
        self.in_channels, self.out_channels = in_channels, out_channels
        self.kernel_size, self.stride, self.padding = kernel_size, stride, padding
        self.dilation, self.groups = dilation, groups
        fan_in = in_channels // groups * kernel_size
        shape = (out_channels, in_channels // groups, kernel_size)
        self.weight = nn.Parameter(torch.empty(shape).normal_(std=fan_in**-0.5))
        self.bias = nn.Parameter(torch.empty(out_channels).normal_(std=0.02)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        least = max(1, self.dilation * (self.kernel_size - 1) + 1 - 2 * self.padding)
        if x.dim() != 3 or x.shape[1] != self.in_channels or x.shape[2] < least:
            raise ValueError(
                f"Conv1d takes [batch, {self.in_channels}, length] of a length of at least {least}, "
                f"got x of shape {tuple(x.shape)}."
            )
        return self.reference(x) if uses_reference(x) else self._convolve(x, self.weight, self.bias)

    def reference(self, x: Tensor) -> Tensor:
        dtype = compute_dtype(x)
        bias = None if self.bias is None else self.bias.to(dtype)
        return self._convolve(x.to(dtype), self.weight.to(dtype), bias).to(x.dtype)

    def _convolve(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        with whole_float32(x):
            return conv1d(x, weight, bias, self.stride, self.padding, self.dilation, self.groups)

    def derived_axes(self, sizes: Mapping[str, int]) -> dict[str, int]:
        reach = self.dilation * (self.kernel_size - 1) + 1 - 2 * self.padding
        return {"out_length": (sizes["length"] - reach) // self.stride + 1}

    def cost(self, inputs: dict[str, Any], outputs: dict[str, Tensor]) -> Cost:
        num_bytes = super().cost(inputs, outputs).num_bytes
        return Cost(num_bytes, 2 * outputs["y"].numel() * self.weight[0].numel())
