"""Attention of one new token a sequence over its paged context."""

import torch
from torch import Tensor

from fastkernels.kernels.flash_attn_varlen import flash_attn_varlen


def flash_attn_decode(
    query: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    seq_lens: Tensor,
    block_table: Tensor,
    max_seq_len: int,
    scale: float,
) -> Tensor:
    starts = torch.arange(query.shape[0] + 1, dtype=torch.int32, device=query.device)
    return flash_attn_varlen(query, key_cache, value_cache, starts, seq_lens, block_table, 1, max_seq_len, scale)
