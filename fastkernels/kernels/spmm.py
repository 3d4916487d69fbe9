"""Compressed sparse rows times a dense matrix: long rows are cut, so that no program sums much more than another.

A row's segments begin every SEGMENT values from its first on. The first one, its head, has the row's own program. Cut
all values into blocks of SEGMENT, and no two of the others, the tails, begin in one block: so each block but the first
has a program that searches for the tail which begins in it. Nothing is counted before, and the host reads nothing.
What segments of long rows sum is added by a second kernel, always in one order.
"""
# mypy: allow-untyped-defs
# ruff: noqa: N803

import torch
from torch import Tensor

from fastkernels.kernels.backend import check_dtypes, tl, triton

_SEGMENT = 256


@triton.jit
def _row_of(crow_ptr, value, num_rows):
    """The row that holds a value; crow_ptr[0] <= value < crow_ptr[num_rows]."""
    row = tl.zeros([], dtype=tl.int64)
    row_behind = row + num_rows
    while row_behind - row > 1:
        middle = (row + row_behind) // 2
        is_behind = tl.load(crow_ptr + middle) > value
        row = tl.where(is_behind, row, middle)
        row_behind = tl.where(is_behind, middle, row_behind)
    return row


@triton.jit(do_not_specialize=["num_rows", "num_tails"])
def _spmm_kernel(
    crow_ptr, col_ptr, value_ptr, x_ptr, y_ptr, partials_ptr, num_rows, num_tails,
    DIM: tl.constexpr, SEGMENT: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """The heads' programs are behind those of blocks, and likewise what both of them sum of long rows."""
    pid = tl.program_id(0).to(tl.int64)
    is_head = pid >= num_tails
    if is_head:
        row = pid - num_tails
        begin = tl.load(crow_ptr + row)
        start = begin
        place = num_tails + begin // SEGMENT  # no other long row begins in that block
    else:
        block_start = (pid + 1) * SEGMENT
        row = _row_of(crow_ptr, block_start - 1, num_rows)
        begin = tl.load(crow_ptr + row)
        start = begin + tl.cdiv(block_start - begin, SEGMENT) * SEGMENT
        place = pid
    end = tl.load(crow_ptr + row + 1)
    if is_head | (start < end):
        num_values = tl.minimum(end - start, SEGMENT).to(tl.int32)
        dims = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
        is_dim = dims < DIM
        sums = tl.zeros([BLOCK_E, BLOCK_D], dtype=tl.float32)
        for first in range(0, num_values, BLOCK_E):
            e = first + tl.arange(0, BLOCK_E)
            is_value = e < num_values
            cols = tl.load(col_ptr + start + e, mask=is_value, other=0)
            values = tl.load(value_ptr + start + e, mask=is_value, other=0.0).to(tl.float32)
            x_ptrs = x_ptr + cols[:, None] * DIM + dims[None, :]
            x = tl.load(x_ptrs, mask=is_value[:, None] & is_dim[None, :], other=0.0).to(tl.float32)
            sums += values[:, None] * x
        total = tl.sum(sums, axis=0)
        if end - begin <= SEGMENT:
            tl.store(y_ptr + row * DIM + dims, total.to(y_ptr.dtype.element_ty), mask=is_dim)
        else:
            tl.store(partials_ptr + place * DIM + dims, total, mask=is_dim)


@triton.jit(do_not_specialize=["num_tails"])
def _sum_segments_kernel(
    crow_ptr, partials_ptr, y_ptr, num_tails,
    DIM: tl.constexpr, SEGMENT: tl.constexpr, BLOCK_S: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    begin, end = tl.load(crow_ptr + row), tl.load(crow_ptr + row + 1)
    if end - begin > SEGMENT:
        dims = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
        is_dim = dims < DIM
        block = begin // SEGMENT
        num = (tl.cdiv(end - begin, SEGMENT) - 1).to(tl.int32)
        sums = tl.zeros([BLOCK_S, BLOCK_D], dtype=tl.float32)
        for first in range(0, num, BLOCK_S):
            tail = first + tl.arange(0, BLOCK_S)
            places = (block + tail)[:, None] * DIM + dims[None, :]
            sums += tl.load(partials_ptr + places, mask=(tail < num)[:, None] & is_dim[None, :], other=0.0)
        head = tl.load(partials_ptr + (num_tails + block) * DIM + dims, mask=is_dim, other=0.0)
        total = head + tl.sum(sums, axis=0)
        tl.store(y_ptr + row * DIM + dims, total.to(y_ptr.dtype.element_ty), mask=is_dim)


def spmm(crow_indices: Tensor, col_indices: Tensor, values: Tensor, x: Tensor) -> Tensor:
    """y[i] = sum of values[e] * x[col_indices[e]] over row i's e, in float32.

    Shapes:  crow_indices: [num_rows + 1], col_indices: [num_values], int64; values: [num_values]; x: [num_cols, dim];
             returned y: [num_rows, dim].
    Errors:  UnsupportedError for a dtype other than bf16, fp16, fp32.
    """
    check_dtypes("spmm", values=values, x=x)
    num_rows, dim = len(crow_indices) - 1, x.shape[1]
    y = torch.empty((num_rows, dim), dtype=x.dtype, device=x.device)
    if y.numel() == 0:
        return y
    crow_indices = crow_indices.contiguous()
    num_tails = max(len(values) - 1, 0) // _SEGMENT
    partials = torch.empty((2 * num_tails, dim), dtype=torch.float32, device=x.device)
    block_d = min(triton.next_power_of_2(dim), 128)
    num_dim_blocks = triton.cdiv(dim, block_d)
    _spmm_kernel[(num_tails + num_rows, num_dim_blocks)](
        crow_indices, col_indices.contiguous(), values.contiguous(), x.contiguous(), y, partials, num_rows, num_tails,
        DIM=dim, SEGMENT=_SEGMENT, BLOCK_E=min(2048 // block_d, _SEGMENT), BLOCK_D=block_d, num_warps=2,
    )  # fmt: skip
    if num_tails:
        _sum_segments_kernel[(num_rows, num_dim_blocks)](
            crow_indices, partials, y, num_tails,
            DIM=dim, SEGMENT=_SEGMENT, BLOCK_S=min(4096 // block_d, 64), BLOCK_D=block_d, num_warps=4,
        )  # fmt: skip
    return y
