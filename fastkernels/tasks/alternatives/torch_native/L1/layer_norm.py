"""LayerNorm by torch.nn.functional.layer_norm, behind torch's sum."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import layer_norm

from fastkernels.tasks.baseline.L1.layer_norm import LayerNorm as Baseline


class LayerNorm(Baseline):
    """Source: https://docs.pytorch.org/docs/stable/generated/torch.nn.functional.layer_norm.html."""

    def forward(
        self, x: Tensor, residual: Tensor | None = None, scale: Tensor | None = None
    ) -> Tensor | tuple[Tensor, Tensor]:
        if residual is None:
            return self._norm(x)
        h = residual + x if scale is None else torch.addcmul(residual, x, scale)
        return (self._norm(h), h) if self.returns_sum else self._norm(h)

    def _norm(self, x: Tensor) -> Tensor:
        return layer_norm(x, (self.normalized_shape,), self.weight, self.bias, self.eps)
