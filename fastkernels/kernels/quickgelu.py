"""x * sigmoid(1.702 x), elementwise."""
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
from fastkernels.kernels.silu_and_mul import _exp, block_and_warps


@triton.jit(do_not_specialize=["num_blocks"])
def _quickgelu_kernel(x_ptr, y_ptr, x_stride, d, num_blocks, BLOCK: tl.constexpr, PDL: tl.constexpr):
    let_dependents_start(PDL)
    wait_for_dependencies(PDL)
    pid = tl.program_id(0)
    row = (pid // num_blocks).to(tl.int64)
    cols = (pid % num_blocks) * BLOCK + tl.arange(0, BLOCK)
    mask = cols < d
    x = tl.load(x_ptr + row * x_stride + cols, mask=mask, other=0.0).to(tl.float32)
    y = x / (1.0 + _exp(-1.702 * x, x_ptr.dtype.element_ty == tl.float32))
    tl.store(y_ptr + row * d + cols, y.to(y_ptr.dtype.element_ty), mask=mask)


def quickgelu(x: Tensor) -> Tensor:
    """x * sigmoid(1.702 x), in float32.

    Shapes:  x: [..., d], rows may be strided; the result contiguous.
    Errors:  UnsupportedError for a dtype other than bf16, fp16, fp32.
    """
    check_dtypes("quickgelu", x=x)
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    if y.numel() == 0:
        return y
    rows = x.reshape(-1, x.shape[-1])
    if rows.stride(1) != 1:
        rows = rows.contiguous()
    block, warps = block_and_warps(rows.shape[1])
    num_blocks = triton.cdiv(rows.shape[1], block)
    _quickgelu_kernel[(rows.shape[0] * num_blocks,)](
        rows, y, rows.stride(0), rows.shape[1], num_blocks, BLOCK=block, num_warps=warps, **dependent_launch(x.device)
    )
    return y
