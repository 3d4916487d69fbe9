"""LayerNorm over the last axis, alone or of the sum with what a layer was given; one program a row."""
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
from fastkernels.kernels.rms_norm import dense_rows

MAX_ROW = 16384
"""Longest row that fits the registers of 16 warps; longer ones are for torch."""


@triton.jit
def _layer_norm_kernel(
    x_ptr, residual_ptr, scale_ptr, weight_ptr, bias_ptr, y_ptr, sum_ptr, x_stride, residual_stride, row_size, eps,
    HAS_RESIDUAL: tl.constexpr, HAS_SCALE: tl.constexpr, HAS_WEIGHT: tl.constexpr, HAS_BIAS: tl.constexpr,
    STORES_SUM: tl.constexpr, BLOCK: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    let_dependents_start(PDL)
    wait_for_dependencies(PDL)
    row = tl.program_id(0).to(tl.int64)
    cols = tl.arange(0, BLOCK)
    mask = cols < row_size
    x = tl.load(x_ptr + row * x_stride + cols, mask=mask, other=0.0, eviction_policy="evict_first").to(tl.float32)
    if HAS_RESIDUAL:
        if HAS_SCALE:
            x *= tl.load(scale_ptr + cols, mask=mask, other=0.0, eviction_policy="evict_last").to(tl.float32)
        residual = residual_ptr + row * residual_stride + cols
        x += tl.load(residual, mask=mask, other=0.0, eviction_policy="evict_first").to(tl.float32)
        if STORES_SUM:
            tl.store(sum_ptr + row * row_size + cols, x.to(sum_ptr.dtype.element_ty), mask=mask)
    centered = tl.where(mask, x - tl.sum(x, axis=0) / row_size, 0.0)
    y = centered / tl.sqrt(tl.sum(centered * centered, axis=0) / row_size + eps)
    if HAS_WEIGHT:
        y *= tl.load(weight_ptr + cols, mask=mask, other=0.0, eviction_policy="evict_last").to(tl.float32)
    if HAS_BIAS:
        y += tl.load(bias_ptr + cols, mask=mask, other=0.0, eviction_policy="evict_last").to(tl.float32)
    tl.store(y_ptr + row * row_size + cols, y.to(y_ptr.dtype.element_ty), mask=mask)


def _launch(
    x: Tensor, residual: Tensor | None, scale: Tensor | None, weight: Tensor | None, bias: Tensor | None, eps: float,
    stores_sum: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    check_dtypes("layer_norm", x=x, residual=residual, scale=scale, weight=weight, bias=bias)
    row_size = x.shape[-1]
    if row_size > MAX_ROW:
        raise UnsupportedError(f"layer_norm takes rows of up to {MAX_ROW} elements, got {row_size}.")
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    total = torch.empty_like(y) if stores_sum else y
    if x.numel() == 0:
        return y, total
    rows = dense_rows(x)
    added = rows if residual is None else dense_rows(residual)
    block = triton.next_power_of_2(row_size)
    _layer_norm_kernel[(rows.shape[0],)](
        rows, added, *(x if p is None else p.contiguous() for p in (scale, weight, bias)), y, total,
        rows.stride(0), added.stride(0), row_size, eps,
        HAS_RESIDUAL=residual is not None, HAS_SCALE=scale is not None, HAS_WEIGHT=weight is not None,
        HAS_BIAS=bias is not None, STORES_SUM=stores_sum, BLOCK=block,
        num_warps=max(1, min(16, block // 512)), **dependent_launch(x.device),
    )  # fmt: skip
    return y, total


def layer_norm(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    """(x - mean) / sqrt(variance + eps) * weight + bias over the last axis, in float32.

    Shapes:  x, returned y: [..., row_size], rows may be strided; weight, bias: [row_size].
    Errors:  UnsupportedError for a dtype other than bf16, fp16, fp32, or for rows longer than 16384.
    """
    return _launch(x, None, None, weight, bias, eps, False)[0]


def add_layer_norm(
    x: Tensor, residual: Tensor, scale: Tensor | None, weight: Tensor | None, bias: Tensor | None, eps: float
) -> tuple[Tensor, Tensor]:
    """(layer_norm(sum), sum) with sum = residual + scale * x: the norm is taken of the unrounded float32 sum.

    Shapes:  x, residual and both results: [..., row_size], rows may be strided; scale, weight, bias: [row_size].
    Errors:  UnsupportedError for a dtype other than bf16, fp16, fp32, or for rows longer than 16384.
    """
    return _launch(x, residual, scale, weight, bias, eps, True)


def layer_norm_of_sum(
    x: Tensor, residual: Tensor, scale: Tensor | None, weight: Tensor | None, bias: Tensor | None, eps: float
) -> Tensor:
    """As add_layer_norm, the sum not stored."""
    return _launch(x, residual, scale, weight, bias, eps, False)[0]
