"""Builds its kernel on the first call, which takes a while, and uses it from then on."""

from __future__ import annotations

import time
from collections.abc import Callable

from torch import Tensor, nn
from torch.nn.functional import silu


def fused(x: Tensor) -> Tensor:
    gate, up = x.float().chunk(2, dim=-1)
    return (silu(gate) * up).to(x.dtype)


class SiluAndMul(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.kernel: Callable[[Tensor], Tensor] | None = None

    def forward(self, x: Tensor) -> Tensor:
        if self.kernel is None:
            time.sleep(0.2)
            self.kernel = fused
        return self.kernel(x)
