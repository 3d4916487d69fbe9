"""RMSNorm, alone or fused with the residual add that precedes it."""
# mypy: allow-untyped-defs
# ruff: noqa: N803

from typing import NamedTuple

import torch
from torch import Tensor

from fastkernels.kernels.backend import (
    check_dtypes,
    dependent_launch,
    let_dependents_start,
    tl,
    triton,
    wait_for_dependencies,
)

MAX_ONE_PASS = 16384
"""Longest row that fits the registers of 16 warps."""


@triton.jit
def _rms_norm_kernel(
    x_ptr,
    residual_ptr,
    weight_ptr,
    y_ptr,
    h_ptr,
    x_stride,
    residual_stride,
    hidden_size,
    eps,
    HAS_RESIDUAL: tl.constexpr,
    IS_FROM_ONE: tl.constexpr,
    BLOCK: tl.constexpr,
    PDL: tl.constexpr,
):
    let_dependents_start(PDL)
    wait_for_dependencies(PDL)
    row = tl.program_id(0).to(tl.int64)
    cols = tl.arange(0, BLOCK)
    mask = cols < hidden_size
    h = tl.load(x_ptr + row * x_stride + cols, mask=mask, other=0.0, eviction_policy="evict_first").to(tl.float32)
    if HAS_RESIDUAL:
        residual = residual_ptr + row * residual_stride + cols
        h += tl.load(residual, mask=mask, other=0.0, eviction_policy="evict_first").to(tl.float32)
    weight = tl.load(weight_ptr + cols, mask=mask, other=0.0, eviction_policy="evict_last").to(tl.float32)
    if IS_FROM_ONE:
        weight += 1.0
    if HAS_RESIDUAL:
        tl.store(h_ptr + row * hidden_size + cols, h.to(h_ptr.dtype.element_ty), mask=mask)
    scale = 1.0 / tl.sqrt(tl.sum(h * h, axis=0) / hidden_size + eps)
    tl.store(y_ptr + row * hidden_size + cols, (h * scale * weight).to(y_ptr.dtype.element_ty), mask=mask)


@triton.jit
def _rms_norm_two_pass_kernel(
    x_ptr,
    residual_ptr,
    weight_ptr,
    y_ptr,
    h_ptr,
    x_stride,
    residual_stride,
    hidden_size,
    eps,
    HAS_RESIDUAL: tl.constexpr,
    IS_FROM_ONE: tl.constexpr,
    BLOCK: tl.constexpr,
    PDL: tl.constexpr,
):
    let_dependents_start(PDL)
    wait_for_dependencies(PDL)
    row = tl.program_id(0).to(tl.int64)
    squares = tl.zeros([BLOCK], dtype=tl.float32)
    for start in range(0, hidden_size, BLOCK):
        cols = start + tl.arange(0, BLOCK)
        mask = cols < hidden_size
        h = tl.load(x_ptr + row * x_stride + cols, mask=mask, other=0.0, eviction_policy="evict_last").to(tl.float32)
        if HAS_RESIDUAL:
            residual = residual_ptr + row * residual_stride + cols
            h += tl.load(residual, mask=mask, other=0.0, eviction_policy="evict_last").to(tl.float32)
        squares += h * h
    scale = 1.0 / tl.sqrt(tl.sum(squares, axis=0) / hidden_size + eps)
    for start in range(0, hidden_size, BLOCK):
        cols = start + tl.arange(0, BLOCK)
        mask = cols < hidden_size
        h = tl.load(x_ptr + row * x_stride + cols, mask=mask, other=0.0, eviction_policy="evict_first").to(tl.float32)
        if HAS_RESIDUAL:
            residual = residual_ptr + row * residual_stride + cols
            h += tl.load(residual, mask=mask, other=0.0, eviction_policy="evict_first").to(tl.float32)
            tl.store(h_ptr + row * hidden_size + cols, h.to(h_ptr.dtype.element_ty), mask=mask)
        weight = tl.load(weight_ptr + cols, mask=mask, other=0.0, eviction_policy="evict_last").to(tl.float32)
        if IS_FROM_ONE:
            weight += 1.0
        tl.store(y_ptr + row * hidden_size + cols, (h * scale * weight).to(y_ptr.dtype.element_ty), mask=mask)


class RowTile(NamedTuple):
    """Whether a row stays in registers between the sum and the scaling, columns a step, and warps."""

    is_one_pass: bool
    block: int
    num_warps: int


def row_tile(num_rows: int, hidden_size: int, has_residual: bool) -> RowTile:
    """Few rows: one pass, 16 columns a thread. Many: the second read hits the cache and writes come together."""
    block = triton.next_power_of_2(hidden_size)
    if num_rows < 4096 and block <= MAX_ONE_PASS:
        return RowTile(True, block, max(1, min(16, block // 512)))
    block = min(block, 4096 if has_residual or block > 4096 else 2048)
    return RowTile(False, block, max(1, block // 256))


def _launch(x: Tensor, residual: Tensor | None, weight: Tensor, eps: float, is_from_one: bool) -> tuple[Tensor, Tensor]:
    check_dtypes("rms_norm", x=x, residual=residual, weight=weight)
    hidden_size = x.shape[-1]
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    h = y if residual is None else torch.empty_like(y)
    if x.numel() == 0:
        return y, h
    rows = dense_rows(x)
    added = rows if residual is None else dense_rows(residual)
    tile = row_tile(rows.shape[0], hidden_size, residual is not None)
    kernel = _rms_norm_kernel if tile.is_one_pass else _rms_norm_two_pass_kernel
    kernel[(rows.shape[0],)](
        rows,
        added,
        weight.contiguous(),
        y,
        h,
        rows.stride(0),
        added.stride(0),
        hidden_size,
        eps,
        HAS_RESIDUAL=residual is not None,
        IS_FROM_ONE=is_from_one,
        BLOCK=tile.block,
        num_warps=tile.num_warps,
        **dependent_launch(x.device),
    )
    return y, h


def dense_rows(x: Tensor) -> Tensor:
    """[num_rows, hidden_size] with a dense last axis; a copy only where strides leave no other way."""
    rows = x.reshape(-1, x.shape[-1])
    return rows if rows.stride(1) == 1 or rows.shape[1] == 1 else rows.contiguous()


def rms_norm(x: Tensor, weight: Tensor, eps: float, is_from_one: bool = False) -> Tensor:
    """x / sqrt(mean(x^2) + eps) * weight over the last axis, in float32.

    is_from_one: the factor is 1 + weight.

    Shapes:  x, returned y: [..., hidden_size], rows may be strided; weight: [hidden_size].
    Errors:  UnsupportedError for a dtype other than bf16, fp16, fp32.
    """
    return _launch(x, None, weight, eps, is_from_one)[0]


def add_rms_norm(
    x: Tensor, residual: Tensor, weight: Tensor, eps: float, is_from_one: bool = False
) -> tuple[Tensor, Tensor]:
    """(rms_norm(x + residual), x + residual): the norm is taken of the unrounded float32 sum.

    is_from_one: the factor is 1 + weight.

    Shapes:  x, residual and both results: [..., hidden_size], rows may be strided; weight: [hidden_size].
    Errors:  UnsupportedError for a dtype other than bf16, fp16, fp32.
    """
    return _launch(x, residual, weight, eps, is_from_one)
