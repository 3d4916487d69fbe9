"""NaN where there is a number."""

from __future__ import annotations

from torch import Tensor, nn


class ReLU(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * float("nan")
