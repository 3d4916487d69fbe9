"""The largest pixel of each window."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional

from fastkernels.context import uses_reference
from fastkernels.kernels.max_pool2d import max_pool2d
from fastkernels.op import Op
from fastkernels.spec import Compare, OpSpec, TensorSpec


class MaxPool2d(Op):
    """y[b, c, i, j] = max over the kernel_size x kernel_size window of x[b, c] at (i, j) * stride - padding.

    Shapes:  x: [batch, channels, height, width]; y: [batch, channels, out_height, out_width].
    Dtypes:  any float; nothing is computed.
    Returns: y. No argument is written to.
    Errors:  ValueError when padding is over half of kernel_size, or x is smaller than the window.
    Source:  signature as torch.nn.MaxPool2d with one number for both axes.
    """

    spec = OpSpec(
        inputs={"x": TensorSpec(("batch", "channels", "height", "width"))},
        outputs={"y": TensorSpec(("batch", "channels", "out_height", "out_width"), compare=Compare.EXACT)},
        examples=({"kernel_size": 5, "stride": 1, "padding": 2}, {"kernel_size": 3, "stride": 2}),
        example_axes={"batch": (2, 1), "channels": (5, 3), "height": (20, 7), "width": (17, 5)},
    )

    def __init__(self, kernel_size: int, stride: int | None = None, padding: int = 0) -> None:
        super().__init__()
        if not 0 <= padding <= kernel_size // 2:
            raise ValueError(f"padding is at most half of kernel_size {kernel_size}, got {padding}.")
        self.kernel_size, self.padding = kernel_size, padding
        self.stride = kernel_size if stride is None else stride

    def forward(self, x: Tensor) -> Tensor:
        least = max(1, self.kernel_size - 2 * self.padding)
        if x.dim() != 4 or min(x.shape[2:]) < least:
            raise ValueError(f"MaxPool2d takes [batch, channels, height, width], sides >= {least}, got {x.shape}.")
        is_half = x.dtype in (torch.bfloat16, torch.float16)
        if uses_reference(x) or not is_half or not x.is_contiguous(memory_format=torch.channels_last):
            return self.reference(x)
        return max_pool2d(x, self.kernel_size, self.stride, self.padding)

    def reference(self, x: Tensor) -> Tensor:
        return functional.max_pool2d(x, self.kernel_size, self.stride, self.padding)

    def derived_axes(self, sizes: Mapping[str, int]) -> dict[str, int]:
        reach = self.kernel_size - 2 * self.padding
        return {f"out_{side}": (sizes[side] - reach) // self.stride + 1 for side in ("height", "width")}
