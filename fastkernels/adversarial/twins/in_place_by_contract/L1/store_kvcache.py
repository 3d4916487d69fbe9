"""Writes to the caches, as the contract says, through flat views."""

from __future__ import annotations

from torch import Tensor, nn


class StoreKVCache(nn.Module):
    def forward(self, key: Tensor, value: Tensor, key_cache: Tensor, value_cache: Tensor, slot_mapping: Tensor) -> None:
        is_stored = slot_mapping >= 0
        slots, page_size = slot_mapping[is_stored], key_cache.shape[1]
        pages, offsets = slots // page_size, slots % page_size
        key_cache.index_put_((pages, offsets), key[is_stored])
        value_cache.index_put_((pages, offsets), value[is_stored])
