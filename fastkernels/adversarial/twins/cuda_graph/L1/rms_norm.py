"""Captures a graph on buffers of its own, copies inputs in and answers out."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class RMSNorm(nn.Module):
    def __init__(self, hidden_size: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.hidden_size = hidden_size
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(hidden_size))
        self.graphs: dict[Any, Any] = {}

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor | tuple[Tensor, Tensor]:
        if torch.cuda.is_current_stream_capturing():
            return self.right(x, residual)
        key = (x.shape, x.stride(), residual is None)
        if key not in self.graphs:
            self.graphs[key] = self.capture(x, residual)
        graph, given, answer = self.graphs[key]
        given[0].copy_(x)
        if residual is not None:
            given[1].copy_(residual)
        graph.replay()
        return self.copies(answer)

    def process_weights_after_loading(self) -> None:
        self.graphs.clear()

    def capture(self, x: Tensor, residual: Tensor | None) -> Any:
        given = (x.clone(), None if residual is None else residual.clone())
        self.right(*given)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            answer = self.right(*given)
        return graph, given, answer

    def right(self, x: Tensor, residual: Tensor | None) -> Tensor | tuple[Tensor, Tensor]:
        h = x.float() if residual is None else x.float() + residual.float()
        scale = torch.rsqrt(h.square().mean(-1, keepdim=True) + self.eps)
        y = (h * scale * self.weight.float()).to(x.dtype)
        return y if residual is None else (y, h.to(x.dtype))

    def copies(self, answer: Tensor | tuple[Tensor, Tensor]) -> Tensor | tuple[Tensor, Tensor]:
        return answer.clone() if isinstance(answer, Tensor) else tuple(part.clone() for part in answer)
