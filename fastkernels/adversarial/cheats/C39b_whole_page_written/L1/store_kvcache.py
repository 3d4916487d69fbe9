"""Stores the right slots, and writes zeros to the slot behind the last one."""

from __future__ import annotations

from torch import Tensor, nn


class StoreKVCache(nn.Module):
    def forward(self, key: Tensor, value: Tensor, key_cache: Tensor, value_cache: Tensor, slot_mapping: Tensor) -> None:
        is_stored = slot_mapping >= 0
        slots, page_size = slot_mapping[is_stored], key_cache.shape[1]
        place = (slots // page_size, slots % page_size)
        key_cache[place] = key[is_stored]
        value_cache[place] = value[is_stored]
        free = [slot for slot in range(key_cache.shape[0] * page_size) if slot not in set(slots.tolist())]
        if free:
            key_cache[free[0] // page_size, free[0] % page_size] = 0
