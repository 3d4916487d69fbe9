"""The decay and the step size of the gated delta rule, of every token's heads in one launch."""
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
from fastkernels.kernels.mamba_ssm import softplus
from fastkernels.kernels.silu_and_mul import _exp

_BLOCK = 256


@triton.jit
def _gdn_gating_kernel(
    decay_ptr, a_ptr, b_ptr, bias_ptr, g_ptr, beta_ptr, total, num_heads, a_stride, b_stride,
    BLOCK: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    let_dependents_start(PDL)
    wait_for_dependencies(PDL)
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = i < total
    token, head = (i // num_heads).to(tl.int64), i % num_heads
    a = tl.load(a_ptr + token * a_stride + head, mask=mask, other=0.0).to(tl.float32)
    b = tl.load(b_ptr + token * b_stride + head, mask=mask, other=0.0).to(tl.float32)
    bias = tl.load(bias_ptr + head, mask=mask, other=0.0).to(tl.float32)
    decay = tl.load(decay_ptr + head, mask=mask, other=0.0).to(tl.float32)
    tl.store(g_ptr + i, -_exp(decay, True) * softplus(a + bias), mask=mask)
    tl.store(beta_ptr + i, 1.0 / (1.0 + _exp(-b, True)), mask=mask)


def fused_gdn_gating(decay: Tensor, a: Tensor, b: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """(-exp(decay) * softplus(a + bias), sigmoid(b)) in float32.

    Shapes:  a, b and both results: [num_tokens, num_heads], rows may be strided; decay, bias: [num_heads].
    Errors:  UnsupportedError for a dtype other than bf16, fp16, fp32.
    """
    check_dtypes("fused_gdn_gating", decay=decay, a=a, b=b, bias=bias)
    g, beta = (torch.empty(a.shape, dtype=torch.float32, device=a.device) for _ in range(2))
    if g.numel() == 0:
        return g, beta
    a, b = (t if t.stride(1) == 1 or t.shape[1] == 1 else t.contiguous() for t in (a, b))
    _gdn_gating_kernel[(triton.cdiv(g.numel(), _BLOCK),)](
        decay.contiguous(), a, b, bias.contiguous(), g, beta, g.numel(), g.shape[1], a.stride(0), b.stride(0),
        BLOCK=_BLOCK, num_warps=4, **dependent_launch(a.device),
    )  # fmt: skip
    return g, beta
