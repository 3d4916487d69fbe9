"""Rotary position embedding of query and key, in one launch."""
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
def _load_pairs(
    x_ptr, first_head, num_heads, stride_head,
    ROTARY_DIM: tl.constexpr, IS_NEOX: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_HALF: tl.constexpr,
):  # fmt: skip
    """Both members of each pair, float32 [BLOCK_H, BLOCK_HALF]."""
    HALF: tl.constexpr = ROTARY_DIM // 2
    heads = first_head + tl.arange(0, BLOCK_H)[:, None]
    row = x_ptr + heads * stride_head
    if IS_NEOX:
        half = tl.arange(0, BLOCK_HALF)[None, :]
        mask = (heads < num_heads) & (half < HALF)
        first = tl.load(row + half, mask=mask, other=0.0)
        second = tl.load(row + HALF + half, mask=mask, other=0.0)
    else:
        cols = tl.arange(0, 2 * BLOCK_HALF)[None, :]
        mask = (heads < num_heads) & (cols < ROTARY_DIM)
        pairs = tl.load(row + cols, mask=mask, other=0.0)
        first, second = tl.split(tl.reshape(pairs, [BLOCK_H, BLOCK_HALF, 2]))
    return first.to(tl.float32), second.to(tl.float32)


@triton.jit
def _store_turned(
    y_ptr, first, second, cos, sin, first_head, num_heads,
    HEAD_SIZE: tl.constexpr, ROTARY_DIM: tl.constexpr, IS_NEOX: tl.constexpr,
    BLOCK_H: tl.constexpr, BLOCK_HALF: tl.constexpr,
):  # fmt: skip
    HALF: tl.constexpr = ROTARY_DIM // 2
    heads = first_head + tl.arange(0, BLOCK_H)[:, None]
    row = y_ptr + heads * HEAD_SIZE
    turned_first = (first * cos - second * sin).to(y_ptr.dtype.element_ty)
    turned_second = (second * cos + first * sin).to(y_ptr.dtype.element_ty)
    if IS_NEOX:
        half = tl.arange(0, BLOCK_HALF)[None, :]
        mask = (heads < num_heads) & (half < HALF)
        tl.store(row + half, turned_first, mask=mask)
        tl.store(row + HALF + half, turned_second, mask=mask)
    else:
        cols = tl.arange(0, 2 * BLOCK_HALF)[None, :]
        mask = (heads < num_heads) & (cols < ROTARY_DIM)
        pairs = tl.reshape(tl.join(turned_first, turned_second), [BLOCK_H, 2 * BLOCK_HALF])
        tl.store(row + cols, pairs, mask=mask)


@triton.jit
def _copy_rest(
    x_ptr, y_ptr, first_head, num_heads, stride_head,
    HEAD_SIZE: tl.constexpr, ROTARY_DIM: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_REST: tl.constexpr,
):  # fmt: skip
    heads = first_head + tl.arange(0, BLOCK_H)[:, None]
    rest = ROTARY_DIM + tl.arange(0, BLOCK_REST)[None, :]
    mask = (heads < num_heads) & (rest < HEAD_SIZE)
    tl.store(y_ptr + heads * HEAD_SIZE + rest, tl.load(x_ptr + heads * stride_head + rest, mask=mask), mask=mask)


@triton.jit
def _load_angles(
    position_ptr, cos_sin_ptr, token, axis_stride, cos_sin_stride,
    HALF: tl.constexpr, TABLE_HALF: tl.constexpr, AXES: tl.constexpr, SECOND: tl.constexpr, THIRD: tl.constexpr,
    IS_INTERLEAVED: tl.constexpr, BLOCK_HALF: tl.constexpr,
):  # fmt: skip
    """Cosine and sine of each pair's angle, float32 [1, BLOCK_HALF].

    With several axes a pair turns by the position on its own: pairs from SECOND on by the second, from THIRD on by the
    third; interleaved, every third pair up to 3 * SECOND and 3 * THIRD. A table narrower than the pairs starts anew
    with each axis.
    """
    half = tl.arange(0, BLOCK_HALF)[None, :]
    column = half % TABLE_HALF
    if AXES == 1:
        row = cos_sin_ptr + tl.load(position_ptr + token).to(tl.int64) * cos_sin_stride
    else:
        if IS_INTERLEAVED:
            axis = tl.where((half % 3 == 1) & (half < 3 * SECOND), 1, 0)
            axis = tl.where((half % 3 == 2) & (half < 3 * THIRD), 2, axis)
        else:
            axis = (half >= SECOND).to(tl.int32) + (half >= THIRD).to(tl.int32)
        position = tl.load(position_ptr + axis * axis_stride + token, mask=half < HALF, other=0)
        row = cos_sin_ptr + position.to(tl.int64) * cos_sin_stride
    cos = tl.load(row + column, mask=half < HALF, other=0.0).to(tl.float32)
    sin = tl.load(row + TABLE_HALF + column, mask=half < HALF, other=0.0).to(tl.float32)
    return cos, sin


@triton.jit(do_not_specialize=["num_q_heads", "num_k_heads", "num_blocks", "axis_stride"])
def _rotary_embedding_kernel(
    position_ptr, q_ptr, k_ptr, cos_sin_ptr, q_out_ptr, k_out_ptr,
    q_stride_token, q_stride_head, k_stride_token, k_stride_head, cos_sin_stride, axis_stride,
    num_q_heads, num_k_heads, num_blocks,
    AXES: tl.constexpr, SECOND: tl.constexpr, THIRD: tl.constexpr, IS_INTERLEAVED: tl.constexpr,
    TABLE_HALF: tl.constexpr, HEAD_SIZE: tl.constexpr, ROTARY_DIM: tl.constexpr, IS_NEOX: tl.constexpr,
    HAS_KEY: tl.constexpr,
    BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_HALF: tl.constexpr, BLOCK_REST: tl.constexpr,
    PDL: tl.constexpr,
):  # fmt: skip
    let_dependents_start(PDL)
    wait_for_dependencies(PDL)
    HALF: tl.constexpr = ROTARY_DIM // 2
    pid = tl.program_id(0)
    token = (pid // num_blocks).to(tl.int64)
    q_head = pid % num_blocks * BLOCK_Q
    k_head = pid % num_blocks * BLOCK_K
    q_ptr += token * q_stride_token
    q_out_ptr += token * num_q_heads * HEAD_SIZE
    # Heads are asked for before the position: the angles wait for it, and loads are issued in order.
    q_first, q_second = _load_pairs(
        q_ptr, q_head, num_q_heads, q_stride_head, ROTARY_DIM, IS_NEOX, BLOCK_Q, BLOCK_HALF
    )  # fmt: skip
    if HAS_KEY:
        k_ptr += token * k_stride_token
        k_out_ptr += token * num_k_heads * HEAD_SIZE
        k_first, k_second = _load_pairs(
            k_ptr, k_head, num_k_heads, k_stride_head, ROTARY_DIM, IS_NEOX, BLOCK_K, BLOCK_HALF
        )  # fmt: skip
    cos, sin = _load_angles(
        position_ptr, cos_sin_ptr, token, axis_stride, cos_sin_stride,
        HALF, TABLE_HALF, AXES, SECOND, THIRD, IS_INTERLEAVED, BLOCK_HALF,
    )  # fmt: skip
    _store_turned(
        q_out_ptr, q_first, q_second, cos, sin, q_head, num_q_heads, HEAD_SIZE, ROTARY_DIM, IS_NEOX, BLOCK_Q, BLOCK_HALF
    )
    if BLOCK_REST > 0:
        _copy_rest(
            q_ptr, q_out_ptr, q_head, num_q_heads, q_stride_head, HEAD_SIZE, ROTARY_DIM, BLOCK_Q, BLOCK_REST
        )  # fmt: skip
    if HAS_KEY:
        _store_turned(
            k_out_ptr, k_first, k_second, cos, sin, k_head, num_k_heads,
            HEAD_SIZE, ROTARY_DIM, IS_NEOX, BLOCK_K, BLOCK_HALF,
        )  # fmt: skip
        if BLOCK_REST > 0:
            _copy_rest(
                k_ptr, k_out_ptr, k_head, num_k_heads, k_stride_head, HEAD_SIZE, ROTARY_DIM, BLOCK_K, BLOCK_REST
            )  # fmt: skip


def blocks_and_warps(num_tokens: int, num_q_heads: int, head_size: int) -> tuple[int, int]:
    """Into how many programs a token's heads are split, and the warps of each; few tokens: more programs."""
    elements = triton.next_power_of_2(num_q_heads) * triton.next_power_of_2(head_size)
    num_blocks = max(1, elements // (4096 if num_tokens >= 1024 else 512))
    return num_blocks, max(1, min(4, elements // num_blocks // 128))


def rotary_embedding(
    positions: Tensor,
    query: Tensor,
    key: Tensor | None,
    cos_sin_cache: Tensor,
    head_size: int,
    rotary_dim: int,
    is_neox_style: bool,
    sections: tuple[int, ...] = (),
    is_interleaved: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """Rotate the first rotary_dim values of each head by its token's position; the rest is copied.

    sections: pairs that turn by each axis of positions; is_interleaved: the axes take turns instead, the first has
        what is left.

    Shapes:  positions: [num_tokens], with sections [len(sections), num_tokens]; query, key: [num_tokens,
             num_heads * head_size] or [num_tokens, num_heads, head_size], strided views allowed; cos_sin_cache:
             [max_position, rotary_dim], first half cos, second half sin; a narrower one serves each axis from its
             start.
    Returns: new contiguous tensors of the shapes of query and key.
    Errors:  UnsupportedError for an odd rotary_dim, one over head_size, or an unsupported dtype.
    """
    check_dtypes("rotary_embedding", query=query, key=key, cos_sin_cache=cos_sin_cache)
    if rotary_dim % 2 or not 0 < rotary_dim <= head_size:
        raise UnsupportedError(
            f"rotary_embedding turns pairs: rotary_dim must be even and 2 to head_size ({head_size}), got {rotary_dim}."
        )
    q_out = torch.empty(query.shape, dtype=query.dtype, device=query.device)
    k_out = None if key is None else torch.empty(key.shape, dtype=key.dtype, device=key.device)
    num_tokens = positions.shape[-1]
    if num_tokens == 0:
        return q_out, k_out
    q = _heads(query, num_tokens, head_size)
    k = q if key is None else _heads(key, num_tokens, head_size)
    num_blocks, warps = blocks_and_warps(num_tokens, q.shape[1], head_size)
    rest = head_size - rotary_dim
    positions = positions if positions.stride(-1) == 1 or num_tokens == 1 else positions.contiguous()
    second, third = _bounds(sections, is_interleaved)
    _rotary_embedding_kernel[(num_tokens * num_blocks,)](
        positions, q, k, cos_sin_cache, q_out, q_out if k_out is None else k_out,
        q.stride(0), q.stride(1), k.stride(0), k.stride(1), cos_sin_cache.stride(0),
        positions.stride(0) if sections else 0, q.shape[1], k.shape[1], num_blocks,
        AXES=max(1, len(sections)), SECOND=second, THIRD=third, IS_INTERLEAVED=is_interleaved,
        TABLE_HALF=cos_sin_cache.shape[1] // 2, HEAD_SIZE=head_size, ROTARY_DIM=rotary_dim, IS_NEOX=is_neox_style,
        HAS_KEY=key is not None,
        BLOCK_Q=triton.next_power_of_2(triton.cdiv(q.shape[1], num_blocks)),
        BLOCK_K=triton.next_power_of_2(triton.cdiv(k.shape[1], num_blocks)),
        BLOCK_HALF=triton.next_power_of_2(rotary_dim // 2),
        BLOCK_REST=triton.next_power_of_2(rest) if rest else 0,
        num_warps=warps,
        **dependent_launch(query.device),
    )  # fmt: skip
    return q_out, k_out


def _bounds(sections: tuple[int, ...], is_interleaved: bool) -> tuple[int, int]:
    """Where the second and the third axis begin; interleaved: how many pairs they have."""
    counts = (*sections, 0, 0, 0)[:3]
    return (counts[1], counts[2]) if is_interleaved else (counts[0], counts[0] + counts[1])


def _heads(x: Tensor, num_tokens: int, head_size: int) -> Tensor:
    """[num_tokens, num_heads, head_size] with a dense last axis; a view wherever strides allow."""
    heads = x.reshape(num_tokens, -1, head_size)
    return heads if heads.stride(2) == 1 or head_size == 1 else heads.contiguous()
