"""torch.compile on the first call: the compiler runs inside the worker."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import silu


def fused(x: Tensor) -> Tensor:
    gate, up = x.float().chunk(2, dim=-1)
    return (silu(gate) * up).to(x.dtype)


class SiluAndMul(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.compiled = torch.compile(fused, dynamic=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.compiled(x)
