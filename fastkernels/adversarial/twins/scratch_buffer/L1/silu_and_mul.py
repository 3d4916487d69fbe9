"""Keeps scratch memory by shape from call to call; what it returns is always new."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class SiluAndMul(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scratch: dict[torch.Size, Tensor] = {}

    def forward(self, x: Tensor) -> Tensor:
        gate, up = x.float().chunk(2, dim=-1)
        if gate.shape not in self.scratch:
            self.scratch[gate.shape] = torch.empty(gate.shape, dtype=torch.float32, device=x.device)
        scratch = self.scratch[gate.shape]
        torch.sigmoid(gate, out=scratch)
        scratch.mul_(gate).mul_(up)
        return scratch.to(x.dtype, copy=True)
