"""Takes more than the contract says."""

from __future__ import annotations

from torch import Tensor, nn


class ReLU(nn.Module):
    def forward(self, x: Tensor, slope: float) -> Tensor:
        return x.clamp(min=0)
