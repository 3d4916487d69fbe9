"""What a text is before CLIP's first layer."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastkernels.op import Op
from fastkernels.spec import Cost, OpSpec, Role, TensorSpec
from fastkernels.tasks.baseline.L1.embedding import Embedding


class CLIPTextEmbeddings(Op):
    """y[b, i] = token_embedding[input_ids[b, i]] + position_embedding[i].

    Shapes:  input_ids: [batch, num_tokens], at most max_position_embeddings tokens; y: [batch, num_tokens, embed_dim].
    Dtypes:  input_ids int64; y as the tables, bf16, fp16 or fp32.
    Returns: y. No argument is written to.
    Errors:  ValueError when there are more tokens than positions.
    Source:  Radford et al. 2021 (https://arxiv.org/abs/2103.00020); as CLIPTextEmbeddings of transformers.
    """

    spec = OpSpec(
        inputs={
            "input_ids": TensorSpec(("batch", "num_tokens"), dtype="int64", role=Role.TOKEN_ID, bound="vocab_size")
        },
        outputs={"y": TensorSpec(("batch", "num_tokens", "embed_dim"))},
        examples=(
            {"vocab_size": 101, "embed_dim": 32, "max_position_embeddings": 80},
            {"vocab_size": 514, "embed_dim": 21, "max_position_embeddings": 77},
        ),
        example_axes={"batch": (2, 1), "num_tokens": (40, 7)},
    )

    def __init__(self, vocab_size: int, embed_dim: int, max_position_embeddings: int) -> None:
        super().__init__()
        self.vocab_size, self.embed_dim, self.max_position_embeddings = vocab_size, embed_dim, max_position_embeddings
        self.token_embedding = Embedding(vocab_size, embed_dim)
        self.position_embedding = Embedding(max_position_embeddings, embed_dim)

    def forward(self, input_ids: Tensor) -> Tensor:
        num_tokens = input_ids.shape[1]
        if num_tokens > self.max_position_embeddings:
            raise ValueError(f"CLIP knows {self.max_position_embeddings} positions; the text has {num_tokens} tokens.")
        positions = torch.arange(num_tokens, device=input_ids.device)
        return self.token_embedding(input_ids) + self.position_embedding(positions)

    def cost(self, inputs: dict[str, Any], outputs: dict[str, Tensor]) -> Cost:
        ids, y = inputs["input_ids"], outputs["y"]
        num_rows = ids.unique().numel() + ids.shape[1]  # a row that several tokens share is read once
        return Cost((y.numel() + num_rows * self.embed_dim) * y.element_size() + ids.numel() * 8)
