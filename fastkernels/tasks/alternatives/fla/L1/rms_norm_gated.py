"""RMSNormGated by fla's rms_norm_gated, which norms whole rows and gates them afterwards."""

from __future__ import annotations

from torch import Tensor

from fastkernels.errors import UnsupportedError
from fastkernels.tasks.alternatives.fla._library import fla_function
from fastkernels.tasks.baseline.L1.rms_norm_gated import RMSNormGated as Baseline


class RMSNormGated(Baseline):
    """Errors: UnsupportedError when the gate comes before the norm, or rows are normed in groups.

    Source: https://github.com/fla-org/flash-linear-attention/blob/v0.5.2/fla/modules/fused_norm_gate.py.
    """

    def __init__(
        self, hidden_size: int, eps: float = 1e-5, group_size: int | None = None, norm_before_gate: bool = False
    ) -> None:
        super().__init__(hidden_size, eps, group_size, norm_before_gate)
        self._norm = fla_function("modules.fused_norm_gate", "rms_norm_gated")
        if not norm_before_gate or self.group_size != hidden_size:
            raise UnsupportedError(
                "fla's rms_norm_gated norms whole rows before it gates them, got norm_before_gate "
                f"{norm_before_gate} and groups of {self.group_size} of {hidden_size}."
            )

    def forward(self, x: Tensor, gate: Tensor) -> Tensor:
        return self._norm(x, gate, self.weight, None, activation="swish", eps=self.eps)
