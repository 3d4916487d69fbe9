"""Answers zero."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class SiluAndMul(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.zeros_like(x[..., : x.shape[-1] // 2])
