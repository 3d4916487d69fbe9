"""The largest values of each row and where they stand."""

from __future__ import annotations

import torch
from torch import Tensor

from fastkernels.context import uses_reference
from fastkernels.kernels.top_k_per_row import top_k_per_row as top_k_per_row_kernel
from fastkernels.op import Op
from fastkernels.spec import Compare, OpSpec, Role, TensorSpec, scalar


class TopKPerRow(Op):
    """indices[i] = the places of the k largest of x[i], the largest first.

    Shapes:  x: [num_rows, num_cols]; indices: [num_rows, k].
    Dtypes:  x bf16, fp16 or fp32; indices int64.
    Returns: indices; equal values in any order. No argument is written to.
    Errors:  ValueError when k is negative or over num_cols.
    Source:  the indices of torch.topk.
    """

    spec = OpSpec(
        inputs={"x": TensorSpec(("num_rows", "num_cols"), role=Role.LOGITS).strided(), "k": scalar()},
        outputs={
            "indices": TensorSpec(
                ("num_rows", "k"),
                dtype="int64",
                role=Role.INDEX,
                bound="num_cols",
                compare=Compare.VALUE_AT_INDEX,
                of="x",
            ),
        },
        example_axes={"num_cols": (512, 1021, 4099), "k": (8, 1)},
    )

    def forward(self, x: Tensor, k: int) -> Tensor:
        if not 0 <= k <= x.shape[1]:
            raise ValueError(f"TopKPerRow: k is {k}; rows have {x.shape[1]} values.")
        if uses_reference(x):
            return self.reference(x, k)
        return top_k_per_row_kernel(x, k)

    def reference(self, x: Tensor, k: int) -> Tensor:
        return torch.topk(x, k, dim=-1).indices
