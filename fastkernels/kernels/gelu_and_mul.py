"""GEGLU's activation: gelu of one half of a row times the other."""
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
def _gelu_and_mul_kernel(
    x_ptr, y_ptr, x_stride, d, gate_place, up_place, num_blocks,
    IS_TANH: tl.constexpr, BLOCK: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    let_dependents_start(PDL)
    wait_for_dependencies(PDL)
    pid = tl.program_id(0)
    row = (pid // num_blocks).to(tl.int64)
    columns = pid % num_blocks * BLOCK + tl.arange(0, BLOCK)
    mask = columns < d
    gate = tl.load(x_ptr + row * x_stride + gate_place + columns, mask=mask, other=0.0).to(tl.float32)
    up = tl.load(x_ptr + row * x_stride + up_place + columns, mask=mask, other=0.0).to(tl.float32)
    if IS_TANH:  # (1 + tanh(u)) / 2 is the sigmoid of 2 u
        twice = 1.5957691216057308 * (gate + 0.044715 * gate * gate * gate)
        opened = gate / (1.0 + _exp(-twice, x_ptr.dtype.element_ty == tl.float32))
    else:
        opened = 0.5 * gate * (1.0 + tl.erf(gate * 0.7071067811865476))
    tl.store(y_ptr + row * d + columns, (opened * up).to(y_ptr.dtype.element_ty), mask=mask)


def gelu_and_mul(x: Tensor, approximate: str, gate_is_last: bool) -> Tensor:
    """gelu(x[..., :d]) * x[..., d:], or with the halves exchanged, in float32.

    Shapes:  x: [..., 2*d], rows may be strided; the result: [..., d], contiguous.
    Errors:  UnsupportedError for an odd last axis or a dtype other than bf16, fp16, fp32.
    """
    check_dtypes("gelu_and_mul", x=x)
    if x.shape[-1] % 2:
        raise UnsupportedError(f"gelu_and_mul halves the last axis, got an odd size: {x.shape[-1]}.")
    d = x.shape[-1] // 2
    y = torch.empty((*x.shape[:-1], d), dtype=x.dtype, device=x.device)
    if y.numel() == 0:
        return y
    rows = x.reshape(-1, 2 * d)
    if rows.stride(1) != 1:
        rows = rows.contiguous()
    block, warps = block_and_warps(d)
    num_blocks = triton.cdiv(d, block)
    gate_place, up_place = (d, 0) if gate_is_last else (0, d)
    _gelu_and_mul_kernel[(rows.shape[0] * num_blocks,)](
        rows, y, rows.stride(0), d, gate_place, up_place, num_blocks,
        IS_TANH=approximate == "tanh", BLOCK=block, num_warps=warps, **dependent_launch(x.device),
    )  # fmt: skip
    return y
