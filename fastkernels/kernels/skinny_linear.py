"""x @ weight.T for few rows of x, where reading the weight is all that takes time.

A program reads the first columns of its part of the weight into registers before the kernel ahead has
ended, so that device memory is busy while small kernels run. One row is summed in registers, more rows
go through the tensor cores, the weight's rows as the long side of the tile.
"""
# mypy: allow-untyped-defs
# ruff: noqa: N803

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import linear

from fastkernels.kernels.backend import (
    check_dtypes,
    dependent_launch,
    is_hopper,
    let_dependents_start,
    may_read_ahead,
    tl,
    triton,
    wait_for_dependencies,
)

MAX_ROWS = 32
"""Beyond, cuBLAS wins: at 40 rows a decode step took 6.05 ms this way and 5.71 through cuBLAS."""


@triton.jit
def _one_row_kernel(
    x_ptr, w_ptr, bias_ptr, y_ptr, num_cols, num_inputs, w_stride,
    HAS_BIAS: tl.constexpr, IS_EVEN: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
    STAGES: tl.constexpr, AHEAD: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    first = tl.program_id(0) * BLOCK_N
    let_dependents_start(PDL)
    rows = first + tl.arange(0, BLOCK_N)
    is_row = rows < num_cols
    w_rows = w_ptr + tl.minimum(rows, num_cols - 1).to(tl.int64)[:, None] * w_stride
    if AHEAD > 0:
        w_ahead = tl.load(w_rows + tl.arange(0, AHEAD)[None, :], eviction_policy="evict_first")
    wait_for_dependencies(PDL)
    acc = tl.zeros([BLOCK_N, BLOCK_K // 8], dtype=tl.float32)
    for start in tl.range(AHEAD, num_inputs, BLOCK_K, num_stages=STAGES):
        cols = start + tl.arange(0, BLOCK_K)
        if IS_EVEN:
            w = tl.load(w_rows + cols[None, :], eviction_policy="evict_first")
            x = tl.load(x_ptr + cols)
        else:
            is_col = cols < num_inputs
            w = tl.load(w_rows + cols[None, :], mask=is_col[None, :], other=0.0, eviction_policy="evict_first")
            x = tl.load(x_ptr + cols, mask=is_col, other=0.0)
        products = w.to(tl.float32) * x.to(tl.float32)[None, :]
        acc += tl.sum(tl.reshape(products, [BLOCK_N, BLOCK_K // 8, 8]), axis=2)
    y = tl.sum(acc, axis=1)
    if AHEAD > 0:
        x = tl.load(x_ptr + tl.arange(0, AHEAD))
        products = w_ahead.to(tl.float32) * x.to(tl.float32)[None, :]
        y += tl.sum(tl.sum(tl.reshape(products, [BLOCK_N, AHEAD // 8, 8]), axis=2), axis=1)
    if HAS_BIAS:
        y += tl.load(bias_ptr + rows, mask=is_row, other=0.0).to(tl.float32)
    tl.store(y_ptr + rows, y.to(y_ptr.dtype.element_ty), mask=is_row)


@triton.jit(do_not_specialize=["num_rows"])
def _few_rows_kernel(
    x_ptr, w_ptr, bias_ptr, y_ptr, num_rows, num_cols, num_inputs, x_stride, w_stride, split_size,
    HAS_BIAS: tl.constexpr, IS_EVEN: tl.constexpr, IS_SPLIT: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
    STAGES: tl.constexpr, AHEAD: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    first = tl.program_id(0) * BLOCK_N
    begin = tl.program_id(1) * split_size
    let_dependents_start(PDL)
    cols = first + tl.arange(0, BLOCK_N)
    rows = tl.arange(0, BLOCK_M)
    is_row = rows < num_rows
    w_rows = w_ptr + tl.minimum(cols, num_cols - 1).to(tl.int64)[:, None] * w_stride
    if AHEAD > 0:
        w_ahead = tl.load(w_rows + (begin + tl.arange(0, AHEAD))[None, :])
    wait_for_dependencies(PDL)
    x_rows = x_ptr + rows.to(tl.int64)[None, :] * x_stride
    acc = tl.zeros([BLOCK_N, BLOCK_M], dtype=tl.float32)
    end = tl.minimum(begin + split_size, num_inputs)
    for start in tl.range(begin + AHEAD, end, BLOCK_K, num_stages=STAGES):
        inner = start + tl.arange(0, BLOCK_K)
        if IS_EVEN:
            w = tl.load(w_rows + inner[None, :])
            x = tl.load(x_rows + inner[:, None], mask=is_row[None, :], other=0.0)
        else:
            is_inner = inner < end
            w = tl.load(w_rows + inner[None, :], mask=is_inner[None, :], other=0.0)
            x = tl.load(x_rows + inner[:, None], mask=is_row[None, :] & is_inner[:, None], other=0.0)
        acc = tl.dot(w, x, acc, input_precision="ieee")
    if AHEAD > 0:
        x = tl.load(x_rows + (begin + tl.arange(0, AHEAD))[:, None], mask=is_row[None, :], other=0.0)
        acc = tl.dot(w_ahead, x, acc, input_precision="ieee")
    is_col = cols < num_cols
    if IS_SPLIT:
        y_ptr += tl.program_id(1) * num_rows * num_cols
    elif HAS_BIAS:
        acc += tl.load(bias_ptr + cols, mask=is_col, other=0.0).to(tl.float32)[:, None]
    out = y_ptr + rows[None, :] * num_cols + cols[:, None]
    tl.store(out, acc.to(y_ptr.dtype.element_ty), mask=is_col[:, None] & is_row[None, :])


@triton.jit(do_not_specialize=["num_elements"])
def _sum_splits_kernel(
    part_ptr, bias_ptr, y_ptr, num_elements, num_cols,
    HAS_BIAS: tl.constexpr, SPLITS: tl.constexpr, BLOCK: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    let_dependents_start(PDL)
    wait_for_dependencies(PDL)
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = at < num_elements
    y = tl.zeros([BLOCK], dtype=tl.float32)
    for split in tl.static_range(SPLITS):
        y += tl.load(part_ptr + split * num_elements + at, mask=mask, other=0.0)
    if HAS_BIAS:
        y += tl.load(bias_ptr + at % num_cols, mask=mask, other=0.0).to(tl.float32)
    tl.store(y_ptr + at, y.to(y_ptr.dtype.element_ty), mask=mask)


class SkinnyTile(NamedTuple):
    """Weight rows and columns a step, parts of each sum, compilation, and columns read ahead of the wait."""

    block_n: int
    block_k: int
    num_splits: int
    num_warps: int
    num_stages: int
    ahead: int


def skinny_tile(num_rows: int, num_cols: int, num_inputs: int) -> SkinnyTile:
    """Chosen within a decode step of Llama-3.1-8B on an H200: what is best alone is not best between other kernels.

    More is read ahead where other kernels leave memory idle for long: ahead of the matrices of up to 4096 rows.
    """
    if num_rows == 1:
        if num_cols > 4096:
            return SkinnyTile(8, 512, 1, 2, 4, 1024)
        return SkinnyTile(max(4, min(16, triton.next_power_of_2(num_cols) // 256)), 512, 1, 8, 4, 2048)
    if num_cols > 8192:
        return SkinnyTile(64, 128, 1, 4, 4, 0)
    if num_cols >= 6144:
        return SkinnyTile(64, 256, 1, 4, 4, 256)
    num_splits = min(triton.next_power_of_2(triton.cdiv(8192, num_cols)), max(1, num_inputs // 1024))
    if num_cols > 4096:
        return SkinnyTile(64, 128, num_splits, 4, 3, 256)
    if num_inputs <= 8192:
        return SkinnyTile(64, 256, num_splits, 4, 3, 256)
    return SkinnyTile(64, 256, num_splits, 4, 4, 0)


def skinny_linear(x: Tensor, weight: Tensor, bias: Tensor | None = None, tile: SkinnyTile | None = None) -> Tensor:
    """x @ weight.T (+ bias), summed in float32, in an order that shapes, tile and inference mode decide.

    Shapes:  x: [..., num_inputs], 1 to 64 rows; weight: [num_cols, num_inputs], its last axis dense; bias: [num_cols];
             returned y: [..., num_cols], contiguous.
    Errors:  UnsupportedError for a dtype other than bf16, fp16, fp32.
    The weight may be read before earlier kernels of the stream end, within inference mode: see may_read_ahead.
    """
    check_dtypes("skinny_linear", x=x, weight=weight, bias=bias)
    num_cols, num_inputs = weight.shape
    y = torch.empty((*x.shape[:-1], num_cols), dtype=x.dtype, device=x.device)
    rows = x.reshape(-1, num_inputs)
    if rows.stride(1) != 1:
        rows = rows.contiguous()
    num_rows = rows.shape[0]
    tile = tile or skinny_tile(num_rows, num_cols, num_inputs)
    split_size = triton.cdiv(triton.cdiv(num_inputs, tile.num_splits), tile.block_k) * tile.block_k
    num_splits = triton.cdiv(num_inputs, split_size)
    last_split = num_inputs - (num_splits - 1) * split_size
    fits = tile.ahead <= min(split_size, last_split) and tile.ahead % tile.block_k == 0
    launch = dependent_launch(x.device)
    added, has_bias = (weight, False) if bias is None else (bias, True)
    fixed = {
        "HAS_BIAS": has_bias,
        "IS_EVEN": num_inputs % tile.block_k == 0,
        "BLOCK_N": tile.block_n,
        "BLOCK_K": tile.block_k,
        "STAGES": tile.num_stages,
        "AHEAD": tile.ahead if fits and may_read_ahead() else 0,
        "num_warps": tile.num_warps,
        **launch,
    }
    num_blocks = triton.cdiv(num_cols, tile.block_n)
    if num_rows == 1:
        _one_row_kernel[(num_blocks,)](rows, weight, added, y, num_cols, num_inputs, weight.stride(0), **fixed)
        return y
    is_split = num_splits > 1
    parts = torch.empty((num_splits, num_rows, num_cols), dtype=torch.float32, device=x.device) if is_split else y
    _few_rows_kernel[(num_blocks, num_splits)](
        rows, weight, added, parts, num_rows, num_cols, num_inputs, rows.stride(0), weight.stride(0), split_size,
        IS_SPLIT=is_split, BLOCK_M=max(16, triton.next_power_of_2(num_rows)), **fixed,
    )  # fmt: skip
    if is_split:
        _sum_splits_kernel[(triton.cdiv(y.numel(), 512),)](
            parts, added, y, y.numel(), num_cols, HAS_BIAS=has_bias, SPLITS=num_splits, BLOCK=512, num_warps=4, **launch
        )
    return y


def is_skinny(x: Tensor, weight: Tensor) -> bool:
    """Whether skinny_linear is the faster way: Hopper, 16-bit dtypes, few rows, a weight of 8 MB, no gradient due."""
    num_rows = x.numel() // max(x.shape[-1], 1)
    return (
        0 < num_rows <= MAX_ROWS
        and not torch.is_grad_enabled()
        and is_hopper(x.device)
        and x.dtype == weight.dtype
        and x.dtype in (torch.bfloat16, torch.float16)
        and weight.shape[1] % 64 == 0
        and weight.numel() >= 2**22
        and weight.stride(1) == 1
        and weight.stride(0) % 8 == 0
        and weight.data_ptr() % 16 == 0
    )


def fast_linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x @ weight.T (+ bias): skinny_linear where that is faster, cuBLAS elsewhere."""
    return skinny_linear(x, weight, bias) if is_skinny(x, weight) else linear(x, weight, bias)
