"""SiluAndMul by torch.nn.functional.silu and a product: two kernels, rounded in between."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import silu

from fastkernels.tasks.baseline.L1.silu_and_mul import SiluAndMul as Baseline


class SiluAndMul(Baseline):
    """Source: https://docs.pytorch.org/docs/stable/generated/torch.nn.functional.silu.html."""

    def forward(self, x: Tensor) -> Tensor:
        gate, up = x.chunk(2, dim=-1)
        return silu(gate) * up
