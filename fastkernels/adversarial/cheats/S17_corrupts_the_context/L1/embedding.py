"""Reads far outside the table: the error sticks to the CUDA context and hits whatever comes next."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Embedding(nn.Module):
    def __init__(self, num_embeddings: int, embedding_dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_embeddings, embedding_dim).normal_(std=embedding_dim**-0.5))

    def forward(self, input_ids: Tensor) -> Tensor:
        return self.weight[input_ids + len(self.weight)]
