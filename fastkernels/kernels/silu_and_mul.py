"""SwiGLU's gate: silu of the first half of a row times the second half."""
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


@triton.jit
def _exp(a, IS_EXACT: tl.constexpr):
    """exp(a) to a rounding or two; tl.exp rounds a * log2(e) once, which costs |a| / 2 more of them."""
    if IS_EXACT:
        a = tl.maximum(tl.minimum(a, 120.0), -120.0)
        high = a * 1.4426950216293335
        low = tl.fma(a, 1.4426950216293335, -high) + a * 1.925963033500e-08
        return tl.exp2(high) * (1.0 + low * 0.6931471805599453)
    return tl.exp(a)


@triton.jit(do_not_specialize=["num_blocks"])
def _silu_and_mul_kernel(x_ptr, y_ptr, x_stride, d, num_blocks, BLOCK: tl.constexpr, PDL: tl.constexpr):
    let_dependents_start(PDL)
    wait_for_dependencies(PDL)
    pid = tl.program_id(0)
    row = (pid // num_blocks).to(tl.int64)
    cols = (pid % num_blocks) * BLOCK + tl.arange(0, BLOCK)
    mask = cols < d
    gate = tl.load(x_ptr + row * x_stride + cols, mask=mask, other=0.0).to(tl.float32)
    up = tl.load(x_ptr + row * x_stride + d + cols, mask=mask, other=0.0).to(tl.float32)
    y = gate / (1.0 + _exp(-gate, x_ptr.dtype.element_ty == tl.float32)) * up
    tl.store(y_ptr + row * d + cols, y.to(y_ptr.dtype.element_ty), mask=mask)


def block_and_warps(d: int) -> tuple[int, int]:
    """8 columns a thread: one 16-byte access each for 16-bit dtypes."""
    block = min(1024, max(32, triton.next_power_of_2(d)))
    return block, max(1, block // 256)


def silu_and_mul(x: Tensor) -> Tensor:
    """silu(x[..., :d]) * x[..., d:], in float32.

    Shapes:  x: [..., 2*d], rows may be strided; returned y: [..., d], contiguous.
    Errors:  UnsupportedError for an odd last axis or a dtype other than bf16, fp16, fp32.
    """
    check_dtypes("silu_and_mul", x=x)
    if x.shape[-1] % 2:
        raise UnsupportedError(f"silu_and_mul halves the last axis, got an odd size: {x.shape[-1]}.")
    d = x.shape[-1] // 2
    y = torch.empty((*x.shape[:-1], d), dtype=x.dtype, device=x.device)
    if y.numel() == 0:
        return y
    rows = x.reshape(-1, 2 * d)
    if rows.stride(1) != 1:
        rows = rows.contiguous()
    block, warps = block_and_warps(d)
    num_blocks = triton.cdiv(d, block)
    _silu_and_mul_kernel[(rows.shape[0] * num_blocks,)](
        rows, y, rows.stride(0), d, num_blocks, BLOCK=block, num_warps=warps, **dependent_launch(x.device)
    )
    return y
