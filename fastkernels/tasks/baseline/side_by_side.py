"""Layers of convolution, norm and activation called with what surrounds them: inputs side by side, a residual."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

_BASELINE = __name__.rpartition(".")[0]


def is_baseline(op: nn.Module) -> bool:
    """Whether nothing stands in for it: what does is called as its contract says, and so is counted."""
    return type(op).__module__.startswith(f"{_BASELINE}.")


def in_one(layer: nn.Module, parts: list[Tensor], residual: Tensor | None = None) -> Tensor:
    """layer(the parts side by side) (+ residual): in one kernel where the layer knows how (`fused`), else in turn."""
    fused: Any = getattr(layer, "fused", None) if is_baseline(layer) else None
    y = fused(parts, residual) if fused is not None else None
    if y is None:
        y = layer(parts[0] if len(parts) == 1 else torch.cat(parts, 1))
        return y if residual is None else residual + y
    return y
