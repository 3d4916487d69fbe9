"""What the attention ops share: tensor specs, checks and the definition over one sequence."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby, pairwise
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from fastkernels.op import compute_dtype
from fastkernels.spec import Role, TensorSpec

TOKEN_HEADS = TensorSpec(("num_tokens", "num_heads", "head_size"))
TOKEN_KV_HEADS = TensorSpec(("num_tokens", "num_kv_heads", "head_size"))
CACHE = TensorSpec(("num_pages", "page_size", "num_kv_heads", "head_size"), role=Role.CACHE).strided()
QUERY_START_LOC = TensorSpec(("num_query_starts",), dtype="int32", role=Role.QUERY_START)
SEQ_LENS = TensorSpec(("num_seqs",), dtype="int32", role=Role.SEQ_LEN)
BLOCK_TABLE = TensorSpec(("num_seqs", "max_pages"), dtype="int32", role=Role.PAGE_TABLE)

EXAMPLES: tuple[dict[str, Any], ...] = (
    {"num_heads": 4, "head_size": 16, "scale": 0.25, "num_kv_heads": 2},
    {"num_heads": 7, "head_size": 80, "scale": 80**-0.5, "num_kv_heads": 1},
    {"num_heads": 3, "head_size": 64, "scale": 0.125, "num_kv_heads": 3},
)

_QUERY_ROWS = 512  # of scores held at once, so that a definition over long sequences fits in memory
_GATHERED_ELEMENTS = 1 << 24  # of keys copied out of their pages at once


def check_head_counts(num_heads: int, num_kv_heads: int) -> None:
    """Errors: ValueError when query heads cannot be shared out evenly."""
    if num_kv_heads < 1 or num_heads % num_kv_heads:
        raise ValueError(f"num_heads {num_heads} is no multiple of num_kv_heads {num_kv_heads}.")


def check_tail(name: str, x: Tensor, heads: int, head_size: int) -> None:
    """Errors: ValueError when the last two axes of x are not [heads, head_size]."""
    if tuple(x.shape[-2:]) != (heads, head_size):
        raise ValueError(f"{name} must end in [{heads}, {head_size}] (heads, head_size), got {tuple(x.shape)}.")


def gather_pages(cache: Tensor, block_table: Tensor, seq_len: int) -> Tensor:
    """The first seq_len rows of one sequence, by its row of the block table: [seq_len, num_kv_heads, head_size]."""
    num_pages = -(-seq_len // cache.shape[1])
    return cache[block_table[:num_pages].long()].flatten(0, 1)[:seq_len]


def causal_attention(query: Tensor, key: Tensor, value: Tensor, scale: float, is_causal: bool = True) -> Tensor:
    """softmax(scale * query @ key.T) @ value over one sequence; the last query sees every key.

    is_causal: False lets every query see every key.

    Shapes:  query: [query_len, num_heads, head_size]; key, value: [seq_len, num_kv_heads, head_size];
             query_len <= seq_len; query i sees keys up to seq_len - query_len + i.
    """
    query_len, num_heads, head_size = query.shape
    seq_len, num_kv_heads, _ = key.shape
    dtype = compute_dtype(query)
    q = query.to(dtype).reshape(query_len, num_kv_heads, num_heads // num_kv_heads, head_size)
    k, v = key.to(dtype), value.to(dtype)
    out = torch.empty(query_len, num_heads, head_size, dtype=query.dtype, device=query.device)
    last_key = torch.arange(seq_len - query_len, seq_len, device=query.device)
    keys = torch.arange(seq_len, device=query.device)
    for start in range(0, query_len, _QUERY_ROWS):
        rows = slice(start, start + _QUERY_ROWS)
        scores = torch.einsum("qhgd,khd->hgqk", q[rows], k) * scale
        if is_causal:
            scores.masked_fill_(keys > last_key[rows, None], float("-inf"))
        mixed = torch.einsum("hgqk,khd->qhgd", scores.softmax(dim=-1), v)
        out[rows] = mixed.flatten(1, 2).to(query.dtype)
    return out


def batched_prefill_attention(
    query: Tensor, key: Tensor, value: Tensor, starts: Sequence[int], scale: float, is_causal: bool = True
) -> Tensor:
    """FlashAttnPrefill by scaled_dot_product_attention: sequences of one length at once, others one by one.

    Shapes:  as there; starts: where each sequence begins, and where the last one ends.
    """
    num_heads, num_kv_heads, dtype = query.shape[1], key.shape[1], compute_dtype(query)
    out = query.new_empty(query.shape)
    out[starts[-1] :] = 0
    for start, end, length in _runs(starts):
        q, k, v = (x[start:end].to(dtype).unflatten(0, (-1, length)).transpose(1, 2) for x in (query, key, value))
        if num_heads != num_kv_heads:
            k, v = (x.repeat_interleave(num_heads // num_kv_heads, dim=1) for x in (k, v))
        mixed = scaled_dot_product_attention(q, k, v, is_causal=is_causal, scale=scale)
        out[start:end] = mixed.transpose(1, 2).flatten(0, 1).to(query.dtype)
    return out


def _runs(starts: Sequence[int]) -> Iterator[tuple[int, int, int]]:
    """(start, end, length) of every run of neighbouring sequences of one length; empty ones are left out."""
    for length, pairs in groupby(pairwise(starts), key=lambda pair: pair[1] - pair[0]):
        if length:
            run = list(pairs)
            yield run[0][0], run[-1][1], length


def batched_decode_attention(
    query: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    seq_lens: Tensor,
    block_table: Tensor,
    max_seq_len: int,
    scale: float,
) -> Tensor:
    """FlashAttnDecode for many sequences at once, each padded to the longest beside it; arguments as there.

    What lies behind a sequence's end is overwritten after it is gathered: a page may hold anything there.
    """
    page_size, num_kv_heads, head_size = key_cache.shape[1:]
    max_pages = min(max(1, -(-max_seq_len // page_size)), block_table.shape[1])
    num_rows = max(1, _GATHERED_ELEMENTS // max(1, max_pages * page_size * num_kv_heads * head_size))
    if num_rows >= len(query):
        return _decode_group(query, key_cache, value_cache, seq_lens, block_table[:, :max_pages], scale)
    out = torch.empty(query.shape, dtype=query.dtype, device=query.device)
    for start in range(0, len(query), num_rows):
        rows = slice(start, start + num_rows)
        longest = -(-int(seq_lens[rows].max()) // page_size)
        table = block_table[rows, : max(1, min(longest, max_pages))]
        out[rows] = _decode_group(query[rows], key_cache, value_cache, seq_lens[rows], table, scale)
    return out


def _decode_group(
    query: Tensor, key_cache: Tensor, value_cache: Tensor, seq_lens: Tensor, block_table: Tensor, scale: float
) -> Tensor:
    num_seqs, num_heads, head_size = query.shape
    page_size, num_kv_heads, _ = key_cache.shape[1:]
    num_keys, dtype = block_table.shape[1] * page_size, compute_dtype(query)
    pages = block_table.clamp(min=0).flatten()
    is_behind = (torch.arange(num_keys, device=query.device) >= seq_lens[:, None])[:, None, :, None]
    shape = (num_seqs, num_keys, num_kv_heads, head_size)
    q = query.to(dtype).reshape(num_seqs, num_kv_heads, num_heads // num_kv_heads, head_size)
    k, v = (c.index_select(0, pages).view(shape).transpose(1, 2).to(dtype) for c in (key_cache, value_cache))
    scores = (k @ q.transpose(-1, -2)).mul_(scale).masked_fill_(is_behind, float("-inf"))
    probs = scores.softmax(dim=2).masked_fill_(is_behind, 0.0)  # of an empty sequence every row was NaN
    out = probs.transpose(-1, -2) @ v.masked_fill(is_behind, 0.0)
    return out.flatten(1, 2).to(query.dtype)


def num_visible_keys(query_lens: Tensor, seq_lens: Tensor) -> int:
    """How many (query, key) pairs a causal batch computes."""
    q, s = query_lens.long(), seq_lens.long()
    return int((q * (s - q) + q * (q + 1) // 2).sum())


def paged_bytes(inputs: dict[str, Any], outputs: dict[str, Tensor]) -> int:
    """Queries, outputs and integers once, and of the caches the tokens of the sequences alone."""
    caches = (inputs["key_cache"], inputs["value_cache"])
    rest = [
        t for t in (*inputs.values(), *outputs.values()) if isinstance(t, Tensor) and all(t is not c for c in caches)
    ]
    num_keys = int(inputs["seq_lens"].long().sum())
    token_bytes = sum(c.shape[2] * c.shape[3] * c.element_size() for c in caches)
    return sum(t.numel() * t.element_size() for t in rest) + num_keys * token_bytes
