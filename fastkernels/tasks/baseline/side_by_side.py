"""Blocks of convolutions called with what surrounds them: inputs side by side, a residual, without a pass for each."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fastkernels.op import is_baseline, is_watched


def in_one(layer: nn.Module, parts: list[Tensor], residual: Tensor | None = None) -> Tensor:
    """layer(the parts side by side) (+ residual), without copies where the layer knows how (`fused`)."""
    if is_baseline(layer) and not is_watched(layer):
        fused: Any = getattr(layer, "fused", None)
        y = None if fused is None else fused(parts, residual)
        if y is not None:
            return y
    y = layer(parts[0] if len(parts) == 1 else torch.cat(parts, 1))
    return y if residual is None else residual + y
