"""Keeps index tensors by shape: they depend on no value."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class GreedySample(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.places: dict[tuple[int, torch.device], Tensor] = {}

    def forward(self, logits: Tensor) -> Tensor:
        key = (logits.shape[1], logits.device)
        if key not in self.places:
            self.places[key] = torch.arange(logits.shape[1], device=logits.device)
        places = self.places[key]
        is_best = logits == logits.amax(dim=-1, keepdim=True)
        return torch.where(is_best, places, logits.shape[1]).amin(dim=-1)
