"""L2Norm by fla's l2norm, whose eps is in the root."""

from __future__ import annotations

from torch import Tensor

from fastkernels.errors import UnsupportedError
from fastkernels.tasks.alternatives.fla._library import fla_function
from fastkernels.tasks.baseline.L1.l2_norm import L2Norm as Baseline


class L2Norm(Baseline):
    """Errors: UnsupportedError where eps is not in the root.

    Source: https://github.com/fla-org/flash-linear-attention/blob/v0.5.2/fla/modules/l2norm.py.
    """

    def __init__(self, eps: float = 1e-12, is_eps_in_root: bool = False) -> None:
        super().__init__(eps, is_eps_in_root)
        self._norm = fla_function("modules.l2norm", "l2norm")
        if not is_eps_in_root:
            raise UnsupportedError(
                "fla's l2norm has its eps in the root: it computes L2Norm with is_eps_in_root alone."
            )

    def forward(self, x: Tensor) -> Tensor:
        return self._norm(x, self.eps)
