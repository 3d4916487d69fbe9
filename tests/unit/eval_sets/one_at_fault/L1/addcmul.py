"""Wrong, beside a ReLU that is right."""

from __future__ import annotations

from torch import Tensor, nn


class Addcmul(nn.Module):
    def forward(self, x: Tensor, tensor1: Tensor, tensor2: Tensor) -> Tensor:
        return x - tensor1 * tensor2
