"""Rows plus the product of others with a vector, or with rows."""
# mypy: allow-untyped-defs
# ruff: noqa: N803

import torch
from torch import Tensor

from fastkernels.kernels.backend import dependent_launch, let_dependents_start, tl, triton, wait_for_dependencies
from fastkernels.kernels.rms_norm import dense_rows

_FLOATS = (torch.bfloat16, torch.float16, torch.float32)
_BLOCK = 1024
"""Elements of a program, 8 a thread: one 16-byte access each for 16-bit dtypes."""


@triton.jit(do_not_specialize=["num_rows"])
def _addcmul_kernel(
    x_ptr, tensor1_ptr, tensor2_ptr, y_ptr, num_rows, x_stride, tensor1_stride, tensor2_stride, d,
    ROWS: tl.constexpr, BLOCK: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    let_dependents_start(PDL)
    wait_for_dependencies(PDL)
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)[:, None]
    cols = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)[None, :]
    mask = (row < num_rows) & (cols < d)
    row = row.to(tl.int64)
    x = tl.load(x_ptr + row * x_stride + cols, mask=mask, other=0.0).to(tl.float32)
    first = tl.load(tensor1_ptr + row * tensor1_stride + cols, mask=mask, other=0.0).to(tl.float32)
    second = tl.load(tensor2_ptr + row * tensor2_stride + cols, mask=mask, other=0.0).to(tl.float32)
    tl.store(y_ptr + row * d + cols, (x + first * second).to(y_ptr.dtype.element_ty), mask=mask)


def addcmul(x: Tensor, tensor1: Tensor, tensor2: Tensor) -> Tensor:
    """x + tensor1 * tensor2 in float32, rounded once. What broadcasts otherwise, and other dtypes, are for torch.

    Shapes:  x, tensor1, y: [..., d], rows may be strided; tensor2: [d], or as x.
    """
    d = x.shape[-1] if x.dim() else 0
    takes = tensor1.shape == x.shape and tensor2.shape in (x.shape, x.shape[-1:]) and x.numel() > 0
    if not takes or x.dtype not in _FLOATS or not x.dtype == tensor1.dtype == tensor2.dtype:
        return torch.addcmul(x, tensor1, tensor2)
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    views = [dense_rows(t) for t in (x, tensor1, tensor2)]
    strides = [view.stride(0) if len(view) > 1 else 0 for view in views]
    num_rows = len(views[0])
    block = min(_BLOCK, triton.next_power_of_2(d))
    rows = max(1, min(16, _BLOCK // block))
    _addcmul_kernel[(triton.cdiv(num_rows, rows), triton.cdiv(d, block))](
        *views, y, num_rows, *strides, d, ROWS=rows, BLOCK=block,
        num_warps=max(1, rows * block // 256), **dependent_launch(x.device),
    )  # fmt: skip
    return y
