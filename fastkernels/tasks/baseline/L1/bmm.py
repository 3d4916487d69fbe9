"""Products of pairs of matrices."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastkernels.context import uses_reference
from fastkernels.op import Op, compute_dtype
from fastkernels.spec import Cost, OpSpec, TensorSpec


class BMM(Op):
    """y[b] = x[b] @ mat2[b].

    Shapes:  x: [batch, n, m]; mat2: [batch, m, p]; y: [batch, n, p].
    Dtypes:  x and mat2 alike, bf16, fp16 or fp32; products are summed in at least fp32.
    Returns: y. No argument is written to.
    Source:  signature as torch.bmm.
    """

    spec = OpSpec(
        inputs={"x": TensorSpec(("batch", "n", "m")), "mat2": TensorSpec(("batch", "m", "p"))},
        outputs={"y": TensorSpec(("batch", "n", "p"))},
        example_axes={"batch": (2, 1), "n": (17, 33), "m": (64, 13), "p": (31, 65)},
        is_exact_on_integers=True,
    )

    def forward(self, x: Tensor, mat2: Tensor) -> Tensor:
        return self.reference(x, mat2) if uses_reference(x) else torch.bmm(x, mat2)

    def reference(self, x: Tensor, mat2: Tensor) -> Tensor:
        dtype = compute_dtype(x)
        return torch.bmm(x.to(dtype), mat2.to(dtype)).to(x.dtype)

    def cost(self, inputs: dict[str, Any], outputs: dict[str, Tensor]) -> Cost:
        num_bytes = super().cost(inputs, outputs).num_bytes
        return Cost(num_bytes, 2 * outputs["y"].numel() * inputs["x"].shape[2])
