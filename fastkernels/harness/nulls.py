"""Wrong answers that every judge must reject: if one passes for an op, its tolerance proves nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

LOWER_PRECISION = {torch.float32: torch.float16, torch.float16: torch.bfloat16, torch.bfloat16: torch.float8_e4m3fn}


@dataclass(frozen=True)
class NullInput:
    """What a null may use: the right answer in its dtype, another call's right answer, the call's tensors, the right
    answer computed one precision lower, and the right answer in float64."""

    right: Tensor
    previous: Tensor
    inputs: Mapping[str, Tensor]
    lower: Tensor | None
    exact: Tensor | None = None


def zeros(n: NullInput) -> Tensor | None:
    return torch.zeros_like(n.right)


def mean(n: NullInput) -> Tensor | None:
    """The mean of the right answer everywhere (rounded to an integer for integers)."""
    if n.right.is_floating_point():
        finite = n.right[torch.isfinite(n.right)].double()
        return torch.full_like(n.right, float(finite.mean()) if finite.numel() else 0.0)
    return torch.full_like(n.right, int(n.right.double().mean()))


def copy_of_input(n: NullInput) -> Tensor | None:
    """The first input that has as many elements, in the answer's shape and dtype."""
    for tensor in n.inputs.values():
        if tensor.numel() == n.right.numel() and tensor.numel():
            return tensor.reshape(n.right.shape).to(n.right.dtype)
    return None


def previous_output(n: NullInput) -> Tensor | None:
    return n.previous.clone() if n.previous.shape == n.right.shape else None


def rows_permuted(n: NullInput) -> Tensor | None:
    """Rows shifted by one; a vector's elements count as rows."""
    if n.right.ndim == 0 or n.right.shape[0] < 2:
        return None
    rows = n.right.reshape(-1, n.right.shape[-1]) if n.right.ndim > 1 else n.right.reshape(-1, 1)
    return torch.roll(rows, 1, 0).reshape(n.right.shape)


def last_tile_dropped(n: NullInput) -> Tensor | None:
    """The last columns (at most 16, at most half of them) of the last row are zero, of those that hold as much as most:
    a row whose own terms cancel, and that holds next to nothing, loses next to nothing."""
    if n.right.numel() < 2:
        return None
    answer = n.right.clone()
    rows = answer.reshape(-1, answer.shape[-1]) if answer.ndim > 1 else answer.reshape(1, -1)
    tile = max(1, min(16, rows.shape[-1] // 2))
    sizes = torch.nan_to_num(rows[:, -tile:].double()).abs().amax(-1)
    if not bool(sizes.any()):
        return None
    held = (sizes >= sizes[sizes > 0].median() / 2).nonzero()
    rows[held[-1, 0], -tile:] = 0
    return answer


def one_precision_lower(n: NullInput) -> Tensor | None:
    return n.lower


def truncated(n: NullInput) -> Tensor | None:
    """Digits cut off where they should be rounded. Half precisions alone: in fp32 the order of a sum does as much."""
    if n.exact is None or n.right.dtype not in (torch.float16, torch.bfloat16):
        return None
    is_over = n.right.double().abs() > n.exact.abs()
    bits = n.right.view(torch.int16)
    return torch.where(is_over, bits - 1, bits).view(n.right.dtype)


NULLS: dict[str, Callable[[NullInput], Tensor | None]] = {
    "zeros": zeros,
    "mean": mean,
    "copy_of_input": copy_of_input,
    "previous_output": previous_output,
    "rows_permuted": rows_permuted,
    "last_tile_dropped": last_tile_dropped,
    "one_precision_lower": one_precision_lower,
    "truncated": truncated,
}
