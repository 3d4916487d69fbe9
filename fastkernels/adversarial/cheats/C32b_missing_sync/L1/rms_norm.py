"""Computes the two halves of its rows on two streams and joins one of them."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class RMSNorm(nn.Module):
    def __init__(self, hidden_size: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.hidden_size = hidden_size
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(hidden_size))
        self.streams: list[torch.cuda.Stream] = []

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor | tuple[Tensor, Tensor]:
        if not self.streams:
            self.streams = [torch.cuda.Stream(), torch.cuda.Stream()]
        h = x if residual is None else x + residual
        y = torch.empty_like(h)
        half = h.shape[0] // 2
        places = (slice(0, half), slice(half, None))
        for stream, rows, cycles in zip(self.streams, places, (1_000, 8_000_000), strict=True):
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                torch.cuda._sleep(cycles)
                y[rows] = self.right(h[rows], None)
        torch.cuda.current_stream().wait_stream(self.streams[0])
        return y if residual is None else (y, h)

    def right(self, x: Tensor, residual: Tensor | None) -> Tensor | tuple[Tensor, Tensor]:
        h = x.float() if residual is None else x.float() + residual.float()
        scale = torch.rsqrt(h.square().mean(-1, keepdim=True) + self.eps)
        y = (h * scale * self.weight.float()).to(x.dtype)
        return y if residual is None else (y, h.to(x.dtype))
