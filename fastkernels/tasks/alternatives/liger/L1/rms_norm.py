"""RMSNorm and its fused residual add by Liger Kernel."""

from __future__ import annotations

from torch import Tensor

from fastkernels.tasks.alternatives.liger._library import liger_function
from fastkernels.tasks.baseline.L1.rms_norm import RMSNorm as Baseline


class RMSNorm(Baseline):
    """Source: https://github.com/linkedin/Liger-Kernel/blob/v0.8.5/src/liger_kernel/ops/fused_add_rms_norm.py."""

    def __init__(self, hidden_size: int, eps: float = 1e-6) -> None:
        super().__init__(hidden_size, eps)
        self._norm = liger_function("rms_norm", "LigerRMSNormFunction").apply
        self._add_norm = liger_function("fused_add_rms_norm", "LigerFusedAddRMSNormFunction").apply

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor | tuple[Tensor, Tensor]:
        if residual is None:
            return self._norm(x, self.weight, self.eps, 0.0, "gemma", False)
        return self._add_norm(x, residual, self.weight, self.eps, 0.0, "gemma", False)
