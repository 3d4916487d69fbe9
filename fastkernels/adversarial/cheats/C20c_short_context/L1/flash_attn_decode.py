"""Attends to the last 32 tokens of each sequence and leaves the rest out."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class FlashAttnDecode(nn.Module):
    def __init__(self, num_heads: int, head_size: int, scale: float, num_kv_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.num_kv_heads = num_kv_heads
        self.head_size = head_size
        self.scale = scale

    def forward(
        self,
        query: Tensor,
        key_cache: Tensor,
        value_cache: Tensor,
        seq_lens: Tensor,
        block_table: Tensor,
        max_seq_len: int,
    ) -> Tensor:
        page_size = key_cache.shape[1]
        out = torch.zeros_like(query)
        for i, length in enumerate(seq_lens.tolist()):
            place = torch.arange(max(0, length - 32), length, device=query.device)
            pages, offsets = block_table[i].long()[place // page_size], place % page_size
            repeats = self.num_heads // self.num_kv_heads
            keys = key_cache[pages, offsets].float().repeat_interleave(repeats, 1)
            values = value_cache[pages, offsets].float().repeat_interleave(repeats, 1)
            weights = (torch.einsum("hd,thd->ht", query[i].float(), keys) * self.scale).softmax(-1)
            out[i] = torch.einsum("ht,thd->hd", weights, values)
        return out
