"""Raises when it is called."""

from __future__ import annotations

from torch import Tensor, nn


class ReLU(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        raise RuntimeError("an illegal memory access was encountered")
