"""RMSNorm, alone or fused with the residual add."""
# mypy: allow-untyped-defs

import torch
from torch import Tensor

from fastkernels.kernels.backend import tl, triton


@triton.jit
def _rms_norm_kernel(
    x_ptr, residual_ptr, weight_ptr, y_ptr, h_ptr, x_stride, residual_stride, hidden_size, eps,
    HAS_RESIDUAL: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    cols = tl.arange(0, BLOCK)
    mask = cols < hidden_size
    h = tl.load(x_ptr + row * x_stride + cols, mask=mask, other=0.0).to(tl.float32)
    if HAS_RESIDUAL:
        h += tl.load(residual_ptr + row * residual_stride + cols, mask=mask, other=0.0).to(tl.float32)
        tl.store(h_ptr + row * hidden_size + cols, h.to(h_ptr.dtype.element_ty), mask=mask)
    scale = 1.0 / tl.sqrt(tl.sum(h * h, axis=0) / hidden_size + eps)
    weight = tl.load(weight_ptr + cols, mask=mask, other=0.0).to(tl.float32)
    tl.store(y_ptr + row * hidden_size + cols, (h * scale * weight).to(y_ptr.dtype.element_ty), mask=mask)


def _launch(x: Tensor, residual: Tensor | None, weight: Tensor, eps: float) -> tuple[Tensor, Tensor | None]:
    hidden_size = x.shape[-1]
    rows = x.reshape(-1, hidden_size)
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    h = None if residual is None else torch.empty_like(y)
    if rows.shape[0] == 0:
        return y, h
    r = rows if residual is None else residual.reshape(-1, hidden_size)
    _rms_norm_kernel[(rows.shape[0],)](
        rows, r, weight, y, y if h is None else h, rows.stride(0), r.stride(0), hidden_size, eps,
        HAS_RESIDUAL=residual is not None, BLOCK=triton.next_power_of_2(hidden_size),
    )  # fmt: skip
    return y, h


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return _launch(x, None, weight, eps)[0]


def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    y, h = _launch(x, residual, weight, eps)
    assert h is not None
    return y, h
