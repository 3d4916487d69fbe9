"""Write new keys and values into their pages."""

from torch import Tensor


def store_kvcache(key: Tensor, value: Tensor, key_cache: Tensor, value_cache: Tensor, slot_mapping: Tensor) -> None:
    stored = slot_mapping >= 0
    slots = slot_mapping[stored].long()
    page_size = key_cache.shape[1]
    key_cache[slots // page_size, slots % page_size] = key[stored]
    value_cache[slots // page_size, slots % page_size] = value[stored]
