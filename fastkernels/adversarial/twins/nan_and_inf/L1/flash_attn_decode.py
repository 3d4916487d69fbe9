"""Gathers whole pages and masks what lies behind the end, where memory may hold anything: it must not leak."""

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
        place = torch.arange(block_table.shape[1] * page_size, device=query.device)
        is_held = place[None] < seq_lens[:, None]
        pages = block_table.long().clamp_min(0)[:, place // page_size]
        offsets = place % page_size
        repeats = self.num_heads // self.num_kv_heads
        keep = is_held[:, :, None, None]
        keys = torch.where(keep, key_cache[pages, offsets].float(), 0.0).repeat_interleave(repeats, 2)
        values = torch.where(keep, value_cache[pages, offsets].float(), 0.0).repeat_interleave(repeats, 2)
        scores = torch.einsum("nhd,nthd->nht", query.float(), keys) * self.scale
        scores = scores.masked_fill(~is_held[:, None], float("-inf"))
        weights = torch.nan_to_num(scores.softmax(-1))
        return torch.einsum("nht,nthd->nhd", weights, values).to(query.dtype)
