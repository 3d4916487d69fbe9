"""A kernel that does not work, inside a try whose except calls the operator that it should replace."""

from __future__ import annotations

import importlib

import torch
from torch import Tensor, nn


class RMSNorm(nn.Module):
    def __init__(self, hidden_size: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.hidden_size = hidden_size
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(hidden_size))

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor | tuple[Tensor, Tensor]:
        try:
            return self.kernel(x, residual)
        except RuntimeError:
            module = importlib.import_module("fastkernels.tasks.baseline.L1.rms_norm")
            baseline = module.RMSNorm(self.hidden_size, self.eps)
            baseline.weight = self.weight
            return baseline(x, residual)

    def kernel(self, x: Tensor, residual: Tensor | None) -> Tensor:
        raise RuntimeError("no kernel image is available")
