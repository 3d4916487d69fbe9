"""What a text is before XLM-RoBERTa's first layer."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastkernels.op import Op
from fastkernels.spec import Cost, OpSpec, Role, TensorSpec
from fastkernels.tasks.baseline.L1.embedding import Embedding
from fastkernels.tasks.baseline.L1.layer_norm import LayerNorm


class XLMRobertaEmbeddings(Op):
    """y = LayerNorm(word_embeddings[input_ids] + token_type_embeddings[0] + position_embeddings[positions]).

    Shapes:  input_ids, positions: [num_tokens], positions as the table counts them; y: [num_tokens, hidden_size].
    Dtypes:  input_ids and positions int64; y as the tables, bf16, fp16 or fp32; the norm in fp32.
    Returns: y. No argument is written to.
    Errors:  those of its parts.
    Source:  Conneau et al. 2019 (https://arxiv.org/abs/1911.02116); as XLMRobertaEmbeddings of transformers.
    """

    spec = OpSpec(
        inputs={
            "input_ids": TensorSpec(("num_tokens",), dtype="int64", role=Role.TOKEN_ID, bound="vocab_size"),
            "positions": TensorSpec(("num_tokens",), dtype="int64", role=Role.INDEX, bound="max_position_embeddings"),
        },
        outputs={"y": TensorSpec(("num_tokens", "hidden_size"))},
        examples=(
            {"vocab_size": 101, "hidden_size": 32, "max_position_embeddings": 80},
            {"vocab_size": 514, "hidden_size": 21, "max_position_embeddings": 77, "type_vocab_size": 2},
        ),
        example_axes={"num_tokens": (40, 7)},
    )

    def __init__(
        self,
        vocab_size: int,
        hidden_size: int,
        max_position_embeddings: int,
        type_vocab_size: int = 1,
        layer_norm_eps: float = 1e-5,
    ) -> None:
        super().__init__()
        self.vocab_size, self.hidden_size = vocab_size, hidden_size
        self.max_position_embeddings = max_position_embeddings
        self.word_embeddings = Embedding(vocab_size, hidden_size)
        self.position_embeddings = Embedding(max_position_embeddings, hidden_size)
        self.token_type_embeddings = Embedding(type_vocab_size, hidden_size)
        self.LayerNorm = LayerNorm(hidden_size, layer_norm_eps, returns_sum=False)

    def forward(self, input_ids: Tensor, positions: Tensor) -> Tensor:
        kind = self.token_type_embeddings(torch.zeros(1, dtype=torch.int64, device=input_ids.device))
        return self.LayerNorm(self.position_embeddings(positions), self.word_embeddings(input_ids) + kind)

    def cost(self, inputs: dict[str, Any], outputs: dict[str, Tensor]) -> Cost:
        y = outputs["y"]
        rows = sum(inputs[name].unique().numel() for name in ("input_ids", "positions"))
        small = 3 * self.hidden_size * y.element_size()
        return Cost(y.numel() * y.element_size() + rows * self.hidden_size * y.element_size() + 16 * len(y) + small)
