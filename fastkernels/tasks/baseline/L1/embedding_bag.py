"""Sums of rows of several embedding tables at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn

from fastkernels.context import uses_reference
from fastkernels.distributed.sharded_layer import ShardId
from fastkernels.distributed.tensor_parallel import WeightSource
from fastkernels.kernels.embedding_bag import embedding_bag
from fastkernels.op import Op, compute_dtype
from fastkernels.spec import Cost, OpSpec, Role, TensorSpec


class EmbeddingBag(Op):
    """y[b, t] = sum over the ids[b, t, j] >= 0 of table t's row ids[b, t, j]; no id gives zeros.

    Shapes:  ids: [num_rows, num_tables, num_ids]; y: [num_rows, num_tables, embedding_dim]; weight: the tables one
             under the other, [sum of num_embeddings, embedding_dim].
    Dtypes:  ids int64, each below its table's num_embeddings, negative where there is none; weight bf16, fp16 or fp32;
             sums in fp32.
    Returns: y. No argument is written to.
    Errors:  ValueError when ids has other tables.
    Source:  torch.nn.EmbeddingBag of mode "sum", for all tables as FBGEMM's table-batched embedding bags.
    """

    spec = OpSpec(
        inputs={
            "ids": TensorSpec(
                ("num_rows", "num_tables", "num_ids"), dtype="int64", role=Role.COUPLED, bound="num_embeddings"
            )
        },
        outputs={"y": TensorSpec(("num_rows", "num_tables", "embedding_dim"))},
        examples=(
            {"num_embeddings": [101, 7, 64], "embedding_dim": 32},
            {"num_embeddings": [3, 1], "embedding_dim": 13},
        ),
        example_axes={"num_rows": (17, 1), "num_ids": (4, 1, 37)},
    )

    def __init__(self, num_embeddings: Sequence[int], embedding_dim: int) -> None:
        super().__init__()
        self.num_embeddings = tuple(num_embeddings)
        self.num_tables = len(self.num_embeddings)
        self.embedding_dim = embedding_dim
        starts = [0, *accumulate(self.num_embeddings)]
        self.weight = nn.Parameter(torch.empty(starts[-1], embedding_dim).normal_(std=embedding_dim**-0.5))
        self.register_buffer("first_rows", torch.tensor(starts[:-1]), persistent=False)
        self.first_rows: Tensor

    def forward(self, ids: Tensor) -> Tensor:
        if ids.dim() != 3 or ids.shape[1] != self.num_tables:
            raise ValueError(f"EmbeddingBag takes ids [num_rows, {self.num_tables}, num_ids], got {tuple(ids.shape)}.")
        return self.reference(ids) if uses_reference(ids) else embedding_bag(ids, self.first_rows, self.weight)

    def reference(self, ids: Tensor) -> Tensor:
        rows = (ids.clamp(min=0) + self.first_rows[:, None]).flatten()
        found = self.weight[rows].view(*ids.shape, self.embedding_dim).to(compute_dtype(self.weight))
        return found.masked_fill((ids < 0)[..., None], 0.0).sum(2).to(self.weight.dtype)

    def coupled_inputs(self, sizes: Mapping[str, int], generator: torch.Generator) -> dict[str, Any]:
        shape = (sizes["num_rows"], sizes["num_ids"])
        ids = [torch.randint(-1, n, shape, generator=generator) for n in self.num_embeddings]
        return {"ids": torch.stack(ids, dim=1)}

    def cost(self, inputs: dict[str, Any], outputs: dict[str, Tensor]) -> Cost:
        ids, y = inputs["ids"], outputs["y"]
        rows = (ids + self.first_rows[:, None])[ids >= 0]
        row_bytes = self.embedding_dim * self.weight.element_size()
        num_bytes = ids.numel() * 8 + y.numel() * y.element_size() + rows.unique().numel() * row_bytes
        return Cost(num_bytes, rows.numel() * self.embedding_dim)

    def checkpoint_shape(self, param: Tensor, shard_id: ShardId = None) -> tuple[int, ...]:
        """Of one table; a checkpoint has each under its own name."""
        return tuple(param.shape) if shard_id is None else (self.num_embeddings[int(shard_id)], self.embedding_dim)

    def weight_loader(self, param: nn.Parameter, loaded_weight: WeightSource, shard_id: ShardId = None) -> None:
        first, size = 0, len(param)
        if shard_id is not None:
            first, size = int(self.first_rows[int(shard_id)]), self.num_embeddings[int(shard_id)]
        param.data.narrow(0, first, size).copy_(loaded_weight.narrow(0, 0, size))
