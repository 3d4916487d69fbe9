"""Attention of the newest token, or the few newest, of each sequence over its paged context.

A sequence's pages are split among programs (flash decoding); the query heads that share a key
head, and the new tokens, are packed into the rows of one tile. A second kernel merges the splits.
With a window only the pages that it reaches are visited; a head's sink is added once, by who finishes its row.
Nothing here reads a tensor on the host, so a call can be captured for a fixed max_seq_len.
"""
# mypy: allow-untyped-defs

import math
from typing import NamedTuple

import torch
from torch import Tensor

from fastkernels.errors import UnsupportedError
from fastkernels.kernels.backend import (
    check_dtypes,
    dependent_launch,
    may_read_earlier_steps,
    num_sms,
    shared_memory_limit,
    step_counters,
    triton,
)
from fastkernels.kernels.split_attention import merge_kernel, split_kernel

MAX_HEAD_SIZE = 256
MAX_GROUP = 64
MAX_SPLITS = 32
"""Merged at once: a program that merges 64 in turns lost 4 us a layer at one sequence of 6,000 keys."""
MERGED_ELEMENTS = 16384
WINDOW_SPLIT_KEYS = 256
MAX_HELD_BYTES = 512
"""Of a key and its value, where a program with a window holds its first keys in registers: more would spill."""
LOG2_E = 1.4426950408889634


class DecodeTile(NamedTuple):
    """Keys a step, splits of a sequence, how the split kernel is compiled, keys that it holds in registers, and steps
    that a split has at least, however short the sequence is."""

    block_n: int
    num_splits: int
    num_warps: int
    num_stages: int
    held: int
    least_steps: int = 1


def decode_tile(query: Tensor, block_d: int, num_programs: int, max_seq_len: int) -> DecodeTile:
    """Splits for 2 programs a multiprocessor; chosen in decode steps of Llama-3.1-8B on an H200, 640 and 6,000 keys.

    num_programs: programs without splitting, that is sequences times key heads. A few sequences: many splits, which
    hold their first keys in registers. Then one program a multiprocessor at a time, whose prefetch keeps memory busy,
    two in turn. Where two waves would not be full: smaller programs. Above 4, a second split may even out the last.
    """
    row_bytes = 2 * block_d * query.element_size()
    block_n = max(16, min(64, 2**15 // row_bytes))
    sms = num_sms(query.device)
    num_tiles = triton.cdiv(max_seq_len, block_n)
    num_splits = max(1, min(MAX_SPLITS, 2 * sms // max(num_programs, 1), num_tiles))
    if num_splits > 4:
        return DecodeTile(block_n, num_splits, 4, 2, block_n)
    room = shared_memory_limit(query.device) - 4096
    if num_programs <= sms or 3 * sms <= 2 * num_programs <= 4 * sms:
        return DecodeTile(block_n, num_splits, 8, max(2, min(5, room // (block_n * row_bytes))), 0)
    if num_programs < 2 * sms:
        return DecodeTile(block_n, min(2, num_tiles), 4, max(2, min(3, room // (block_n * row_bytes))), 0)
    num_splits = 1
    if 4 * sms < num_programs and max_seq_len >= 1024:
        waves = num_programs / (4 * sms)
        filled = [n * waves / math.ceil(n * waves) for n in (1, 2)]
        num_splits = 2 if filled[1] > 1.15 * filled[0] else 1
    return DecodeTile(block_n, num_splits, 4, 2, 0)


def window_tile(query: Tensor, block_d: int, num_programs: int, num_keys: int) -> DecodeTile:
    """decode_tile where a sequence has num_keys keys at most, those of its window; by estimate, not yet measured.

    A split of fewer than WINDOW_SPLIT_KEYS would read its keys in less time than its part takes to be merged.
    """
    row_bytes = 2 * block_d * query.element_size()
    block_n = max(16, min(64, 2**15 // row_bytes))
    wanted = 2 * num_sms(query.device) // max(num_programs, 1)
    num_splits = max(1, min(MAX_SPLITS, wanted, num_keys // WINDOW_SPLIT_KEYS))
    if wanted and row_bytes <= MAX_HELD_BYTES and query.element_size() == 2:
        return DecodeTile(block_n, num_splits, 4, 3, block_n)
    room = shared_memory_limit(query.device) - 4096
    return DecodeTile(block_n, num_splits, 4, max(2, min(3, room // (block_n * row_bytes))), 0)


def merged_at_once(num_splits: int, num_elements: int) -> int:
    """Splits of num_elements each that one step of the merge takes: few sizes, because each is compiled."""
    wanted = 1 if num_splits == 1 else 4 if num_splits <= 4 else MAX_SPLITS
    return max(1, min(wanted, MERGED_ELEMENTS // num_elements))


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
    window: int | None = None,
    sinks: Tensor | None = None,
) -> None:
    """Fill the rows of `out` of every sequence with at most rows_per_tile(group) // group new tokens.

    window: keys that a token sees at most; sinks: [num_heads], scores without a value.
    """
    group = check_attention("flash_attn_decode", query, key_cache, value_cache, scale)
    _, num_heads, head_size = query.shape
    num_kv_heads, num_seqs = num_heads // group, seq_lens.shape[0]
    if query.shape[0] == 0 or num_seqs == 0:
        return
    query = dense_heads(query)
    block_m, block_d = rows_per_tile(group), max(16, triton.next_power_of_2(head_size))
    if window is None:
        tile = decode_tile(query, block_d, num_seqs * num_kv_heads, max_seq_len)
    else:
        num_keys = min(max_seq_len, window + block_m // group - 1)
        tile = window_tile(query, block_d, num_seqs * num_kv_heads, num_keys)
    is_split = tile.num_splits > 1
    num_parts = num_seqs * num_kv_heads * tile.num_splits * block_m if is_split else 1
    partial = torch.empty((num_parts, head_size), dtype=torch.float32, device=query.device)
    lse = torch.empty(num_parts, dtype=torch.float32, device=query.device)
    launch = dependent_launch(query.device)
    starts = seq_lens if query_start_loc is None else query_start_loc
    is_ahead = query_start_loc is None and may_read_earlier_steps()
    arrivals = step_counters(num_seqs * num_kv_heads) if is_split and query_start_loc is None else None
    block_r = triton.next_power_of_2(group)
    fixed = {
        "GROUP": group,
        "HEAD_SIZE": head_size,
        "HAS_QUERY_START": query_start_loc is not None,
        "IS_AHEAD": is_ahead,
        "BLOCK_M": block_m,
        "BLOCK_N": tile.block_n,
        "BLOCK_R": block_r,
        "BLOCK_D": block_d,
        "BLOCK_S": merged_at_once(tile.num_splits, block_r * block_d),
        "WINDOW": window or 0,
        "HAS_SINKS": sinks is not None,
        **launch,
    }
    split_kernel[(num_seqs * num_kv_heads * tile.num_splits,)](
        query, key_cache, value_cache, out, partial, lse, seq_lens if arrivals is None else arrivals,
        starts, seq_lens, block_table, sinks, scale * LOG2_E,
        query.stride(0), query.stride(1), *key_cache.stride()[:3], *value_cache.stride()[:3], block_table.stride(0),
        num_kv_heads, tile.num_splits, tile.least_steps, PAGE_SIZE=key_cache.shape[1], IS_SPLIT=is_split,
        MERGES=arrivals is not None, HELD=tile.held, STAGES=tile.num_stages, num_warps=tile.num_warps, **fixed,
    )  # fmt: skip
    if is_split and arrivals is None:
        num_tokens = min(block_m // group, max_query_len)
        merge_kernel[(num_seqs * num_kv_heads * num_tokens,)](
            out, partial, lse, starts, seq_lens, sinks, num_kv_heads, tile.num_splits, tile.least_steps, num_tokens,
            num_warps=4, **fixed,
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
