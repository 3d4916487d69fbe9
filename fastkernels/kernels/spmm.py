"""Compressed sparse rows times a dense matrix: a program for each row and part of the columns."""
# mypy: allow-untyped-defs
# ruff: noqa: N803

import torch
from torch import Tensor

from fastkernels.kernels.backend import check_dtypes, tl, triton


@triton.jit
def _spmm_kernel(
    crow_ptr, col_ptr, value_ptr, x_ptr, y_ptr, dim, BLOCK_E: tl.constexpr, BLOCK_D: tl.constexpr
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    dims = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    is_dim = dims < dim
    begin, end = tl.load(crow_ptr + row), tl.load(crow_ptr + row + 1)
    acc = tl.zeros([BLOCK_D], dtype=tl.float32)
    for start in range(begin, end, BLOCK_E):
        e = start + tl.arange(0, BLOCK_E)
        is_value = e < end
        cols = tl.load(col_ptr + e, mask=is_value, other=0)
        values = tl.load(value_ptr + e, mask=is_value, other=0.0).to(tl.float32)
        place = x_ptr + cols[:, None] * dim + dims[None, :]
        x = tl.load(place, mask=is_value[:, None] & is_dim[None, :], other=0.0).to(tl.float32)
        acc += tl.sum(values[:, None] * x, axis=0)
    tl.store(y_ptr + row * dim + dims, acc.to(y_ptr.dtype.element_ty), mask=is_dim)


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
    block_d = min(triton.next_power_of_2(dim), 128)
    _spmm_kernel[(num_rows, triton.cdiv(dim, block_d))](
        crow_indices.contiguous(), col_indices.contiguous(), values.contiguous(), x.contiguous(), y, dim,
        BLOCK_E=16, BLOCK_D=block_d, num_warps=2,
    )  # fmt: skip
    return y
