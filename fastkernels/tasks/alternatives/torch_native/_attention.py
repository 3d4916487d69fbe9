"""Causal attention of one sequence by torch.nn.functional.scaled_dot_product_attention."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention


def attend(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
    """The last query sees every key.

    Shapes: query, result: [query_len, num_heads, head_size]; key, value: [seq_len, num_kv_heads, head_size].
    Source: https://docs.pytorch.org/docs/stable/generated/torch.nn.functional.scaled_dot_product_attention.html
    """
    query_len, seq_len = len(query), len(key)
    mask = None
    if 1 < query_len < seq_len:
        mask = torch.ones(query_len, seq_len, dtype=torch.bool, device=query.device).tril(seq_len - query_len)
    q, k, v = (x.transpose(0, 1).unsqueeze(0) for x in (query, key, value))
    is_causal = query_len == seq_len > 1
    out = scaled_dot_product_attention(q, k, v, mask, is_causal=is_causal, scale=scale, enable_gqa=True)
    return out.squeeze(0).transpose(0, 1)
