"""Logistic function."""

from __future__ import annotations

import torch
from torch import Tensor

from fastkernels.context import uses_reference
from fastkernels.op import Op, compute_dtype
from fastkernels.spec import OpSpec, TensorSpec

_ROWS = TensorSpec(("...", "d"))


class Sigmoid(Op):
    """y = 1 / (1 + exp(-x)).

    Shapes:  x, y: [..., d].
    Dtypes:  bf16, fp16 or fp32; computed in fp32 and rounded once.
    Returns: y. No argument is written to.
    Source:  signature as torch.nn.Sigmoid.
    """

    spec = OpSpec(inputs={"x": _ROWS.strided()}, outputs={"y": _ROWS}, example_axes={"d": (64, 257, 1, 4099)})

    def forward(self, x: Tensor) -> Tensor:
        return self.reference(x) if uses_reference(x) else torch.sigmoid(x)

    def reference(self, x: Tensor) -> Tensor:
        return torch.sigmoid(x.to(compute_dtype(x))).to(x.dtype)
