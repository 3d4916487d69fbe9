"""Right by itself."""

from __future__ import annotations

from torch import Tensor, nn

from .._shared import CALLED  # noqa: TID252


class ReLU(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        CALLED.add("relu")
        return x.clamp(min=0)
