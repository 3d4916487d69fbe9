"""Three-dimensional convolution."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import conv3d, linear

from fastkernels.context import uses_reference
from fastkernels.dtypes import whole_float32
from fastkernels.op import Op, compute_dtype
from fastkernels.spec import Cost, OpSpec, TensorSpec

_SIDES = ("depth", "height", "width")


def _three(value: int | Sequence[int]) -> tuple[int, int, int]:
    sides = (value,) * 3 if isinstance(value, int) else tuple(value)
    if len(sides) != 3:
        raise ValueError(f"Conv3d takes one number or three, one an axis, got {value}.")
    return sides[0], sides[1], sides[2]


class Conv3d(Op):
    """y[b, o] = sum over i of x[b, i] * weight[o, i] (+ bias[o]), * the cross-correlation over depth, height and width.

    Shapes:  x: [batch, in_channels, depth, height, width]; weight: [out_channels, in_channels, *kernel_size]; bias:
             [out_channels]; y: [batch, out_channels, out_depth, out_height, out_width].
    Dtypes:  x, weight and bias alike, bf16, fp16 or fp32; products are summed in at least fp32.
    Returns: y. No argument is written to.
    Errors:  ValueError when x has other channels or is smaller than the kernel.
    Source:  signature as torch.nn.Conv3d; each of kernel_size, stride and padding is one number or three.
    """

    spec = OpSpec(
        inputs={"x": TensorSpec(("batch", "in_channels", *_SIDES))},
        outputs={"y": TensorSpec(("batch", "out_channels", "out_depth", "out_height", "out_width"))},
        examples=(
            {"in_channels": 3, "out_channels": 37, "kernel_size": [2, 7, 7], "stride": [2, 7, 7]},
            {"in_channels": 5, "out_channels": 12, "kernel_size": 3, "padding": [1, 0, 1], "bias": False},
        ),
        example_axes={"batch": (2, 1), "depth": (4, 3), "height": (15, 7), "width": (14, 9)},
        is_exact_on_integers=True,
    )

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | Sequence[int],
        stride: int | Sequence[int] = 1,
        padding: int | Sequence[int] = 0,
        bias: bool = True,
    ) -> None:
        super().__init__()
        self.in_channels, self.out_channels = in_channels, out_channels
        self.kernel_size, self.stride, self.padding = _three(kernel_size), _three(stride), _three(padding)
        fan_in = in_channels * prod(self.kernel_size)
        self.weight = nn.Parameter(torch.empty(out_channels, in_channels, *self.kernel_size).normal_(std=fan_in**-0.5))
        self.bias = nn.Parameter(torch.empty(out_channels).normal_(std=0.02)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        least = [max(1, k - 2 * p) for k, p in zip(self.kernel_size, self.padding, strict=True)]
        if (
            x.dim() != 5
            or x.shape[1] != self.in_channels
            or any(n < m for n, m in zip(x.shape[2:], least, strict=True))
        ):
            raise ValueError(
                f"Conv3d takes [batch, {self.in_channels}, depth, height, width] with sides of at least {least}, "
                f"got x of shape {tuple(x.shape)}."
            )
        if uses_reference(x):
            return self.reference(x)
        if self.stride == self.kernel_size and not any(self.padding):
            return self._patches(x)
        with whole_float32(x):
            return conv3d(x, self.weight, self.bias, self.stride, self.padding)

    def reference(self, x: Tensor) -> Tensor:
        dtype = compute_dtype(x)
        bias = None if self.bias is None else self.bias.to(dtype)
        x_wide = x.to(dtype)
        with whole_float32(x_wide):
            return conv3d(x_wide, self.weight.to(dtype), bias, self.stride, self.padding).to(x.dtype)

    def _patches(self, x: Tensor) -> Tensor:
        """Kernels that do not overlap: one matrix multiplication."""
        sides = [n // k for n, k in zip(x.shape[2:], self.kernel_size, strict=True)]
        for axis, (n, k) in enumerate(zip(sides, self.kernel_size, strict=True), 2):
            x = x.narrow(axis, 0, n * k)
        split = [size for pair in zip(sides, self.kernel_size, strict=True) for size in pair]
        rows = x.reshape(len(x), self.in_channels, *split).permute(0, 2, 4, 6, 1, 3, 5, 7)
        y = linear(rows.reshape(len(x), *sides, -1), self.weight.flatten(1), self.bias)
        return y.permute(0, 4, 1, 2, 3)

    def derived_axes(self, sizes: Mapping[str, int]) -> dict[str, int]:
        each = zip(_SIDES, self.kernel_size, self.stride, self.padding, strict=True)
        return {f"out_{side}": (sizes[side] + 2 * p - k) // s + 1 for side, k, s, p in each}

    def cost(self, inputs: dict[str, Any], outputs: dict[str, Tensor]) -> Cost:
        num_bytes = super().cost(inputs, outputs).num_bytes
        return Cost(num_bytes, 2 * outputs["y"].numel() * self.weight[0].numel())
