"""Two-dimensional convolution."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, linear

from fastkernels.context import uses_reference
from fastkernels.dtypes import whole_float32
from fastkernels.op import Op, compute_dtype
from fastkernels.spec import Cost, OpSpec, TensorSpec


class Conv2d(Op):
    """y[b, o] = sum over i of x[b, i] * weight[o, i] (+ bias[o]), * the cross-correlation over height and width.

    Shapes:  x: [batch, in_channels, height, width]; weight: [out_channels, in_channels / groups, kernel, kernel];
             bias: [out_channels]; y: [batch, out_channels, out_height, out_width].
    Dtypes:  x, weight and bias alike, bf16, fp16 or fp32; products are summed in at least fp32. With allow_tf32
             cuDNN may round fp32 operands to TF32 on a GPU (errors of 1e-3), unless torch is told otherwise.
    Returns: y. With skip_bias_add it lacks the bias, which the caller adds where it reads y anyway, by the op's
             attribute: y alone comes back, so that its form does not depend on a flag. No argument is written to.
    Errors:  ValueError when x has other channels or is smaller than the kernel.
    Source:  signature as torch.nn.Conv2d with one number for both axes; skip_bias_add as of vLLM's linear layers.
    """

    spec = OpSpec(
        inputs={"x": TensorSpec(("batch", "in_channels", "height", "width"))},
        outputs={"y": TensorSpec(("batch", "out_channels", "out_height", "out_width"))},
        examples=(
            {"in_channels": 16, "out_channels": 24, "kernel_size": 3, "padding": 1},
            {"in_channels": 3, "out_channels": 37, "kernel_size": 8, "stride": 8},
            {"in_channels": 12, "out_channels": 12, "kernel_size": 5, "stride": 2, "padding": 2, "groups": 12},
            {"in_channels": 7, "out_channels": 10, "kernel_size": 1, "skip_bias_add": True},
        ),
        example_axes={"batch": (2, 1), "height": (24, 17), "width": (16, 31)},
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
        skip_bias_add: bool = False,
        allow_tf32: bool = False,
    ) -> None:
        super().__init__()
        self.in_channels, self.out_channels = in_channels, out_channels
        self.kernel_size, self.stride, self.padding = kernel_size, stride, padding
        self.dilation, self.groups = dilation, groups
        self.skip_bias_add, self.allow_tf32 = skip_bias_add, allow_tf32
        fan_in = in_channels // groups * kernel_size**2
        shape = (out_channels, in_channels // groups, kernel_size, kernel_size)
        self.weight = nn.Parameter(torch.empty(shape).normal_(std=fan_in**-0.5))
        self.bias = nn.Parameter(torch.empty(out_channels).normal_(std=0.02)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        reach = self.dilation * (self.kernel_size - 1) + 1
        if x.dim() != 4 or x.shape[1] != self.in_channels or min(x.shape[2:]) + 2 * self.padding < reach:
            raise ValueError(
                f"Conv2d takes [batch, {self.in_channels}, height, width] with sides of at least "
                f"{max(1, reach - 2 * self.padding)}, got x of shape {tuple(x.shape)}."
            )
        if uses_reference(x):
            return self.reference(x)
        if self._is_of_rows(x):
            return self._by_rows(x)
        with nullcontext() if self.allow_tf32 else whole_float32(x):
            return self._convolve(x, self.weight, self._added_bias)

    def _is_of_rows(self, x: Tensor) -> bool:
        """Whether pixels are rows of a dense layer, which adds its bias without a pass of its own."""
        is_of_pixels = self.kernel_size == self.stride == self.groups == 1 and not self.padding
        is_half = x.dtype in (torch.bfloat16, torch.float16)
        return is_of_pixels and is_half and x.is_contiguous(memory_format=torch.channels_last)

    def _by_rows(self, x: Tensor) -> Tensor:
        return linear(x.permute(0, 2, 3, 1), self.weight.flatten(1), self._added_bias).permute(0, 3, 1, 2)

    def reference(self, x: Tensor) -> Tensor:
        wide = x.to(compute_dtype(x))
        bias = None if self._added_bias is None else self._added_bias.to(wide.dtype)
        with whole_float32(wide):
            return self._convolve(wide, self.weight.to(wide.dtype), bias).to(x.dtype)

    @property
    def _added_bias(self) -> Tensor | None:
        return None if self.skip_bias_add else self.bias

    def _convolve(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return conv2d(x, weight, bias, self.stride, self.padding, self.dilation, self.groups)

    def derived_axes(self, sizes: Mapping[str, int]) -> dict[str, int]:
        reach = self.dilation * (self.kernel_size - 1) + 1 - 2 * self.padding
        return {f"out_{side}": (sizes[side] - reach) // self.stride + 1 for side in ("height", "width")}

    def cost(self, inputs: dict[str, Any], outputs: dict[str, Tensor]) -> Cost:
        num_bytes = super().cost(inputs, outputs).num_bytes
        if self.bias is not None and self.skip_bias_add:
            num_bytes -= self.bias.nbytes
        return Cost(num_bytes, 2 * outputs["y"].numel() * self.weight[0].numel())
