"""LightGCN: which items a user may like, from who liked what."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from fastkernels.op import Op
from fastkernels.spec import Cost, OpSpec, Role, TensorSpec
from fastkernels.tasks.baseline.L1.bmm import BMM
from fastkernels.tasks.baseline.L1.embedding import Embedding
from fastkernels.tasks.baseline.L1.top_k_per_row import TopKPerRow
from fastkernels.tasks.baseline.L2.lightgcn_propagation import LightGCNPropagation
from fastkernels.tasks.configs.lightgcn import LightGCNConfig


class LightGCN(Op):
    """scores[i, j] = the product of user users[i]'s and item j's propagated embeddings.

    Shapes:  users: [num_rows], below num_users; crow_indices: [num_nodes + 1]; col_indices, values: [num_values], the
             graph's normalised matrix; scores: [num_rows, num_items].
    Dtypes:  users and indices int64; values, weights and scores bf16, fp16 or fp32.
    Returns: scores. No argument is written to.
    Errors:  those of its parts.
    Source:  He et al. 2020 (https://arxiv.org/abs/2002.02126); recommend of torch_geometric's LightGCN.
    """

    weight_renames: ClassVar[tuple[tuple[str, str], ...]] = ((r"^alpha$", "propagation.alpha"),)

    spec = OpSpec(
        inputs={
            "users": TensorSpec(("num_rows",), dtype="int64", role=Role.INDEX, bound="num_users"),
            "crow_indices": TensorSpec(("num_starts",), dtype="int64", role=Role.COUPLED),
            "col_indices": TensorSpec(("num_values",), dtype="int64", role=Role.INDEX, bound="num_nodes"),
            "values": TensorSpec(("num_values",)),
        },
        outputs={"scores": TensorSpec(("num_rows", "num_items"))},
        examples=({"config": LightGCNConfig.tiny()}, {"config": LightGCNConfig.tiny(embedding_dim=13, num_layers=1)}),
        example_axes={"num_rows": (17, 1), "num_values": (97, 7)},
    )

    def __init__(self, config: LightGCNConfig, prefix: str = "") -> None:
        super().__init__()
        self.num_users = config.num_users
        self.num_items = config.num_items
        self.num_nodes = config.num_nodes
        self.embedding = Embedding(config.num_nodes, config.embedding_dim)
        self.propagation = LightGCNPropagation(config.num_layers)
        self.bmm = BMM()
        self.top_k_per_row = TopKPerRow()

    def forward(self, users: Tensor, crow_indices: Tensor, col_indices: Tensor, values: Tensor) -> Tensor:
        nodes = self.propagation(crow_indices, col_indices, values, self.embedding.weight)
        return self.bmm(nodes[users][None], nodes[None, self.num_users :].transpose(1, 2))[0]

    def recommend(self, users: Tensor, crow_indices: Tensor, col_indices: Tensor, values: Tensor, k: int) -> Tensor:
        """[num_rows, k]: the items of the largest scores, counted from the first item."""
        return self.top_k_per_row(self(users, crow_indices, col_indices, values), k)

    def derived_axes(self, sizes: Mapping[str, int]) -> dict[str, int]:
        return {"num_starts": self.num_nodes + 1}

    def coupled_inputs(self, sizes: Mapping[str, int], generator: torch.Generator) -> dict[str, Any]:
        return self.propagation.coupled_inputs({**sizes, "num_nodes": self.num_nodes}, generator)

    def cost(self, inputs: dict[str, Any], outputs: dict[str, Tensor]) -> Cost:
        flops = self.propagation.cost({**inputs, "x": self.embedding.weight}, {}).num_flops
        flops += 2 * outputs["scores"].numel() * self.embedding.embedding_dim
        return Cost(super().cost(inputs, outputs).num_bytes, flops)
