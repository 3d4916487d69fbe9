"""Right, unless the set's ReLU was called before."""

from __future__ import annotations

from torch import Tensor, nn

from .._shared import CALLED  # noqa: TID252


class Addcmul(nn.Module):
    def forward(self, x: Tensor, tensor1: Tensor, tensor2: Tensor) -> Tensor:
        if "relu" in CALLED:
            raise RuntimeError("both are here")
        return x + tensor1 * tensor2
