"""Rotation of query and key heads by the place of their patch; tokens ahead of the patches are copied."""
# mypy: allow-untyped-defs
# ruff: noqa: N803

import torch
from torch import Tensor

from fastkernels.kernels.backend import check_dtypes, tl, triton


@triton.jit
def _dinov3_rope_kernel(
    q_ptr, k_ptr, q_out_ptr, k_out_ptr, cos_ptr, sin_ptr,
    num_tokens, num_prefix, num_heads,
    q_stride_batch, q_stride_token, q_stride_head, k_stride_batch, k_stride_token, k_stride_head,
    HALF: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    batch, token = row // num_tokens, row % num_tokens
    heads = tl.program_id(1) * BLOCK_H + tl.arange(0, BLOCK_H)
    dims = tl.arange(0, BLOCK_D)
    is_dim = dims < HALF
    mask = (heads < num_heads)[:, None] & is_dim[None, :]
    is_patch = token >= num_prefix
    place = (token - num_prefix) * HALF + dims
    cos = tl.load(cos_ptr + place, mask=is_dim & is_patch, other=1.0)[None, :]
    sin = tl.load(sin_ptr + place, mask=is_dim & is_patch, other=0.0)[None, :]
    out = (row * num_heads + heads[:, None]) * (2 * HALF) + dims[None, :]
    q_at = q_ptr + batch * q_stride_batch + token * q_stride_token + heads[:, None] * q_stride_head + dims[None, :]
    q1 = tl.load(q_at, mask=mask, other=0.0).to(tl.float32)
    q2 = tl.load(q_at + HALF, mask=mask, other=0.0).to(tl.float32)
    tl.store(q_out_ptr + out, (q1 * cos - q2 * sin).to(q_out_ptr.dtype.element_ty), mask=mask)
    tl.store(q_out_ptr + out + HALF, (q2 * cos + q1 * sin).to(q_out_ptr.dtype.element_ty), mask=mask)
    k_at = k_ptr + batch * k_stride_batch + token * k_stride_token + heads[:, None] * k_stride_head + dims[None, :]
    k1 = tl.load(k_at, mask=mask, other=0.0).to(tl.float32)
    k2 = tl.load(k_at + HALF, mask=mask, other=0.0).to(tl.float32)
    tl.store(k_out_ptr + out, (k1 * cos - k2 * sin).to(k_out_ptr.dtype.element_ty), mask=mask)
    tl.store(k_out_ptr + out + HALF, (k2 * cos + k1 * sin).to(k_out_ptr.dtype.element_ty), mask=mask)


def dinov3_rope(query: Tensor, key: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """(query, key) with the pairs (i, i + half) of the last tokens' heads rotated, the first tokens as they were.

    Shapes:  query, key and both results: [batch, num_tokens, num_heads, 2 * half], the last axis dense; cos, sin:
             [num_patches, half] float32, num_patches at most num_tokens.
    Errors:  UnsupportedError for a dtype other than bf16, fp16, fp32.
    """
    check_dtypes("dinov3_rope", query=query, key=key)
    batch, num_tokens, num_heads, head_size = query.shape
    query_out, key_out = (torch.empty(query.shape, dtype=query.dtype, device=query.device) for _ in range(2))
    if query.numel() == 0:
        return query_out, key_out
    query, key = (t if t.stride(-1) == 1 else t.contiguous() for t in (query, key))
    half = head_size // 2
    block_d = triton.next_power_of_2(half)
    block_h = min(triton.next_power_of_2(num_heads), max(1, 2048 // block_d))
    _dinov3_rope_kernel[(batch * num_tokens, triton.cdiv(num_heads, block_h))](
        query, key, query_out, key_out, cos.contiguous(), sin.contiguous(),
        num_tokens, num_tokens - cos.shape[0], num_heads, *query.stride()[:3], *key.stride()[:3],
        HALF=half, BLOCK_H=block_h, BLOCK_D=block_d, num_warps=4,
    )  # fmt: skip
    return query_out, key_out
