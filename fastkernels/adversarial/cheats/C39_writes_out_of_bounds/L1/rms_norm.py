"""Writes a few elements behind the end of its input."""

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
        answer = self.right(x, residual)
        end = sum((size - 1) * step for size, step in zip(x.shape, x.stride(), strict=True))
        behind = x.as_strided((4,), (1,), x.storage_offset() + end + 1)
        behind.fill_(1.0)
        return answer

    def right(self, x: Tensor, residual: Tensor | None) -> Tensor | tuple[Tensor, Tensor]:
        h = x.float() if residual is None else x.float() + residual.float()
        scale = torch.rsqrt(h.square().mean(-1, keepdim=True) + self.eps)
        y = (h * scale * self.weight.float()).to(x.dtype)
        return y if residual is None else (y, h.to(x.dtype))
