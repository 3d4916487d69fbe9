"""FlashAttnDecode by one masked scaled_dot_product_attention over all sequences' gathered pages."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from fastkernels.tasks.baseline.L1.flash_attn_decode import FlashAttnDecode as Baseline


class FlashAttnDecode(Baseline):
    def forward(
        self,
        query: Tensor,
        key_cache: Tensor,
        value_cache: Tensor,
        seq_lens: Tensor,
        block_table: Tensor,
        max_seq_len: int,
    ) -> Tensor:
        num_pages = -(-max_seq_len // key_cache.shape[1])
        starts = torch.arange(num_pages, device=query.device) * key_cache.shape[1]
        pages = torch.where(starts < seq_lens[:, None], block_table[:, :num_pages], 0).long()
        is_cached = torch.arange(num_pages * key_cache.shape[1], device=query.device) < seq_lens[:, None]
        # What lies behind a sequence's end may be NaN, which a weight of zero would not hide.
        keys, values = (
            cache[pages].flatten(1, 2).masked_fill(~is_cached[..., None, None], 0).transpose(1, 2)
            for cache in (key_cache, value_cache)
        )
        mask = is_cached[:, None, None, :] | (seq_lens == 0)[:, None, None, None]
        q = query.unsqueeze(2)
        return scaled_dot_product_attention(q, keys, values, mask, scale=self.scale, enable_gqa=True).squeeze(2)
