"""Attention over packed sequences that have nothing cached, and the tile loop it shares with the paged form.

The query heads that share a key head are packed into the rows of a tile, so that keys and values
are read once for all of them. Tiles with the most keys are launched first.
"""
# mypy: allow-untyped-defs
# ruff: noqa: N803

from typing import NamedTuple

import torch
from torch import Tensor

from fastkernels.kernels import flash_attn_hopper
from fastkernels.kernels.backend import PLAN_POINTERS, shared_memory_limit, tl, triton
from fastkernels.kernels.flash_attn_decode import LOG2_E, check_attention, dense_heads


@triton.jit
def _attend(
    acc, total, top, q, k_base, v_base, table_row, begin, end, seq_len, last_key, is_dim, scale_log2,
    k_stride_page, k_stride_slot, v_stride_page, v_stride_slot, dims, first_key,
    PAGE_SIZE: tl.constexpr, IS_MASKED: tl.constexpr, BLOCK_N: tl.constexpr, STAGES: tl.constexpr,
    WINDOW: tl.constexpr,
):  # fmt: skip
    """One pass of the online softmax over keys [begin, end); PAGE_SIZE 0 stands for packed rows.

    With a WINDOW no row sees a key before first_key, nor one that lies WINDOW or more before its last.
    """
    for start in tl.range(begin, end, BLOCK_N, num_stages=STAGES):
        keys = start + tl.arange(0, BLOCK_N)
        is_key = keys < seq_len
        if WINDOW > 0:
            is_key = is_key & (keys >= first_key)
        mask = is_key[:, None] & is_dim if IS_MASKED else is_dim
        if PAGE_SIZE > 0:
            page = tl.load(table_row + keys // PAGE_SIZE, mask=is_key, other=0).to(tl.int64)
            k_rows = page * k_stride_page + (keys % PAGE_SIZE) * k_stride_slot
            v_rows = page * v_stride_page + (keys % PAGE_SIZE) * v_stride_slot
        else:
            k_rows = keys.to(tl.int64) * k_stride_slot
            v_rows = keys.to(tl.int64) * v_stride_slot
        k = tl.load(k_base + k_rows[:, None] + dims, mask=mask, other=0.0)
        scores = tl.dot(q, tl.trans(k), input_precision="ieee")
        if IS_MASKED:
            scores = tl.where(keys[None, :] <= last_key[:, None], scores, float("-inf"))
        if WINDOW > 0:
            scores = tl.where(keys[None, :] > last_key[:, None] - WINDOW, scores, float("-inf"))
        new_top = tl.maximum(top, tl.max(scores, axis=1) * scale_log2)
        if WINDOW > 0:  # a row that has seen no key yet has no top
            new_top = tl.maximum(new_top, -1e30)
        probs = tl.exp2(scores * scale_log2 - new_top[:, None])
        rescale = tl.exp2(top - new_top)
        total = total * rescale + tl.sum(probs, axis=1)
        v = tl.load(v_base + v_rows[:, None] + dims, mask=mask, other=0.0)
        acc = tl.dot(probs.to(v.dtype), v, acc * rescale[:, None], input_precision="ieee")
        top = new_top
    return acc, total, top


@triton.jit
def _head_offset(head, stride, IS_EIGHTH: tl.constexpr):
    """head * stride. Triton knows strides to be multiples of 16 or of nothing; copies of 8 values need to be told."""
    offset = head * stride
    if IS_EIGHTH:
        offset = tl.multiple_of(offset, 8)
    return offset


@triton.jit(
    do_not_specialize=["table_stride", "num_kv_heads", "num_seqs", "num_tiles", "min_query_len"],
    do_not_specialize_on_alignment=PLAN_POINTERS,
)
def _flash_attn_kernel(
    q_ptr, k_ptr, v_ptr, out_ptr, query_start_ptr, seq_lens_ptr, table_ptr, sinks_ptr, scale_log2,
    q_stride_token, q_stride_head, k_stride_page, k_stride_slot, k_stride_head,
    v_stride_page, v_stride_slot, v_stride_head, table_stride, num_kv_heads, num_seqs, num_tiles, min_query_len,
    GROUP: tl.constexpr, HEAD_SIZE: tl.constexpr, PAGE_SIZE: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, STAGES: tl.constexpr,
    IS_CAUSAL: tl.constexpr, WINDOW: tl.constexpr, HAS_SINKS: tl.constexpr, IS_EIGHTH: tl.constexpr,
):  # fmt: skip
    TOKENS: tl.constexpr = BLOCK_M // GROUP
    pid = tl.program_id(0)
    kv_head = pid % num_kv_heads
    seq = (pid // num_kv_heads % num_seqs).to(tl.int64)
    tile = num_tiles - 1 - pid // num_kv_heads // num_seqs
    first_token = tl.load(query_start_ptr + seq).to(tl.int64)
    query_len = (tl.load(query_start_ptr + seq + 1) - first_token).to(tl.int32)
    if (tile * TOKENS >= query_len) | (query_len < min_query_len):
        return
    seq_len = query_len
    k_base = k_ptr + _head_offset(kv_head.to(tl.int64), k_stride_head, IS_EIGHTH)
    v_base = v_ptr + _head_offset(kv_head.to(tl.int64), v_stride_head, IS_EIGHTH)
    table_row = table_ptr
    if PAGE_SIZE > 0:
        seq_len = tl.load(seq_lens_ptr + seq)
        table_row = table_ptr + seq * table_stride
    else:
        k_base += first_token * k_stride_slot
        v_base += first_token * v_stride_slot

    rows = tl.arange(0, BLOCK_M)
    dims = tl.arange(0, BLOCK_D)[None, :]
    is_dim = dims < HEAD_SIZE
    token = tile * TOKENS + rows // GROUP
    head = kv_head * GROUP + rows % GROUP
    is_row = ((rows // GROUP < TOKENS) & (token < query_len))[:, None]
    context_len = seq_len - query_len
    if IS_CAUSAL:
        last_key = context_len + token
        unmasked_end = (context_len + tile * TOKENS + 1) // BLOCK_N * BLOCK_N
        end = tl.minimum(context_len + (tile + 1) * TOKENS, seq_len)
    else:
        last_key = token * 0 + seq_len - 1
        unmasked_end = seq_len // BLOCK_N * BLOCK_N
        end = seq_len
    q_heads = _head_offset(head, q_stride_head, IS_EIGHTH)
    q_offsets = (first_token + token)[:, None] * q_stride_token + q_heads[:, None] + dims
    q = tl.load(q_ptr + q_offsets, mask=is_row & is_dim, other=0.0)

    top = tl.full([BLOCK_M], float("-inf"), dtype=tl.float32)
    total = tl.zeros([BLOCK_M], dtype=tl.float32)
    acc = tl.zeros([BLOCK_M, BLOCK_D], dtype=tl.float32)
    if HAS_SINKS:
        sink = tl.load(sinks_ptr + head, mask=rows // GROUP < TOKENS, other=0.0).to(tl.float32)
        top = sink * 1.4426950408889634
        total = total + 1.0
    first_key = 0
    if WINDOW > 0:
        first_key = tl.maximum(context_len + tile * TOKENS - WINDOW + 1, 0)
        unmasked_end = first_key // BLOCK_N * BLOCK_N
    else:
        acc, total, top = _attend(
            acc, total, top, q, k_base, v_base, table_row, 0, unmasked_end, seq_len, last_key, is_dim, scale_log2,
            k_stride_page, k_stride_slot, v_stride_page, v_stride_slot, dims, first_key,
            PAGE_SIZE, False, BLOCK_N, STAGES, WINDOW,
        )  # fmt: skip
    acc, total, top = _attend(
        acc, total, top, q, k_base, v_base, table_row, unmasked_end, end, seq_len, last_key, is_dim, scale_log2,
        k_stride_page, k_stride_slot, v_stride_page, v_stride_slot, dims, first_key,
        PAGE_SIZE, True, BLOCK_N, STAGES, WINDOW,
    )  # fmt: skip

    num_heads = num_kv_heads * GROUP
    out_offsets = ((first_token + token)[:, None] * num_heads + head[:, None]) * HEAD_SIZE + dims
    if WINDOW > 0:  # rows of the tile behind the sequence's end may see no key
        total = tl.where(total > 0, total, 1.0)
    out = acc / total[:, None]
    tl.store(out_ptr + out_offsets, out.to(out_ptr.dtype.element_ty), mask=is_row & is_dim)


class PrefillTile(NamedTuple):
    """Rows (tokens times grouped heads) and keys of a tile, and how the kernel is compiled."""

    block_m: int
    block_n: int
    num_warps: int
    num_stages: int


def prefill_tile(query: Tensor, block_d: int, group: int, max_query_len: int, is_paged: bool) -> PrefillTile:
    """Large tiles for long prompts, small ones where few tiles would each wait alone; chosen on an H200."""
    if query.dtype == torch.float32:
        return PrefillTile(max(32, triton.next_power_of_2(group)), 32, 4, 1)
    if block_d <= 128 and max_query_len > (2048 if is_paged else 512):
        tile = PrefillTile(128, 128, 8, 3)
    else:
        # Heads of 256 take the registers of 8 warps: 4 would spill up to 500 bytes a thread.
        tile = PrefillTile(64, 64, 8 if block_d > 128 else 4, 2)
        if not is_paged and block_d <= 128:
            tile = PrefillTile(64, 32, 4, 3)
    row_bytes = 2 * block_d * query.element_size()
    room = shared_memory_limit(query.device) - 2048 - tile.block_m * row_bytes // 2
    return tile._replace(num_stages=max(1, min(tile.num_stages, room // (tile.block_n * row_bytes))))


def launch_tiles(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    query_start_loc: Tensor,
    seq_lens: Tensor | None,
    block_table: Tensor | None,
    min_query_len: int,
    max_query_len: int,
    scale: float,
    out: Tensor,
    is_causal: bool = True,
    window: int | None = None,
    sinks: Tensor | None = None,
) -> None:
    """Fill the rows of `out` of every sequence with at least min_query_len new tokens.

    key, value: packed rows [num_tokens, heads, head_size], or pages when a block_table is given. is_causal: else every
    token sees all of its sequence. window: keys that a token sees at most; sinks: [num_heads], scores without a value.
    """
    group = check_attention("flash_attn", query, key, value, scale)
    num_seqs = query_start_loc.shape[0] - 1
    if query.shape[0] == 0 or num_seqs == 0:
        return
    num_kv_heads, head_size = key.shape[-2:]
    query = dense_heads(query)
    is_paged = block_table is not None
    is_plain = is_causal and window is None and sinks is None
    if is_plain and flash_attn_hopper.supports(query, key, value, is_paged):
        flash_attn_hopper.launch(
            query, key, value, query_start_loc, seq_lens, block_table, min_query_len, max_query_len, scale, out
        )
        return
    block_d = max(16, triton.next_power_of_2(head_size))
    tile = prefill_tile(query, block_d, group, max_query_len, is_paged)
    num_tiles = triton.cdiv(max_query_len, tile.block_m // group)
    k_strides, v_strides = (x.stride()[:3] if is_paged else (0, *x.stride()[:2]) for x in (key, value))
    _flash_attn_kernel[(num_tiles * num_seqs * num_kv_heads,)](
        query, key, value, out, query_start_loc, query_start_loc if seq_lens is None else seq_lens,
        query_start_loc if block_table is None else block_table,
        query_start_loc if sinks is None else sinks, scale * LOG2_E,
        query.stride(0), query.stride(1), *k_strides, *v_strides, 0 if block_table is None else block_table.stride(0),
        num_kv_heads, num_seqs, num_tiles, min_query_len,
        GROUP=group, HEAD_SIZE=head_size, PAGE_SIZE=key.shape[1] if is_paged else 0,
        BLOCK_M=tile.block_m, BLOCK_N=tile.block_n, BLOCK_D=block_d, STAGES=tile.num_stages,
        IS_CAUSAL=is_causal, WINDOW=window or 0, HAS_SINKS=sinks is not None, IS_EIGHTH=_is_eighth(query, key, value),
        num_warps=tile.num_warps,
    )  # fmt: skip


def _is_eighth(*tensors: Tensor) -> bool:
    """Whether the strides of heads are multiples of 8, and not all of 16: heads of 72."""
    strides = [x.stride(-2) for x in tensors]
    return all(stride % 8 == 0 for stride in strides) and any(stride % 16 for stride in strides)


def flash_attn_prefill(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    query_start_loc: Tensor,
    max_query_len: int,
    scale: float,
    is_causal: bool = True,
) -> Tensor:
    """softmax(query @ keys * scale) @ values within each sequence, each token over itself and those before it.

    is_causal: False lets each token see those after it too.

    Shapes:  query and the result: [num_tokens, num_heads, head_size]; key, value: [num_tokens, num_kv_heads,
             head_size], rows may be strided; query_start_loc: [num_seqs + 1]. Rows past its last entry
             are not written.
    Dtypes:  bf16, fp16 or fp32; the softmax and both sums are taken in fp32.
    Errors:  UnsupportedError for dtypes, head sizes or head counts that the kernel lacks.
    """
    out = torch.empty(query.shape, dtype=query.dtype, device=query.device)
    key, value = dense_heads(key), dense_heads(value)
    launch_tiles(query, key, value, query_start_loc, None, None, 1, max_query_len, scale, out, is_causal)
    return out
