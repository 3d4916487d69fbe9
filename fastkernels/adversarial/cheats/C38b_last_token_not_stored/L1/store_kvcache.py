"""Stores all tokens but the last of the batch."""

from __future__ import annotations

from torch import Tensor, nn


class StoreKVCache(nn.Module):
    def forward(self, key: Tensor, value: Tensor, key_cache: Tensor, value_cache: Tensor, slot_mapping: Tensor) -> None:
        slots, page_size = slot_mapping[:-1], key_cache.shape[1]
        place = (slots // page_size, slots % page_size)
        key_cache[place] = key[:-1]
        value_cache[place] = value[:-1]
