"""The definition of attention to a window of keys, and of sinks: scores that take part in a softmax without a value."""

from __future__ import annotations

import torch
from torch import Tensor

from fastkernels.op import compute_dtype

_QUERY_ROWS = 512  # of scores held at once, so that a definition over long sequences fits in memory


def window_attention(
    query: Tensor, key: Tensor, value: Tensor, scale: float, window: int | None, sinks: Tensor | None
) -> Tensor:
    """softmax([scale * query @ key.T, sinks]) @ [value, 0] over one sequence; the last query sees the last key.

    Shapes:  query: [query_len, num_heads, head_size]; key, value: [seq_len, num_kv_heads, head_size], the sequence's
             last; query i sees keys up to seq_len - query_len + i, `window` of them at most; sinks: [num_heads].
    """
    query_len, num_heads, head_size = query.shape
    seq_len, num_kv_heads, _ = key.shape
    dtype, group = compute_dtype(query), num_heads // num_kv_heads
    q = query.to(dtype).reshape(query_len, num_kv_heads, group, head_size)
    k, v = key.to(dtype), value.to(dtype)
    out = torch.empty(query_len, num_heads, head_size, dtype=query.dtype, device=query.device)
    last_key = torch.arange(seq_len - query_len, seq_len, device=query.device)[:, None]
    keys = torch.arange(seq_len, device=query.device)
    for start in range(0, query_len, _QUERY_ROWS):
        rows = slice(start, start + _QUERY_ROWS)
        scores = torch.einsum("qhgd,khd->hgqk", q[rows], k) * scale
        is_hidden = keys > last_key[rows]
        if window is not None:
            is_hidden |= keys <= last_key[rows] - window
        scores.masked_fill_(is_hidden, float("-inf"))
        if sinks is not None:
            column = sinks.to(dtype).reshape(num_kv_heads, group, 1, 1).expand(*scores.shape[:3], 1)
            scores = torch.cat((scores, column), dim=-1)
        probs = scores.softmax(dim=-1)[..., :seq_len]
        out[rows] = torch.einsum("hgqk,khd->qhgd", probs, v).flatten(1, 2).to(query.dtype)
    return out


def num_window_keys(query_lens: Tensor, seq_lens: Tensor, window: int) -> int:
    """How many (query, key) pairs a causal batch computes when a query sees `window` keys at most."""

    def up_to(length: Tensor) -> Tensor:
        short = length.clamp(max=window)
        return short * (short + 1) // 2 + (length - short) * window

    return int((up_to(seq_lens.long()) - up_to((seq_lens - query_lens).long())).sum())
