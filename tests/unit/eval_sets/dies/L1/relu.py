"""Takes its process with it."""

from __future__ import annotations

import ctypes

from torch import Tensor, nn


class ReLU(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        ctypes.string_at(0)
        return x
