"""Sums of table rows by id: a program for each bag and part of a row."""
# mypy: allow-untyped-defs
# ruff: noqa: N803

import torch
from torch import Tensor

from fastkernels.kernels.backend import check_dtypes, tl, triton


@triton.jit
def _embedding_bag_kernel(
    ids_ptr, first_rows_ptr, weight_ptr, y_ptr, num_tables, num_ids, dim, BLOCK: tl.constexpr
):  # fmt: skip
    bag = tl.program_id(0).to(tl.int64)
    cols = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = cols < dim
    first = tl.load(first_rows_ptr + bag % num_tables)
    acc = tl.zeros([BLOCK], dtype=tl.float32)
    for j in range(0, num_ids):
        row = tl.load(ids_ptr + bag * num_ids + j)
        acc += tl.load(weight_ptr + (first + row) * dim + cols, mask=mask & (row >= 0), other=0.0).to(tl.float32)
    tl.store(y_ptr + bag * dim + cols, acc.to(y_ptr.dtype.element_ty), mask=mask)


def embedding_bag(ids: Tensor, first_rows: Tensor, weight: Tensor) -> Tensor:
    """y[b, t] = sum of weight[first_rows[t] + ids[b, t, j]] over ids >= 0, in float32.

    Shapes:  ids: [num_rows, num_tables, num_ids] int64; first_rows: [num_tables] int64; weight: [rows, dim], dense;
             returned y: [num_rows, num_tables, dim].
    Errors:  UnsupportedError for a weight other than bf16, fp16, fp32.
    """
    check_dtypes("embedding_bag", weight=weight)
    num_rows, num_tables, num_ids = ids.shape
    dim = weight.shape[1]
    y = torch.empty((num_rows, num_tables, dim), dtype=weight.dtype, device=weight.device)
    if y.numel() == 0:
        return y
    block = min(triton.next_power_of_2(dim), 256)
    grid = (num_rows * num_tables, triton.cdiv(dim, block))
    _embedding_bag_kernel[grid](
        ids.contiguous(), first_rows, weight.contiguous(), y, num_tables, num_ids, dim, BLOCK=block,
        num_warps=max(1, block // 128),
    )  # fmt: skip
    return y
