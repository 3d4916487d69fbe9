"""GPT-OSS's activation: gates and values in turn, clamped, (up + 1) * gate * sigmoid(alpha * gate)."""
# mypy: allow-untyped-defs
# ruff: noqa: N803

import torch
from torch import Tensor

from fastkernels.errors import UnsupportedError
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
def _swiglu_oai_and_mul_kernel(
    x_ptr, y_ptr, x_stride, d, num_blocks, alpha, limit, BLOCK: tl.constexpr, PDL: tl.constexpr
):
    let_dependents_start(PDL)
    wait_for_dependencies(PDL)
    row = (tl.program_id(0) // num_blocks).to(tl.int64)
    cols = tl.program_id(0) % num_blocks * BLOCK + tl.arange(0, BLOCK)
    mask = cols < d
    both = tl.program_id(0) % num_blocks * (2 * BLOCK) + tl.arange(0, 2 * BLOCK)
    pairs = tl.load(x_ptr + row * x_stride + both, mask=both < 2 * d, other=0.0)
    gate, up = tl.split(tl.reshape(pairs, [BLOCK, 2]))
    gate, up = gate.to(tl.float32), up.to(tl.float32)
    gate = tl.where(gate > limit, limit, gate)
    up = tl.where(up > limit, limit, tl.where(up < -limit, -limit, up))
    y = (up + 1.0) * gate / (1.0 + _exp(-alpha * gate, x_ptr.dtype.element_ty == tl.float32))
    tl.store(y_ptr + row * d + cols, y.to(y_ptr.dtype.element_ty), mask=mask)


def swiglu_oai_and_mul(x: Tensor, alpha: float, limit: float) -> Tensor:
    """In float32, rounded once.

    Shapes:  x: [..., 2*d], rows may be strided; returned y: [..., d], contiguous.
    Errors:  UnsupportedError for an odd last axis or a dtype other than bf16, fp16, fp32.
    """
    check_dtypes("swiglu_oai_and_mul", x=x)
    if x.shape[-1] % 2:
        raise UnsupportedError(f"swiglu_oai_and_mul takes pairs of a row, got an odd size: {x.shape[-1]}.")
    d = x.shape[-1] // 2
    y = torch.empty((*x.shape[:-1], d), dtype=x.dtype, device=x.device)
    if y.numel() == 0:
        return y
    rows = x.reshape(-1, 2 * d)
    if rows.stride(1) != 1:
        rows = rows.contiguous()
    block, warps = block_and_warps(d)
    num_blocks = triton.cdiv(d, block)
    _swiglu_oai_and_mul_kernel[(rows.shape[0] * num_blocks,)](
        rows, y, rows.stride(0), d, num_blocks, alpha, limit, BLOCK=block, num_warps=warps, **dependent_launch(x.device)
    )
    return y
