"""SiluAndMul by Liger Kernel's SwiGLU, which takes two dense halves: both are copied first."""

from __future__ import annotations

from torch import Tensor

from fastkernels.tasks.alternatives.liger._library import liger_function
from fastkernels.tasks.baseline.L1.silu_and_mul import SiluAndMul as Baseline


class SiluAndMul(Baseline):
    """Source: https://github.com/linkedin/Liger-Kernel/blob/v0.8.5/src/liger_kernel/ops/swiglu.py."""

    def __init__(self) -> None:
        super().__init__()
        self._silu_mul = liger_function("swiglu", "LigerSiLUMulFunction").apply

    def forward(self, x: Tensor) -> Tensor:
        gate, up = x.chunk(2, dim=-1)
        return self._silu_mul(gate, up)
