"""Rows of length one; a program holds a row, or several short ones."""
# mypy: allow-untyped-defs
# ruff: noqa: N803

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
from fastkernels.kernels.head_rows import head_rows, row_offsets, row_tile


@triton.jit(do_not_specialize=["num_rows", "num_inner"])
def _l2_norm_kernel(
    x_ptr, y_ptr, num_rows, num_inner, stride_outer, stride_inner, eps,
    D: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr, EPS_IN_ROOT: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    let_dependents_start(PDL)
    wait_for_dependencies(PDL)
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    columns = tl.arange(0, BLOCK)[None, :]
    mask = (row < num_rows)[:, None] & (columns < D)
    at = row_offsets(row, num_inner, stride_outer, stride_inner)[:, None] + columns
    x = tl.load(x_ptr + at, mask=mask, other=0.0).to(tl.float32)
    total = tl.sum(x * x, axis=1)
    if EPS_IN_ROOT:
        y = x * tl.rsqrt(total + eps)[:, None]
    else:
        y = x / tl.maximum(tl.sqrt(total), eps, propagate_nan=tl.PropagateNan.ALL)[:, None]
    out = (row.to(tl.int64) * D)[:, None] + columns
    tl.store(y_ptr + out, y.to(y_ptr.dtype.element_ty), mask=mask)


def l2_norm(x: Tensor, eps: float, is_eps_in_root: bool = False) -> Tensor:
    """x / max(|x|, eps) over the last axis, or x / sqrt(|x|^2 + eps), in float32.

    Shapes:  x, the result: [..., d], heads and rows may be strided.
    Errors:  UnsupportedError for a dtype other than bf16, fp16, fp32, or rows that a program does not hold.
    """
    check_dtypes("l2_norm", x=x)
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    if y.numel() == 0:
        return y
    view = head_rows(x)
    num_rows = view.shape[0] * view.shape[1]
    rows, block, warps = row_tile("l2_norm", num_rows, view.shape[2], x.device)
    _l2_norm_kernel[(triton.cdiv(num_rows, rows),)](
        view, y, num_rows, view.shape[1], *view.stride()[:2], eps,
        D=view.shape[2], ROWS=rows, BLOCK=block, EPS_IN_ROOT=is_eps_in_root, num_warps=warps,
        **dependent_launch(x.device),
    )  # fmt: skip
    return y
