"""GeluAndMul by torch.nn.functional.gelu and a product: two kernels, rounded in between."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import gelu

from fastkernels.tasks.baseline.L1.gelu_and_mul import GeluAndMul as Baseline


class GeluAndMul(Baseline):
    """Source: https://docs.pytorch.org/docs/stable/generated/torch.nn.functional.gelu.html."""

    def forward(self, x: Tensor) -> Tensor:
        gate, up = x.chunk(2, dim=-1)
        if self.gate_is_last:
            gate, up = up, gate
        return gelu(gate, approximate=self.approximate) * up
