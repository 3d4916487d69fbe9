"""Attention of one sequence by torch.nn.functional.scaled_dot_product_attention."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad, scaled_dot_product_attention


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scale: float,
    *,
    is_causal: bool = True,
    window: int | None = None,
    sinks: Tensor | None = None,
) -> Tensor:
    """The last query sees every key, or the `window` of them up to its own; not causal: every query sees all.

    Shapes: query, result: [query_len, num_heads, head_size]; key, value: [seq_len, num_kv_heads, head_size]; sinks:
            [num_heads], a score of each head without a value: one more key and value of zeros, the score as its bias.
    Source: https://docs.pytorch.org/docs/stable/generated/torch.nn.functional.scaled_dot_product_attention.html
    """
    query_len, seq_len = len(query), len(key)
    mask = None
    if is_causal and (1 < query_len < seq_len or window is not None or sinks is not None):
        mask = torch.ones(query_len, seq_len, dtype=torch.bool, device=query.device).tril(seq_len - query_len)
        if window is not None:
            mask = mask.triu(seq_len - query_len - window + 1)
    q, k, v = (x.transpose(0, 1).unsqueeze(0) for x in (query, key, value))
    if sinks is not None:
        assert mask is not None
        k, v = (pad(x, (0, 0, 0, 1)) for x in (k, v))
        hidden = torch.zeros(query_len, seq_len, dtype=query.dtype, device=query.device).masked_fill(~mask, -torch.inf)
        bias = sinks.to(query.dtype)[:, None, None].expand(-1, query_len, 1)
        mask = torch.cat([hidden.expand(len(sinks), -1, -1), bias], dim=-1)
    is_square = is_causal and mask is None and query_len == seq_len > 1
    out = scaled_dot_product_attention(q, k, v, mask, is_causal=is_square, scale=scale, enable_gqa=True)
    return out.squeeze(0).transpose(0, 1)
