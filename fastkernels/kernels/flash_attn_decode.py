"""Attention of the newest token, or the few newest, of each sequence over its paged context.

A sequence's pages are split among programs (flash decoding); the query heads that share a key
head, and the new tokens, are packed into the rows of one tile. A second kernel merges the splits.
Nothing here reads a tensor on the host, so a call can be captured for a fixed max_seq_len.
"""
# mypy: allow-untyped-defs
# ruff: noqa: N803

import math
from typing import NamedTuple

import torch
from torch import Tensor

from fastkernels.errors import UnsupportedError
from fastkernels.kernels.backend import (
    check_dtypes,
    dependent_launch,
    let_dependents_start,
    num_sms,
    shared_memory_limit,
    tl,
    triton,
    wait_for_dependencies,
)

MAX_HEAD_SIZE = 256
MAX_GROUP = 64
MAX_SPLITS = 64
LOG2_E = 1.4426950408889634


@triton.jit(do_not_specialize=["table_stride", "num_kv_heads", "num_splits"])
def _split_kernel(
    q_ptr, k_ptr, v_ptr, out_ptr, partial_ptr, lse_ptr, query_start_ptr, seq_lens_ptr, table_ptr, scale_log2,
    q_stride_token, q_stride_head, k_stride_page, k_stride_slot, k_stride_head,
    v_stride_page, v_stride_slot, v_stride_head, table_stride, num_kv_heads, num_splits,
    GROUP: tl.constexpr, HEAD_SIZE: tl.constexpr, PAGE_SIZE: tl.constexpr, HAS_QUERY_START: tl.constexpr,
    IS_SPLIT: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, STAGES: tl.constexpr,
    PDL: tl.constexpr,
):  # fmt: skip
    let_dependents_start(PDL)
    wait_for_dependencies(PDL)
    pid = tl.program_id(0)
    kv_head = pid % num_kv_heads
    split = (pid // num_kv_heads) % num_splits
    seq = (pid // num_kv_heads // num_splits).to(tl.int64)
    seq_len = tl.load(seq_lens_ptr + seq)
    if HAS_QUERY_START:
        first_token = tl.load(query_start_ptr + seq).to(tl.int64)
        query_len = (tl.load(query_start_ptr + seq + 1) - first_token).to(tl.int32)
        if query_len > BLOCK_M // GROUP:
            return
    else:
        first_token = seq
        query_len = 1
    chunk = tl.cdiv(tl.cdiv(seq_len, BLOCK_N), num_splits) * BLOCK_N
    begin = split * chunk
    end = tl.minimum(begin + chunk, seq_len)
    if IS_SPLIT and begin >= end:
        return

    rows = tl.arange(0, BLOCK_M)
    dims = tl.arange(0, BLOCK_D)
    is_dim = dims[None, :] < HEAD_SIZE
    token = rows // GROUP
    head = kv_head * GROUP + rows % GROUP
    is_row = token < query_len
    last_key = seq_len - query_len + token
    q_offsets = (first_token + token)[:, None] * q_stride_token + head[:, None] * q_stride_head + dims[None, :]
    q = tl.load(q_ptr + q_offsets, mask=is_row[:, None] & is_dim, other=0.0)
    k_base = k_ptr + kv_head.to(tl.int64) * k_stride_head
    v_base = v_ptr + kv_head.to(tl.int64) * v_stride_head

    top = tl.full([BLOCK_M], float("-inf"), dtype=tl.float32)
    total = tl.zeros([BLOCK_M], dtype=tl.float32)
    acc = tl.zeros([BLOCK_M, BLOCK_D], dtype=tl.float32)
    for start in tl.range(begin, end, BLOCK_N, num_stages=STAGES):
        keys = start + tl.arange(0, BLOCK_N)
        is_key = keys < end
        page = tl.load(table_ptr + seq * table_stride + keys // PAGE_SIZE, mask=is_key, other=0).to(tl.int64)
        slot = keys % PAGE_SIZE
        mask = is_key[:, None] & is_dim
        k_offsets = (page * k_stride_page + slot * k_stride_slot)[:, None] + dims[None, :]
        k = tl.load(k_base + k_offsets, mask=mask, other=0.0)
        v_offsets = (page * v_stride_page + slot * v_stride_slot)[:, None] + dims[None, :]
        v = tl.load(v_base + v_offsets, mask=mask, other=0.0)
        scores = tl.dot(q, tl.trans(k), input_precision="ieee") * scale_log2
        scores = tl.where(is_key[None, :] & (keys[None, :] <= last_key[:, None]), scores, float("-inf"))
        new_top = tl.maximum(top, tl.max(scores, axis=1))
        shift = tl.where(new_top == float("-inf"), 0.0, new_top)
        probs = tl.exp2(scores - shift[:, None])
        rescale = tl.exp2(top - shift)
        total = total * rescale + tl.sum(probs, axis=1)
        acc = tl.dot(probs.to(v.dtype), v, acc * rescale[:, None], input_precision="ieee")
        top = new_top

    acc = acc / tl.where(total == 0.0, 1.0, total)[:, None]
    mask = is_row[:, None] & is_dim
    if IS_SPLIT:
        part = ((seq * num_kv_heads + kv_head) * num_splits + split) * BLOCK_M + rows
        tl.store(partial_ptr + part[:, None] * HEAD_SIZE + dims[None, :], acc, mask=mask)
        tl.store(lse_ptr + part, top + tl.log2(tl.where(total == 0.0, 1.0, total)), mask=is_row)
    else:
        num_heads = num_kv_heads * GROUP
        out_offsets = ((first_token + token)[:, None] * num_heads + head[:, None]) * HEAD_SIZE + dims[None, :]
        tl.store(out_ptr + out_offsets, acc.to(out_ptr.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["num_kv_heads", "num_splits", "num_rows"])
def _merge_kernel(
    out_ptr, partial_ptr, lse_ptr, query_start_ptr, seq_lens_ptr, num_kv_heads, num_splits, num_rows,
    GROUP: tl.constexpr, HEAD_SIZE: tl.constexpr, HAS_QUERY_START: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_S: tl.constexpr,
    PDL: tl.constexpr,
):  # fmt: skip
    let_dependents_start(PDL)
    wait_for_dependencies(PDL)
    pid = tl.program_id(0)
    row = pid % num_rows
    kv_head = (pid // num_rows) % num_kv_heads
    seq = (pid // num_rows // num_kv_heads).to(tl.int64)
    token = row // GROUP
    first_token = seq
    if HAS_QUERY_START:
        first_token = tl.load(query_start_ptr + seq).to(tl.int64)
        query_len = (tl.load(query_start_ptr + seq + 1) - first_token).to(tl.int32)
        if (token >= query_len) | (query_len > BLOCK_M // GROUP):
            return
    num_tiles = tl.cdiv(tl.load(seq_lens_ptr + seq), BLOCK_N)
    tiles_each = tl.maximum(tl.cdiv(num_tiles, num_splits), 1)
    num_used = tl.cdiv(num_tiles, tiles_each)

    splits = tl.arange(0, BLOCK_S)
    dims = tl.arange(0, BLOCK_D)
    is_used = splits < num_used
    part = ((seq * num_kv_heads + kv_head) * num_splits + splits) * BLOCK_M + row
    lse = tl.load(lse_ptr + part, mask=is_used, other=float("-inf"))
    mask = is_used[:, None] & (dims[None, :] < HEAD_SIZE)
    partial = tl.load(partial_ptr + part[:, None] * HEAD_SIZE + dims[None, :], mask=mask, other=0.0)
    top = tl.max(lse, axis=0)
    weight = tl.exp2(lse - tl.where(top == float("-inf"), 0.0, top))
    total = tl.sum(weight, axis=0)
    merged = tl.sum(partial * weight[:, None], axis=0) / tl.where(total == 0.0, 1.0, total)
    head = kv_head * GROUP + row % GROUP
    out_offsets = ((first_token + token) * num_kv_heads * GROUP + head) * HEAD_SIZE + dims
    tl.store(out_ptr + out_offsets, merged.to(out_ptr.dtype.element_ty), mask=dims < HEAD_SIZE)


class DecodeTile(NamedTuple):
    """Keys a step, splits of a sequence, and how the split kernel is compiled."""

    block_n: int
    num_splits: int
    num_warps: int
    num_stages: int


def decode_tile(query: Tensor, block_d: int, num_programs: int, max_seq_len: int) -> DecodeTile:
    """Below 1.5 programs a multiprocessor, splits for 4 of them on each; chosen on an H200 at head size 128.

    num_programs: programs without splitting, that is sequences times key heads. With one or two on a
    multiprocessor, deeper prefetch keeps its memory busy; above 4, a second split may even out the last wave.
    """
    row_bytes = 2 * block_d * query.element_size()
    block_n = max(16, min(64, 2**15 // row_bytes))
    sms = num_sms(query.device)
    num_splits = 1
    if 2 * num_programs < 3 * sms:
        num_splits = max(1, min(MAX_SPLITS, 4 * sms // max(num_programs, 1), triton.cdiv(max_seq_len, block_n)))
    elif 4 * sms < num_programs and max_seq_len >= 1024:
        waves = num_programs / (4 * sms)
        filled = [n * waves / math.ceil(n * waves) for n in (1, 2)]
        num_splits = 2 if filled[1] > 1.15 * filled[0] else 1
    num_stages = 5 if num_splits == 1 and num_programs <= 2 * sms else 2
    room = shared_memory_limit(query.device) - 4096
    return DecodeTile(block_n, num_splits, 4, max(2, min(num_stages, room // (block_n * row_bytes))))


def check_attention(kernel: str, query: Tensor, key: Tensor, value: Tensor, scale: float) -> int:
    """The query heads that share a key head.

    Errors: UnsupportedError for dtypes, head sizes, head counts or scales that the kernels lack.
    """
    if not scale > 0:
        raise UnsupportedError(f"{kernel} needs a scale over 0, got {scale}.")
    check_dtypes(kernel, query=query, key=key, value=value)
    num_heads, head_size, num_kv_heads = query.shape[-2], query.shape[-1], key.shape[-2]
    if not query.dtype == key.dtype == value.dtype:
        raise UnsupportedError(
            f"{kernel} needs one dtype, got query {query.dtype}, key {key.dtype}, value {value.dtype}."
        )
    if head_size > MAX_HEAD_SIZE or key.shape[-1] != head_size or value.shape[-1] != head_size:
        raise UnsupportedError(
            f"{kernel} needs one head size of at most {MAX_HEAD_SIZE}, got query {head_size}, key {key.shape[-1]}, "
            f"value {value.shape[-1]}."
        )
    if num_heads % num_kv_heads or num_heads // num_kv_heads > MAX_GROUP:
        raise UnsupportedError(
            f"{kernel} needs query heads in groups of at most {MAX_GROUP} a key head, got {num_heads} query heads "
            f"over {num_kv_heads} key heads."
        )
    return num_heads // num_kv_heads


def rows_per_tile(group: int) -> int:
    """Rows of the decode tile: as many tokens as fit beside the group, at the least the 16 rows of an MMA."""
    return max(16, triton.next_power_of_2(group))


def dense_heads(x: Tensor) -> Tensor:
    """The tensor with a dense last axis, copied only when it has none."""
    return x if x.stride(-1) == 1 or x.shape[-1] == 1 else x.contiguous()


def launch_decode(
    query: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    query_start_loc: Tensor | None,
    seq_lens: Tensor,
    block_table: Tensor,
    max_query_len: int,
    max_seq_len: int,
    scale: float,
    out: Tensor,
) -> None:
    """Fill the rows of `out` of every sequence with at most rows_per_tile(group) // group new tokens."""
    group = check_attention("flash_attn_decode", query, key_cache, value_cache, scale)
    _, num_heads, head_size = query.shape
    num_kv_heads, num_seqs = num_heads // group, seq_lens.shape[0]
    if query.shape[0] == 0 or num_seqs == 0:
        return
    query = dense_heads(query)
    block_m, block_d = rows_per_tile(group), max(16, triton.next_power_of_2(head_size))
    tile = decode_tile(query, block_d, num_seqs * num_kv_heads, max_seq_len)
    is_split = tile.num_splits > 1
    num_parts = num_seqs * num_kv_heads * tile.num_splits * block_m if is_split else 1
    partial = torch.empty((num_parts, head_size), dtype=torch.float32, device=query.device)
    lse = torch.empty(num_parts, dtype=torch.float32, device=query.device)
    launch = dependent_launch(query.device)
    starts = seq_lens if query_start_loc is None else query_start_loc
    fixed = {
        "GROUP": group,
        "HEAD_SIZE": head_size,
        "HAS_QUERY_START": query_start_loc is not None,
    }
    _split_kernel[(num_seqs * num_kv_heads * tile.num_splits,)](
        query, key_cache, value_cache, out, partial, lse, starts, seq_lens, block_table, scale * LOG2_E,
        query.stride(0), query.stride(1), *key_cache.stride()[:3], *value_cache.stride()[:3], block_table.stride(0),
        num_kv_heads, tile.num_splits, **fixed, PAGE_SIZE=key_cache.shape[1], IS_SPLIT=is_split,
        BLOCK_M=block_m, BLOCK_N=tile.block_n, BLOCK_D=block_d, STAGES=tile.num_stages, num_warps=tile.num_warps,
        **launch,
    )  # fmt: skip
    if is_split:
        num_rows = group * min(block_m // group, max_query_len)
        _merge_kernel[(num_seqs * num_kv_heads * num_rows,)](
            out, partial, lse, starts, seq_lens, num_kv_heads, tile.num_splits, num_rows, **fixed,
            BLOCK_M=block_m, BLOCK_N=tile.block_n, BLOCK_D=block_d,
            BLOCK_S=triton.next_power_of_2(tile.num_splits), num_warps=4, **launch,
        )  # fmt: skip


def flash_attn_decode(
    query: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    seq_lens: Tensor,
    block_table: Tensor,
    max_seq_len: int,
    scale: float,
) -> Tensor:
    """softmax(query @ keys * scale) @ values over the first seq_len keys of each sequence.

    Shapes:  query and the result: [num_seqs, num_heads, head_size]; key_cache, value_cache: [num_pages,
             page_size, num_kv_heads, head_size]; seq_lens: [num_seqs], counting the new token;
             block_table: [num_seqs, max_pages], read only up to a sequence's last page.
    Dtypes:  bf16, fp16 or fp32; the softmax and both sums are taken in fp32. A sequence of length 0 gives 0.
    Errors:  UnsupportedError for dtypes, head sizes or head counts that the kernel lacks.
    """
    out = torch.empty(query.shape, dtype=query.dtype, device=query.device)
    launch_decode(query, key_cache, value_cache, None, seq_lens, block_table, 1, max_seq_len, scale, out)
    return out
