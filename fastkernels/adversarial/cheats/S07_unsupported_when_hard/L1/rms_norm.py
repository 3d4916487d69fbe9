"""Calls everything unsupported that it is slow at, hoping that the hard part is left out of the mean."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class RMSNorm(nn.Module):
    def __init__(self, hidden_size: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.hidden_size = hidden_size
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(hidden_size))

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor | tuple[Tensor, Tensor]:
        if self.hidden_size % 8:
            raise NotImplementedError(f"hidden_size {self.hidden_size} is not supported")
        return self.right(x, residual)

    def right(self, x: Tensor, residual: Tensor | None) -> Tensor | tuple[Tensor, Tensor]:
        h = x.float() if residual is None else x.float() + residual.float()
        scale = torch.rsqrt(h.square().mean(-1, keepdim=True) + self.eps)
        y = (h * scale * self.weight.float()).to(x.dtype)
        return y if residual is None else (y, h.to(x.dtype))
