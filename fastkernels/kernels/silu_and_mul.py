"""SwiGLU's gate: silu of the first half times the second half."""
# mypy: allow-untyped-defs

import torch
from torch import Tensor

from fastkernels.kernels.backend import tl, triton


@triton.jit
def _silu_and_mul_kernel(x_ptr, y_ptr, x_stride, d, BLOCK: tl.constexpr):
    row = tl.program_id(1).to(tl.int64)
    cols = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = cols < d
    gate = tl.load(x_ptr + row * x_stride + cols, mask=mask).to(tl.float32)
    up = tl.load(x_ptr + row * x_stride + d + cols, mask=mask).to(tl.float32)
    y = gate / (1.0 + tl.exp(-gate)) * up
    tl.store(y_ptr + row * d + cols, y.to(y_ptr.dtype.element_ty), mask=mask)


def silu_and_mul(x: Tensor) -> Tensor:
    d = x.shape[-1] // 2
    rows = x.reshape(-1, 2 * d)
    y = torch.empty((*x.shape[:-1], d), dtype=x.dtype, device=x.device)
    if y.numel():
        block = min(1024, triton.next_power_of_2(d))
        _silu_and_mul_kernel[(triton.cdiv(d, block), rows.shape[0])](rows, y, rows.stride(0), d, BLOCK=block)
    return y
