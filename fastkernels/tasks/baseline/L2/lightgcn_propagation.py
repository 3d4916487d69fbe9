"""What a node is by its neighbours, theirs, and so on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fastkernels.op import Op
from fastkernels.spec import Cost, OpSpec, Role, TensorSpec
from fastkernels.tasks.baseline.L1.addcmul import Addcmul
from fastkernels.tasks.baseline.L1.spmm import SpMM


class LightGCNPropagation(Op):
    """y = sum over l of alpha[l] * A^l x, A the matrix of crow_indices, col_indices and values.

    Shapes:  crow_indices: [num_nodes + 1]; col_indices, values: [num_values]; x, y: [num_nodes, dim].
    Dtypes:  indices int64; values and x alike, bf16, fp16 or fp32; sums in fp32.
    Returns: y. No argument is written to.
    Source:  He et al. 2020 (https://arxiv.org/abs/2002.02126), eq. 8; get_embedding of torch_geometric's LightGCN.
    """

    spec = OpSpec(
        inputs={
            "crow_indices": TensorSpec(("num_starts",), dtype="int64", role=Role.COUPLED),
            "col_indices": TensorSpec(("num_values",), dtype="int64", role=Role.INDEX, bound="num_nodes"),
            "values": TensorSpec(("num_values",)),
            "x": TensorSpec(("num_nodes", "dim")),
        },
        outputs={"y": TensorSpec(("num_nodes", "dim"))},
        examples=({"num_layers": 3}, {"num_layers": 1}),
        example_axes={"num_nodes": (31, 5), "num_values": (97, 3), "dim": (64, 13)},
    )

    def __init__(self, num_layers: int) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.full((num_layers + 1,), 1 / (num_layers + 1)), requires_grad=False)
        self.spmm = SpMM()
        self.addcmul = Addcmul()

    def forward(self, crow_indices: Tensor, col_indices: Tensor, values: Tensor, x: Tensor) -> Tensor:
        y = x * self.alpha[0]
        for weight in self.alpha[1:]:
            x = self.spmm(crow_indices, col_indices, values, x)
            y = self.addcmul(y, x, weight)
        return y

    def derived_axes(self, sizes: Mapping[str, int]) -> dict[str, int]:
        return {"num_starts": sizes["num_nodes"] + 1}

    def coupled_inputs(self, sizes: Mapping[str, int], generator: torch.Generator) -> dict[str, Any]:
        return self.spmm.coupled_inputs({**sizes, "num_rows": sizes["num_nodes"]}, generator)

    def cost(self, inputs: dict[str, Any], outputs: dict[str, Tensor]) -> Cost:
        flops = 2 * inputs["values"].numel() * inputs["x"].shape[1] * (len(self.alpha) - 1)
        return Cost(super().cost(inputs, outputs).num_bytes, flops)
