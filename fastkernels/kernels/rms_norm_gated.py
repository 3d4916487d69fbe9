"""RMSNorm over groups of a row with a gate before or after it; a program holds one group, or several short ones."""
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
from fastkernels.kernels.silu_and_mul import _exp


@triton.jit(do_not_specialize=["num_rows", "num_groups", "num_inner"])
def _rms_norm_gated_kernel(
    x_ptr, gate_ptr, weight_ptr, y_ptr, num_rows, num_groups, num_inner,
    x_stride_outer, x_stride_inner, gate_stride_outer, gate_stride_inner, eps,
    GROUP_SIZE: tl.constexpr, NORM_FIRST: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    let_dependents_start(PDL)
    wait_for_dependencies(PDL)
    part = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    row, first = part // num_groups, part % num_groups * GROUP_SIZE
    columns = tl.arange(0, BLOCK)[None, :]
    mask = (row < num_rows)[:, None] & (columns < GROUP_SIZE)
    x_at = (row_offsets(row, num_inner, x_stride_outer, x_stride_inner) + first)[:, None] + columns
    gate_at = (row_offsets(row, num_inner, gate_stride_outer, gate_stride_inner) + first)[:, None] + columns
    h = tl.load(x_ptr + x_at, mask=mask, other=0.0).to(tl.float32)
    gate = tl.load(gate_ptr + gate_at, mask=mask, other=0.0).to(tl.float32)
    weight = tl.load(weight_ptr + first[:, None] + columns, mask=mask, other=0.0).to(tl.float32)
    opened = gate / (1.0 + _exp(-gate, gate_ptr.dtype.element_ty == tl.float32))
    if not NORM_FIRST:
        h = h * opened
    scale = 1.0 / tl.sqrt(tl.sum(h * h, axis=1) / GROUP_SIZE + eps)
    y = h * scale[:, None] * weight
    if NORM_FIRST:
        y = y * opened
    out = (part.to(tl.int64) * GROUP_SIZE)[:, None] + columns
    tl.store(y_ptr + out, y.to(y_ptr.dtype.element_ty), mask=mask)


def rms_norm_gated(
    x: Tensor, gate: Tensor, weight: Tensor, eps: float, group_size: int, norm_before_gate: bool
) -> Tensor:
    """norm(x * silu(gate)) * weight, or norm(x) * weight * silu(gate), the norm over each group of a row; in float32.

    Shapes:  x, gate, the result: [..., hidden_size], heads and rows may be strided; weight: [hidden_size].
    Errors:  UnsupportedError for a dtype other than bf16, fp16, fp32, or groups that a program does not hold.
    """
    check_dtypes("rms_norm_gated", x=x, gate=gate, weight=weight)
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    if y.numel() == 0:
        return y
    h, g = head_rows(x), head_rows(gate)
    num_rows, num_groups = h.shape[0] * h.shape[1], h.shape[2] // group_size
    rows, block, warps = row_tile("rms_norm_gated", num_rows * num_groups, group_size, x.device)
    _rms_norm_gated_kernel[(triton.cdiv(num_rows * num_groups, rows),)](
        h, g, weight.contiguous(), y, num_rows, num_groups, h.shape[1], *h.stride()[:2], *g.stride()[:2], eps,
        GROUP_SIZE=group_size, NORM_FIRST=norm_before_gate, ROWS=rows, BLOCK=block, num_warps=warps,
        **dependent_launch(x.device),
    )  # fmt: skip
    return y
