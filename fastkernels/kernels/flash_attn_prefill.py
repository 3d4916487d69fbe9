"""Causal attention over packed sequences that have nothing cached."""

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention


def flash_attn_prefill(
    query: Tensor, key: Tensor, value: Tensor, query_start_loc: Tensor, max_query_len: int, scale: float
) -> Tensor:
    out = torch.empty_like(query, memory_format=torch.contiguous_format)
    starts = query_start_loc.tolist()
    for begin, end in zip(starts, starts[1:], strict=False):
        q, k, v = (x[begin:end].transpose(0, 1) for x in (query, key, value))
        out[begin:end] = scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale, enable_gqa=True).transpose(
            0, 1
        )
    return out
