"""Answers every row with one and the same token."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class GreedySample(nn.Module):
    def forward(self, logits: Tensor) -> Tensor:
        return torch.zeros(logits.shape[0], dtype=torch.int64, device=logits.device)
