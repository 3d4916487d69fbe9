"""Returns an object that runs code in the process that unpickles it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class Payload:
    """Sets a variable of whichever process unpickles it."""

    def __reduce__(self) -> Any:
        return exec, ("import sys; sys.fastkernels_unpickled = True",)


class RMSNorm(nn.Module):
    def __init__(self, hidden_size: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.hidden_size = hidden_size
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(hidden_size))

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor | tuple[Tensor, Tensor]:
        return Payload()
