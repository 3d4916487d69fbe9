"""Rows of a table by token id."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding

from fastkernels.op import Op
from fastkernels.spec import Compare, Cost, OpSpec, Role, TensorSpec


class Embedding(Op):
    """y[i] = weight[input_ids[i]].

    Shapes:  input_ids: [...]; weight: [num_embeddings, embedding_dim]; y: [..., embedding_dim].
    Dtypes:  input_ids int64 or int32, in [0, num_embeddings); weight bf16, fp16 or fp32; y as weight, bit for bit.
    Returns: y. No argument is written to.
    Errors:  ValueError when input_ids is not int32 or int64; IndexError on a CPU when an id is outside the table.
    Source:  signature as torch.nn.Embedding.
    """

    spec = OpSpec(
        inputs={"input_ids": TensorSpec(("num_tokens",), dtype="int64", role=Role.TOKEN_ID, bound="num_embeddings")},
        may_be_empty=("num_tokens",),
        outputs={"y": TensorSpec(("num_tokens", "embedding_dim"), compare=Compare.EXACT)},
        examples=({"num_embeddings": 512, "embedding_dim": 64}, {"num_embeddings": 101, "embedding_dim": 37}),
    )

    def __init__(self, num_embeddings: int, embedding_dim: int) -> None:
        super().__init__()
        self.num_embeddings = num_embeddings
        self.embedding_dim = embedding_dim
        self.weight = nn.Parameter(torch.empty(num_embeddings, embedding_dim).normal_(std=embedding_dim**-0.5))

    def forward(self, input_ids: Tensor) -> Tensor:
        if input_ids.dtype not in (torch.int64, torch.int32):
            raise ValueError(f"Embedding takes int64 or int32 ids, got {input_ids.dtype}.")
        return self.reference(input_ids)

    def reference(self, input_ids: Tensor) -> Tensor:
        return embedding(input_ids, self.weight)

    def cost(self, inputs: dict[str, Any], outputs: dict[str, Tensor]) -> Cost:
        ids = inputs["input_ids"]
        row_bytes = self.embedding_dim * self.weight.element_size()
        num_rows = ids.unique().numel()  # a row that several tokens share is read once
        return Cost(ids.numel() * (ids.element_size() + row_bytes) + num_rows * row_bytes)
