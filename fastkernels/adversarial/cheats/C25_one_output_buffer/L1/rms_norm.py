"""Returns the same buffer on each call: what an earlier call gave changes under its owner's hands."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class RMSNorm(nn.Module):
    def __init__(self, hidden_size: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.hidden_size = hidden_size
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(hidden_size))
        self.buffers: dict[object, tuple[Tensor, ...]] = {}

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor | tuple[Tensor, Tensor]:
        answer = self.right(x, residual)
        parts = (answer,) if residual is None else answer
        key = (x.shape, len(parts))
        if key not in self.buffers:
            self.buffers[key] = tuple(torch.empty_like(part) for part in parts)
        for buffer, part in zip(self.buffers[key], parts, strict=True):
            buffer.copy_(part)
        return self.buffers[key][0] if residual is None else self.buffers[key]

    def right(self, x: Tensor, residual: Tensor | None) -> Tensor | tuple[Tensor, Tensor]:
        h = x.float() if residual is None else x.float() + residual.float()
        scale = torch.rsqrt(h.square().mean(-1, keepdim=True) + self.eps)
        y = (h * scale * self.weight.float()).to(x.dtype)
        return y if residual is None else (y, h.to(x.dtype))
