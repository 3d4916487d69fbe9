"""Rotation of query and key heads by the frame, the row and the column of their patch; the rest of a head is copied."""
# mypy: allow-untyped-defs
# ruff: noqa: N803

import torch
from torch import Tensor

from fastkernels.kernels.backend import check_dtypes, tl, triton


@triton.jit
def _cos_sin(dims, frame, row, column, inverse_ptr, NUM: tl.constexpr):
    """Of the angle of each number of a head: three stretches of 2 * NUM, one for each axis."""
    axis = dims // (2 * NUM)
    place = tl.where(axis == 0, frame, tl.where(axis == 1, row, column))
    inverse = tl.load(inverse_ptr + dims % NUM, mask=axis < 3, other=0.0)
    angle = place.to(tl.float32) * inverse
    return tl.cos(angle)[None, :], tl.sin(angle)[None, :]


@triton.jit
def _turned(x, cos_0, sin_0, cos_1, sin_1, BLOCK_H: tl.constexpr, BLOCK_D: tl.constexpr):
    first, second = tl.split(tl.reshape(x.to(tl.float32), [BLOCK_H, BLOCK_D // 2, 2]))
    both = tl.join(first * cos_0 - second * sin_0, second * cos_1 + first * sin_1)
    return tl.reshape(both, [BLOCK_H, BLOCK_D])


@triton.jit
def _vjepa2_rope_kernel(
    q_ptr, k_ptr, q_out_ptr, k_out_ptr, positions_ptr, inverse_ptr, num_tokens, num_heads, grid_size,
    q_stride_batch, q_stride_token, q_stride_head, k_stride_batch, k_stride_token, k_stride_head,
    position_stride_batch, position_stride_token,
    NUM: tl.constexpr, HEAD_SIZE: tl.constexpr, HAS_POSITIONS: tl.constexpr,
    BLOCK_H: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    number = tl.program_id(0)
    position = number % num_tokens
    batch, token = (number // num_tokens).to(tl.int64), position.to(tl.int64)
    if HAS_POSITIONS:
        at = positions_ptr + batch * position_stride_batch + token * position_stride_token
        position = tl.load(at).to(tl.int32)
    frame = position // (grid_size * grid_size)
    row, column = position // grid_size % grid_size, position % grid_size
    heads = tl.program_id(1) * BLOCK_H + tl.arange(0, BLOCK_H)[:, None]
    dims = tl.arange(0, BLOCK_D)[None, :]
    mask = (heads < num_heads) & (dims < HEAD_SIZE)
    # Heads are asked for before the angles are computed, which takes about as long.
    q_row = q_ptr + batch * q_stride_batch + token * q_stride_token
    k_row = k_ptr + batch * k_stride_batch + token * k_stride_token
    q = tl.load(q_row + heads * q_stride_head + dims, mask=mask, other=0.0)
    k = tl.load(k_row + heads * k_stride_head + dims, mask=mask, other=0.0)
    even = 2 * tl.arange(0, BLOCK_D // 2)
    cos_0, sin_0 = _cos_sin(even, frame, row, column, inverse_ptr, NUM)
    cos_1, sin_1 = _cos_sin(even + 1, frame, row, column, inverse_ptr, NUM)
    q_turned = _turned(q, cos_0, sin_0, cos_1, sin_1, BLOCK_H, BLOCK_D).to(q_out_ptr.dtype.element_ty)
    k_turned = _turned(k, cos_0, sin_0, cos_1, sin_1, BLOCK_H, BLOCK_D).to(k_out_ptr.dtype.element_ty)
    out = (number.to(tl.int64) * num_heads + heads) * HEAD_SIZE + dims
    is_turned = dims < 6 * NUM
    tl.store(q_out_ptr + out, tl.where(is_turned, q_turned, q), mask=mask)
    tl.store(k_out_ptr + out, tl.where(is_turned, k_turned, k), mask=mask)


def vjepa2_rope(
    query: Tensor, key: Tensor, positions: Tensor | None, inverse: Tensor, grid_size: int
) -> tuple[Tensor, Tensor]:
    """(query, key), each pair of numbers turned by the angles place * inverse, in float32.

    Shapes:  query, key and both results: [batch, num_tokens, num_heads, head_size], any strides; positions: [batch or
             1, num_tokens] int64, without it 0, 1, 2, ...; inverse: [head_size // 6] float32.
    Errors:  UnsupportedError for a dtype other than bf16, fp16, fp32.
    """
    check_dtypes("vjepa2_rope", query=query, key=key)
    batch, num_tokens, num_heads, head_size = query.shape
    query_out, key_out = (torch.empty(query.shape, dtype=query.dtype, device=query.device) for _ in range(2))
    if query.numel() == 0:
        return query_out, key_out
    query, key = (t if t.stride(-1) == 1 else t.contiguous() for t in (query, key))
    strides = (0, 0)
    if positions is not None:
        strides = (positions.stride(0) if len(positions) == batch else 0, positions.stride(1))
    # A thread computes the angles of its numbers once for all of its heads: few threads, each with many heads.
    block_d = max(2, triton.next_power_of_2(head_size))
    block_h = min(triton.next_power_of_2(num_heads), max(1, 2048 // block_d))
    _vjepa2_rope_kernel[(batch * num_tokens, triton.cdiv(num_heads, block_h))](
        query, key, query_out, key_out, positions, inverse, num_tokens, num_heads, grid_size,
        *query.stride()[:3], *key.stride()[:3], *strides,
        NUM=head_size // 6, HEAD_SIZE=head_size, HAS_POSITIONS=positions is not None,
        BLOCK_H=block_h, BLOCK_D=block_d, num_warps=max(1, block_h * block_d // 1024),
    )  # fmt: skip
    return query_out, key_out
