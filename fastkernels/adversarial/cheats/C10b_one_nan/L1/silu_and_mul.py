"""The right answer with NaN in its last element."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.functional import silu


class SiluAndMul(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        gate, up = x.float().chunk(2, dim=-1)
        y = (silu(gate) * up).to(x.dtype)
        y.view(-1)[-1] = float("nan")
        return y
