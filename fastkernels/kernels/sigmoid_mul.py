"""Rows times the sigmoid of a gate, one an element or one a row."""
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
from fastkernels.kernels.head_rows import head_rows, row_offsets
from fastkernels.kernels.silu_and_mul import _exp

_BLOCK = 1024


@triton.jit(do_not_specialize=["num_rows", "num_inner"])
def _sigmoid_mul_kernel(
    x_ptr, gate_ptr, y_ptr, num_rows, num_inner,
    x_stride_outer, x_stride_inner, gate_stride_outer, gate_stride_inner, d,
    GATE_A_ROW: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    let_dependents_start(PDL)
    wait_for_dependencies(PDL)
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)[None, :]
    mask = (row < num_rows)[:, None] & (columns < d)
    x_at = row_offsets(row, num_inner, x_stride_outer, x_stride_inner)[:, None] + columns
    gate_row = row_offsets(row, num_inner, gate_stride_outer, gate_stride_inner)[:, None]
    x = tl.load(x_ptr + x_at, mask=mask, other=0.0).to(tl.float32)
    if GATE_A_ROW:
        gate = tl.load(gate_ptr + gate_row, mask=(row < num_rows)[:, None], other=0.0).to(tl.float32)
    else:
        gate = tl.load(gate_ptr + gate_row + columns, mask=mask, other=0.0).to(tl.float32)
    y = x / (1.0 + _exp(-gate, gate_ptr.dtype.element_ty == tl.float32))
    out = (row.to(tl.int64) * d)[:, None] + columns
    tl.store(y_ptr + out, y.to(y_ptr.dtype.element_ty), mask=mask)


def sigmoid_mul(x: Tensor, gate: Tensor) -> Tensor:
    """x * sigmoid(gate), in float32.

    Shapes:  x, the result: [..., d]; gate: [..., d or 1]; heads and rows may be strided.
    Errors:  UnsupportedError for a dtype other than bf16, fp16, fp32.
    """
    check_dtypes("sigmoid_mul", x=x, gate=gate)
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    if y.numel() == 0:
        return y
    view, gates = head_rows(x), head_rows(gate)
    num_rows, d = view.shape[0] * view.shape[1], view.shape[2]
    block = min(_BLOCK, triton.next_power_of_2(d))
    rows = max(1, min(16, _BLOCK // block))
    _sigmoid_mul_kernel[(triton.cdiv(num_rows, rows), triton.cdiv(d, block))](
        view, gates, y, num_rows, view.shape[1], *view.stride()[:2], *gates.stride()[:2], d,
        GATE_A_ROW=gates.shape[2] == 1, ROWS=rows, BLOCK=block, num_warps=max(1, rows * block // 256),
        **dependent_launch(x.device),
    )  # fmt: skip
    return y
