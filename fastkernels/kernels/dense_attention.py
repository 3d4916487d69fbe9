"""Attention of padded batches: to keys in one part or two, under a mask, several query heads to a head of keys.

The query heads that share a head of keys are packed into the rows of one tile, so that keys, values and the mask of a
query are read once for all of them. Where that leaves few programs the keys are split among more, and a second kernel
merges what they found. All sizes are known to the host: a call can be captured.
"""
# mypy: allow-untyped-defs
# ruff: noqa: N803

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
from fastkernels.kernels.flash_attn_decode import LOG2_E, MAX_GROUP, MAX_HEAD_SIZE, dense_heads

MAX_SPLITS = 16
LEAST_SPLIT_TILES = 2
"""Tiles of keys that a split has at the least: below, parts take longer to merge than they save."""
MERGED_ELEMENTS = 1024
"""Of the result, by one program of the merge."""
MAX_PAIRS = 2**31 - 1
"""A place in a batch's mask has 32 bits."""


@triton.jit
def _attend(
    acc, total, top, q, k_base, v_base, mask_base, mask_rows, is_masked, begin, end, num_keys, mask_first, scale_log2,
    k_stride_key, v_stride_key, dims, value_dims,
    HEAD_SIZE: tl.constexpr, VALUE_SIZE: tl.constexpr, BLOCK_N: tl.constexpr, STAGES: tl.constexpr,
    MASK: tl.constexpr, TOKENS: tl.constexpr, BLOCK_M: tl.constexpr,
):  # fmt: skip
    """One pass of the online softmax over keys [begin, end) of a part that has num_keys.

    mask_first: the place of the part's first key in a row of the mask; mask_rows: where those rows begin, one a query,
    in 32 bits, as wider places would spill; is_masked: whether there is such a query.
    """
    for start in tl.range(begin, end, BLOCK_N, num_stages=STAGES):
        keys = start + tl.arange(0, BLOCK_N)
        is_key = keys < num_keys
        k_rows = keys.to(tl.int64)[:, None] * k_stride_key
        k = tl.load(k_base + k_rows + dims[None, :], mask=is_key[:, None] & (dims < HEAD_SIZE)[None, :], other=0.0)
        scores = tl.dot(q, tl.trans(k), input_precision="ieee") * scale_log2
        if MASK == "none":
            is_seen = is_key[None, :]
        elif MASK == "keys":
            is_seen = (tl.load(mask_base + mask_first + keys, mask=is_key, other=0) != 0)[None, :]
        else:
            places = mask_rows[:, None] + (mask_first + keys)[None, :]
            seen = tl.load(mask_base + places, mask=is_masked[:, None] & is_key[None, :], other=0)
            seen = tl.broadcast_to(seen[:, None, :], [TOKENS, BLOCK_M // TOKENS, BLOCK_N])
            is_seen = tl.reshape(seen, [BLOCK_M, BLOCK_N]) != 0
        scores = tl.where(is_seen, scores, float("-inf"))
        new_top = tl.maximum(top, tl.max(scores, axis=1))
        shift = tl.where(new_top == float("-inf"), 0.0, new_top)  # of a row that has seen no key yet
        probs = tl.exp2(scores - shift[:, None])
        rescale = tl.exp2(top - shift)
        total = total * rescale + tl.sum(probs, axis=1)
        v_rows = keys.to(tl.int64)[:, None] * v_stride_key
        is_value = is_key[:, None] & (value_dims < VALUE_SIZE)[None, :]
        v = tl.load(v_base + v_rows + value_dims[None, :], mask=is_value, other=0.0)
        acc = tl.dot(probs.to(v.dtype), v, acc * rescale[:, None], input_precision="ieee")
        top = new_top
    return acc, total, top


@triton.jit(
    do_not_specialize=[
        "mask_stride_batch", "mask_stride_query", "num_queries", "num_past", "num_new", "num_kv_heads", "num_tiles",
        "num_splits", "split_keys", "num_rows",
    ],
    do_not_specialize_on_alignment=["mask_ptr"],
)  # fmt: skip
def _dense_attention_kernel(
    q_ptr, past_k_ptr, past_v_ptr, k_ptr, v_ptr, mask_ptr, out_ptr, partial_ptr, lse_ptr, scale_log2,
    q_stride_batch, q_stride_query, q_stride_head,
    past_k_stride_batch, past_k_stride_key, past_k_stride_head,
    past_v_stride_batch, past_v_stride_key, past_v_stride_head,
    k_stride_batch, k_stride_key, k_stride_head, v_stride_batch, v_stride_key, v_stride_head,
    mask_stride_batch, mask_stride_query,
    num_queries, num_past, num_new, num_kv_heads, num_tiles, num_splits, split_keys, num_rows,
    GROUP: tl.constexpr, GROUP_ROWS: tl.constexpr, HEAD_SIZE: tl.constexpr, VALUE_SIZE: tl.constexpr,
    MASK: tl.constexpr, HAS_PAST: tl.constexpr, IS_SPLIT: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr, BLOCK_V: tl.constexpr, STAGES: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Keys are counted as if each part ended with a whole tile; split s has split_keys of them from s * split_keys on.

    MASK: "none", "keys" (a row for each batch), "pairs" (a row for each query). num_rows: of out, a row a head.
    GROUP_ROWS: of a query in a tile, a power of two that holds its group.
    """
    let_dependents_start(PDL)
    wait_for_dependencies(PDL)
    TOKENS: tl.constexpr = BLOCK_M // GROUP_ROWS
    pid = tl.program_id(0)
    tile = pid % num_tiles
    split = pid // num_tiles % num_splits
    kv_head = (pid // num_tiles // num_splits % num_kv_heads).to(tl.int64)
    batch = (pid // num_tiles // num_splits // num_kv_heads).to(tl.int64)
    rows = tl.arange(0, BLOCK_M)
    dims = tl.arange(0, BLOCK_D)
    value_dims = tl.arange(0, BLOCK_V)
    query = tile * TOKENS + rows // GROUP_ROWS
    is_row = (rows % GROUP_ROWS < GROUP) & (query < num_queries)
    head = kv_head * GROUP + rows % GROUP_ROWS
    q_rows = query.to(tl.int64) * q_stride_query + head * q_stride_head
    q = tl.load(
        q_ptr + batch * q_stride_batch + q_rows[:, None] + dims[None, :],
        mask=is_row[:, None] & (dims < HEAD_SIZE)[None, :], other=0.0,
    )  # fmt: skip
    mask_base = mask_ptr + batch * mask_stride_batch
    masked = tile * TOKENS + tl.arange(0, TOKENS)
    is_masked = masked < num_queries
    mask_rows = masked * mask_stride_query

    top = tl.full([BLOCK_M], float("-inf"), dtype=tl.float32)
    total = tl.zeros([BLOCK_M], dtype=tl.float32)
    acc = tl.zeros([BLOCK_M, BLOCK_V], dtype=tl.float32)
    begin = split * split_keys
    end = begin + split_keys
    if HAS_PAST:
        acc, total, top = _attend(
            acc, total, top, q,
            past_k_ptr + batch * past_k_stride_batch + kv_head * past_k_stride_head,
            past_v_ptr + batch * past_v_stride_batch + kv_head * past_v_stride_head,
            mask_base, mask_rows, is_masked, begin, tl.minimum(end, num_past), num_past, 0, scale_log2,
            past_k_stride_key, past_v_stride_key, dims, value_dims, HEAD_SIZE, VALUE_SIZE, BLOCK_N, STAGES, MASK,
            TOKENS, BLOCK_M,
        )  # fmt: skip
        padded = tl.cdiv(num_past, BLOCK_N) * BLOCK_N
        begin = tl.maximum(begin, padded) - padded
        end -= padded
    acc, total, top = _attend(
        acc, total, top, q,
        k_ptr + batch * k_stride_batch + kv_head * k_stride_head,
        v_ptr + batch * v_stride_batch + kv_head * v_stride_head,
        mask_base, mask_rows, is_masked, begin, tl.minimum(end, num_new), num_new, num_past, scale_log2,
        k_stride_key, v_stride_key, dims, value_dims, HEAD_SIZE, VALUE_SIZE, BLOCK_N, STAGES, MASK, TOKENS, BLOCK_M,
    )  # fmt: skip

    out_rows = (batch * num_queries + query) * (num_kv_heads * GROUP) + head
    is_value = is_row[:, None] & (value_dims < VALUE_SIZE)[None, :]
    if IS_SPLIT:
        parts = split.to(tl.int64) * num_rows + out_rows
        total = tl.where(total > 0.0, total, 1.0)
        out = acc / total[:, None]
        tl.store(partial_ptr + parts[:, None] * VALUE_SIZE + value_dims[None, :], out, mask=is_value)
        tl.store(lse_ptr + parts, top + tl.log2(total), mask=is_row)
    else:
        out = acc / tl.where(total > 0.0, total, float("nan"))[:, None]
        places = out_ptr + out_rows[:, None] * VALUE_SIZE + value_dims[None, :]
        tl.store(places, out.to(out_ptr.dtype.element_ty), mask=is_value)


@triton.jit(do_not_specialize=["num_splits", "num_rows"])
def _merge_kernel(
    out_ptr, partial_ptr, lse_ptr, num_splits, num_rows,
    VALUE_SIZE: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_V: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Rows of the result: their parts weighted and summed, in the order of the splits. NaN where no part saw a key."""
    let_dependents_start(PDL)
    wait_for_dependencies(PDL)
    rows = tl.program_id(0).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
    dims = tl.arange(0, BLOCK_V)
    is_row = rows < num_rows
    is_value = is_row[:, None] & (dims < VALUE_SIZE)[None, :]
    top = tl.full([BLOCK_R], float("-inf"), dtype=tl.float32)
    total = tl.zeros([BLOCK_R], dtype=tl.float32)
    acc = tl.zeros([BLOCK_R, BLOCK_V], dtype=tl.float32)
    parts = rows
    for _ in tl.range(0, num_splits, num_stages=3):
        lse = tl.load(lse_ptr + parts, mask=is_row, other=float("-inf"))
        values = tl.load(partial_ptr + parts[:, None] * VALUE_SIZE + dims[None, :], mask=is_value, other=0.0)
        new_top = tl.maximum(top, lse)
        shift = tl.where(new_top == float("-inf"), 0.0, new_top)
        weight = tl.exp2(lse - shift)
        rescale = tl.exp2(top - shift)
        total = total * rescale + weight
        acc = acc * rescale[:, None] + values * weight[:, None]
        top = new_top
        parts += num_rows
    out = acc / tl.where(total > 0.0, total, float("nan"))[:, None]
    tl.store(out_ptr + rows[:, None] * VALUE_SIZE + dims[None, :], out.to(out_ptr.dtype.element_ty), mask=is_value)


class DenseTile(NamedTuple):
    """Rows (queries times grouped heads) and keys of a tile, and how the kernel is compiled."""

    block_m: int
    block_n: int
    num_warps: int
    num_stages: int


def dense_tile(query: Tensor, widest: int, group_rows: int, num_groups: int) -> DenseTile:
    """128 rows where that still makes a program for each multiprocessor, else 64, or 16 for as few; by estimate.

    widest: of the padded sizes of query's and value's heads; group_rows: of a query; num_groups: batches times heads of
    keys.
    """
    least, num_rows = max(16, group_rows), query.shape[1] * group_rows
    if query.dtype == torch.float32:
        return DenseTile(max(32, least), 32, 4, 1)
    block_m = 16 if num_rows <= 16 else 64
    if triton.cdiv(num_rows, 128) * num_groups >= num_sms(query.device):
        block_m = 128
    block_m = max(block_m, least)
    num_warps = 4 if block_m == 16 or (block_m == 64 and widest <= 128) else 8
    row_bytes = widest * query.element_size()
    room = shared_memory_limit(query.device) - 4096 - block_m * row_bytes
    return DenseTile(block_m, 64, num_warps, max(1, min(2 if widest > 128 else 3, room // (2 * 64 * row_bytes))))


def num_key_splits(num_programs: int, num_tiles: int, sms: int) -> int:
    """Splits of num_tiles tiles of keys for at most a program a multiprocessor; num_programs: without splitting."""
    return max(1, min(MAX_SPLITS, sms // num_programs, num_tiles // LEAST_SPLIT_TILES))


def supports(query: Tensor, key: Tensor, value: Tensor, num_keys: int) -> bool:
    """Whether heads and sizes are such as dense_attention takes; num_keys: of both parts."""
    group, widest = query.shape[2] // key.shape[2], max(query.shape[3], value.shape[3])
    return widest <= MAX_HEAD_SIZE and group <= MAX_GROUP and query.shape[1] * num_keys <= MAX_PAIRS


def _check(query: Tensor, key: Tensor, value: Tensor, past_key: Tensor | None, past_value: Tensor | None) -> None:
    tensors = {"query": query, "key": key, "value": value, "past_key": past_key, "past_value": past_value}
    check_dtypes("dense_attention", **tensors)
    if len({t.dtype for t in tensors.values() if t is not None}) > 1:
        raise UnsupportedError(f"dense_attention needs one dtype, got {query.dtype}, {key.dtype} and {value.dtype}.")
    num_keys = key.shape[1] + (0 if past_key is None else past_key.shape[1])
    if query.shape[2] % key.shape[2] or not supports(query, key, value, num_keys):
        raise UnsupportedError(
            f"dense_attention takes heads of at most {MAX_HEAD_SIZE}, at most {MAX_GROUP} of query to one of key, and "
            f"at most {MAX_PAIRS} pairs of query and key, got query {tuple(query.shape)}, key {tuple(key.shape)} and "
            f"value {tuple(value.shape)}, with {num_keys} keys."
        )


def _mask_of(mask: Tensor | None, query: Tensor) -> tuple[Tensor, str]:
    """(bytes with a dense last axis, what the kernel reads of them)."""
    if mask is None:
        return query, "none"
    mask = dense_heads(mask).view(torch.uint8)
    if mask.stride(1) == 0 or mask.shape[1] == 1:
        return mask, "keys"
    return mask if mask.shape[1] * mask.stride(1) <= MAX_PAIRS else mask.contiguous(), "pairs"


def dense_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scale: float,
    mask: Tensor | None = None,
    past_key: Tensor | None = None,
    past_value: Tensor | None = None,
) -> Tensor:
    """softmax(query @ [past_key, key] * scale, where the mask is True) @ [past_value, value].

    Shapes:  query: [batch, num_queries, num_heads, head_size]; key, past_key: [batch, num_new or num_past,
             num_kv_heads, head_size]; value, past_value: theirs with value_head_size; mask: [batch, num_queries,
             num_past + num_new]; the result: [batch, num_queries, num_heads, value_head_size]. Inputs may be strided;
             num_past may be 0.
    Dtypes:  bf16, fp16 or fp32; mask bool; the softmax and both sums are taken in fp32. A query that sees no key gets
             NaN.
    Errors:  UnsupportedError for dtypes, head sizes or head counts that the kernel lacks.
    """
    _check(query, key, value, past_key, past_value)
    num_batches, num_queries, num_heads, head_size = query.shape
    num_new, num_kv_heads, value_size = value.shape[1:]
    out = torch.empty((num_batches, num_queries, num_heads, value_size), dtype=query.dtype, device=query.device)
    if out.numel() == 0:
        return out
    num_past = 0 if past_key is None else past_key.shape[1]
    if past_key is None or past_value is None or num_past == 0:
        past_key, past_value = key, value
    query, key, value, past_key, past_value = (dense_heads(t) for t in (query, key, value, past_key, past_value))
    given, mask_kind = _mask_of(mask, query)
    group, num_groups = num_heads // num_kv_heads, num_batches * num_kv_heads
    group_rows = triton.next_power_of_2(group)
    block_d, block_v = (max(16, triton.next_power_of_2(size)) for size in (head_size, value_size))
    tile = dense_tile(query, max(block_d, block_v), group_rows, num_groups)
    num_tiles = triton.cdiv(num_queries, tile.block_m // group_rows)
    num_key_tiles = triton.cdiv(num_past, tile.block_n) + triton.cdiv(num_new, tile.block_n)
    num_splits = num_key_splits(num_groups * num_tiles, num_key_tiles, num_sms(query.device))
    split_tiles = triton.cdiv(max(1, num_key_tiles), num_splits)
    num_splits = max(1, triton.cdiv(num_key_tiles, split_tiles))  # whole tiles may fill fewer
    is_split, num_rows = num_splits > 1, num_batches * num_queries * num_heads
    parts = (num_splits, num_rows) if is_split else (1, 1)
    partial = torch.empty((*parts, value_size), dtype=torch.float32, device=query.device)
    lse = torch.empty(parts, dtype=torch.float32, device=query.device)
    launch = dependent_launch(query.device)
    _dense_attention_kernel[(num_groups * num_tiles * num_splits,)](
        query, past_key, past_value, key, value, given, out, partial, lse, scale * LOG2_E,
        *query.stride()[:3], *past_key.stride()[:3], *past_value.stride()[:3], *key.stride()[:3], *value.stride()[:3],
        *(given.stride()[:2] if mask is not None else (0, 0)),
        num_queries, num_past, num_new, num_kv_heads, num_tiles, num_splits, split_tiles * tile.block_n, num_rows,
        GROUP=group, GROUP_ROWS=group_rows, HEAD_SIZE=head_size, VALUE_SIZE=value_size, MASK=mask_kind,
        HAS_PAST=num_past > 0, IS_SPLIT=is_split, BLOCK_M=tile.block_m, BLOCK_N=tile.block_n, BLOCK_D=block_d,
        BLOCK_V=block_v, STAGES=tile.num_stages, num_warps=tile.num_warps, **launch,
    )  # fmt: skip
    if is_split:
        block_r = max(1, MERGED_ELEMENTS // block_v)
        _merge_kernel[(triton.cdiv(num_rows, block_r),)](
            out, partial, lse, num_splits, num_rows, VALUE_SIZE=value_size, BLOCK_R=block_r, BLOCK_V=block_v,
            num_warps=4, **launch,
        )  # fmt: skip
    return out
