"""The largest of a softmax over experts, in order, in one pass over a row of scores."""
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


@triton.jit(do_not_specialize=["num_rows"])
def _topk_softmax_kernel(
    logits_ptr, weights_ptr, ids_ptr, num_rows, row_stride, num_experts,
    TOP_K: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_E: tl.constexpr, ROWS: tl.constexpr,
    RENORMALIZE: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    let_dependents_start(PDL)
    wait_for_dependencies(PDL)
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    is_row = (rows < num_rows)[:, None]
    experts = tl.arange(0, BLOCK_E)[None, :]
    choices = tl.arange(0, BLOCK_K)[None, :]
    offsets = rows.to(tl.int64)[:, None] * row_stride + experts
    is_free = (experts < num_experts) & (rows >= 0)[:, None]
    x = tl.load(logits_ptr + offsets, mask=is_row & is_free, other=0.0).to(tl.float32)
    x = tl.where(is_free & (x == x), x, float("-inf"))  # NaN counts as least: ids stay in range whatever comes in
    top = tl.max(x, axis=1)
    total = tl.sum(tl.where(is_free, tl.exp(x - top[:, None]), 0.0), axis=1)
    chosen = tl.full([ROWS, BLOCK_K], float("-inf"), dtype=tl.float32)
    ids = tl.zeros([ROWS, BLOCK_K], dtype=tl.int32)
    for k in tl.static_range(TOP_K):
        best = tl.max(tl.where(is_free, x, float("-inf")), axis=1)
        place = tl.min(tl.where(is_free & (x == best[:, None]), experts, BLOCK_E), axis=1)
        chosen = tl.where(choices == k, best[:, None], chosen)
        ids = tl.where(choices == k, place[:, None], ids)
        is_free = is_free & (experts != place[:, None])
    weights = tl.exp(chosen - top[:, None])
    if RENORMALIZE:
        total = tl.sum(weights, axis=1)
    outputs = rows.to(tl.int64)[:, None] * TOP_K + choices
    is_output = is_row & (choices < TOP_K)
    tl.store(weights_ptr + outputs, weights / total[:, None], mask=is_output)
    tl.store(ids_ptr + outputs, ids, mask=is_output)


def topk_softmax(logits: Tensor, top_k: int, renormalize: bool) -> tuple[Tensor, Tensor]:
    """(weights, ids) of the top_k largest of softmax(logits), divided by their sum if renormalize.

    Shapes:  logits: [num_tokens, num_experts], rows may be strided; both results: [num_tokens, top_k].
    Dtypes:  logits bf16, fp16 or fp32; weights fp32, ids int32; computed in fp32.
    Errors:  UnsupportedError for another dtype.
    """
    check_dtypes("topk_softmax", logits=logits)
    num_rows, num_experts = logits.shape
    if logits.stride(1) != 1:
        logits = logits.contiguous()
    weights = torch.empty((num_rows, top_k), dtype=torch.float32, device=logits.device)
    ids = torch.empty((num_rows, top_k), dtype=torch.int32, device=logits.device)
    if not num_rows:
        return weights, ids
    block_e = triton.next_power_of_2(num_experts)
    rows = max(1, min(8, 1024 // block_e))
    _topk_softmax_kernel[(triton.cdiv(num_rows, rows),)](
        logits, weights, ids, num_rows, logits.stride(0), num_experts,
        TOP_K=top_k, BLOCK_K=triton.next_power_of_2(top_k), BLOCK_E=block_e, ROWS=rows, RENORMALIZE=renormalize,
        num_warps=4 if block_e * rows > 256 else 1, **dependent_launch(logits.device),
    )  # fmt: skip
    return weights, ids
