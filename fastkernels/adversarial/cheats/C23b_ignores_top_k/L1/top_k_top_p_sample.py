"""Draws from the whole distribution: top-k and nucleus are left out."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class TopKTopPSample(nn.Module):
    def forward(self, logits: Tensor, temperature: Tensor, top_k: Tensor, top_p: Tensor, seeds: Tensor) -> Tensor:
        scaled = logits.float() / temperature.clamp_min(1e-6)[:, None]
        return torch.multinomial(scaled.softmax(-1), 1).squeeze(1)
