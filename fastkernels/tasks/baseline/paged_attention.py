"""What the attention ops share: tensor specs, checks and the definition over one sequence."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

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


def causal_attention(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
    """softmax(scale * query @ key.T) @ value over one sequence; the last query sees every key.

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
        scores.masked_fill_(keys > last_key[rows, None], float("-inf"))
        mixed = torch.einsum("hgqk,khd->qhgd", scores.softmax(dim=-1), v)
        out[rows] = mixed.flatten(1, 2).to(query.dtype)
    return out


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
