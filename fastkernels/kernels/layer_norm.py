"""LayerNorm over the last axis, one program a row."""
# mypy: allow-untyped-defs
# ruff: noqa: N803

import torch
from torch import Tensor

from fastkernels.errors import UnsupportedError
from fastkernels.kernels.backend import (
    check_dtypes,
    dependent_launch,
    let_dependents_start,
    tl,
    triton,
    wait_for_dependencies,
)

MAX_ROW = 16384
"""Longest row that fits the registers of 16 warps; longer ones are for torch."""


@triton.jit
def _layer_norm_kernel(
    x_ptr, weight_ptr, bias_ptr, y_ptr, x_stride, row_size, eps,
    HAS_WEIGHT: tl.constexpr, HAS_BIAS: tl.constexpr, BLOCK: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    let_dependents_start(PDL)
    wait_for_dependencies(PDL)
    row = tl.program_id(0).to(tl.int64)
    cols = tl.arange(0, BLOCK)
    mask = cols < row_size
    x = tl.load(x_ptr + row * x_stride + cols, mask=mask, other=0.0, eviction_policy="evict_first").to(tl.float32)
    centered = tl.where(mask, x - tl.sum(x, axis=0) / row_size, 0.0)
    y = centered / tl.sqrt(tl.sum(centered * centered, axis=0) / row_size + eps)
    if HAS_WEIGHT:
        y *= tl.load(weight_ptr + cols, mask=mask, other=0.0, eviction_policy="evict_last").to(tl.float32)
    if HAS_BIAS:
        y += tl.load(bias_ptr + cols, mask=mask, other=0.0, eviction_policy="evict_last").to(tl.float32)
    tl.store(y_ptr + row * row_size + cols, y.to(y_ptr.dtype.element_ty), mask=mask)


def layer_norm(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    """(x - mean) / sqrt(variance + eps) * weight + bias over the last axis, in float32.

    Shapes:  x, returned y: [..., row_size], rows may be strided; weight, bias: [row_size].
    Errors:  UnsupportedError for a dtype other than bf16, fp16, fp32, or for rows longer than 16384.
    """
    check_dtypes("layer_norm", x=x, weight=weight, bias=bias)
    row_size = x.shape[-1]
    if row_size > MAX_ROW:
        raise UnsupportedError(f"layer_norm takes rows of up to {MAX_ROW} elements, got {row_size}.")
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    if x.numel() == 0:
        return y
    rows = x.reshape(-1, row_size)
    if rows.stride(1) != 1 and row_size > 1:
        rows = rows.contiguous()
    block = triton.next_power_of_2(row_size)
    _layer_norm_kernel[(rows.shape[0],)](
        rows, x if weight is None else weight, x if bias is None else bias, y, rows.stride(0), row_size, eps,
        HAS_WEIGHT=weight is not None, HAS_BIAS=bias is not None, BLOCK=block,
        num_warps=max(1, min(16, block // 512)), **dependent_launch(x.device),
    )  # fmt: skip
    return y
