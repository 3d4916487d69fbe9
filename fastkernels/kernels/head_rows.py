"""Rows that lie in heads of wider rows, for kernels that must not copy them first."""
# mypy: allow-untyped-defs

import torch
from torch import Tensor

from fastkernels.errors import UnsupportedError
from fastkernels.kernels.backend import num_sms, tl, triton

MAX_ROW = 16384
"""Numbers of a row that a program holds."""


def head_rows(x: Tensor) -> Tensor:
    """[outer, inner, d] with a dense last axis: a view wherever strides allow."""
    rows = x.reshape(-1, 1, x.shape[-1]) if x.dim() < 3 else x.flatten(0, -3)
    return rows if rows.stride(2) == 1 or rows.shape[2] == 1 else rows.contiguous()


def row_tile(kernel: str, num_rows: int, size: int, device: torch.device) -> tuple[int, int, int]:
    """(rows, columns, warps) of a program that holds whole rows: several short ones where there are many of them.

    Errors:  UnsupportedError for rows longer than a program holds.
    """
    if size > MAX_ROW:
        raise UnsupportedError(f"{kernel} holds rows of at most {MAX_ROW} numbers, got {size}.")
    block = triton.next_power_of_2(size)
    spare = triton.next_power_of_2(max(1, num_rows // (8 * num_sms(device))))
    rows = max(1, min(1024 // block, spare, 16))
    return rows, block, max(1, min(16, rows * block // 512))


@triton.jit
def row_offsets(rows, num_inner, stride_outer, stride_inner):
    """Where each row of a view [outer, inner, d] begins."""
    return (rows // num_inner).to(tl.int64) * stride_outer + (rows % num_inner).to(tl.int64) * stride_inner
