"""Stores the keys and leaves the values out."""

from __future__ import annotations

from torch import Tensor, nn


class StoreKVCache(nn.Module):
    def forward(self, key: Tensor, value: Tensor, key_cache: Tensor, value_cache: Tensor, slot_mapping: Tensor) -> None:
        is_stored = slot_mapping >= 0
        slots, page_size = slot_mapping[is_stored], key_cache.shape[1]
        key_cache[slots // page_size, slots % page_size] = key[is_stored]
