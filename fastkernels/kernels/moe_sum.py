"""Weighted sum of what each token's experts gave."""
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


@triton.jit
def _moe_sum_kernel(
    x_ptr, weights_ptr, y_ptr, hidden_size, num_blocks, TOP_K: tl.constexpr, BLOCK: tl.constexpr, PDL: tl.constexpr
):
    let_dependents_start(PDL)
    wait_for_dependencies(PDL)
    token = (tl.program_id(0) // num_blocks).to(tl.int64)
    cols = tl.program_id(0) % num_blocks * BLOCK + tl.arange(0, BLOCK)
    mask = cols < hidden_size
    total = tl.zeros([BLOCK], dtype=tl.float32)
    for k in tl.static_range(TOP_K):
        weight = tl.load(weights_ptr + token * TOP_K + k).to(tl.float32)
        row = tl.load(x_ptr + (token * TOP_K + k) * hidden_size + cols, mask=mask, other=0.0)
        total += weight * row.to(tl.float32)
    tl.store(y_ptr + token * hidden_size + cols, total.to(y_ptr.dtype.element_ty), mask=mask)


def moe_sum(x: Tensor, topk_weights: Tensor) -> Tensor:
    """y[i] = sum over j of topk_weights[i, j] * x[i, j], in fp32.

    Shapes:  x: [num_tokens, top_k, hidden_size]; topk_weights: [num_tokens, top_k]; y: [num_tokens, hidden_size].
    Errors:  UnsupportedError for a dtype other than bf16, fp16, fp32.
    """
    check_dtypes("moe_sum", x=x, topk_weights=topk_weights)
    x, topk_weights = x.contiguous(), topk_weights.contiguous()
    num_tokens, top_k, hidden_size = x.shape
    y = torch.empty((num_tokens, hidden_size), dtype=x.dtype, device=x.device)
    if not y.numel():
        return y
    block = min(1024, max(32, triton.next_power_of_2(hidden_size)))
    num_blocks = triton.cdiv(hidden_size, block)
    _moe_sum_kernel[(num_tokens * num_blocks,)](
        x, topk_weights, y, hidden_size, num_blocks,
        TOP_K=top_k, BLOCK=block, num_warps=max(1, block // 256), **dependent_launch(x.device),
    )  # fmt: skip
    return y
