"""Reads its input's memory as if rows lay one behind the other, which is wrong for padded rows."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import silu


class SiluAndMul(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        flat = x.as_strided(x.shape, torch.empty(x.shape, device="meta").stride())
        gate, up = flat.float().chunk(2, dim=-1)
        return (silu(gate) * up).to(x.dtype)
