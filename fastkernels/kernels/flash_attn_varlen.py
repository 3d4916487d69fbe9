"""Causal attention of new tokens over their paged context, bottom-right aligned."""

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention


def flash_attn_varlen(
    query: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    query_start_loc: Tensor,
    seq_lens: Tensor,
    block_table: Tensor,
    max_query_len: int,
    max_seq_len: int,
    scale: float,
) -> Tensor:
    out = torch.empty_like(query, memory_format=torch.contiguous_format)
    page_size = key_cache.shape[1]
    starts = query_start_loc.tolist()
    for i, length in enumerate(seq_lens.tolist()):
        begin, end = starts[i], starts[i + 1]
        slots = torch.arange(length, device=query.device)
        pages = block_table[i].long()[slots // page_size]
        k, v = (c[pages, slots % page_size].transpose(0, 1) for c in (key_cache, value_cache))
        mask = slots[None] <= slots[length - (end - begin) :][:, None]
        q = query[begin:end].transpose(0, 1)
        out[begin:end] = scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale, enable_gqa=True).transpose(
            0, 1
        )
    return out
