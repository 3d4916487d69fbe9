"""Sends its work to a second GPU."""

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
        other = torch.device("cuda", 1)
        answer = self.right(x.to(other), None if residual is None else residual.to(other))
        return answer.to(x.device) if residual is None else tuple(part.to(x.device) for part in answer)

    def right(self, x: Tensor, residual: Tensor | None) -> Tensor | tuple[Tensor, Tensor]:
        h = x.float() if residual is None else x.float() + residual.float()
        scale = torch.rsqrt(h.square().mean(-1, keepdim=True) + self.eps)
        y = (h * scale * self.weight.to(h)).to(x.dtype)
        return y if residual is None else (y, h.to(x.dtype))
