"""Writes new keys and values into the pages of the cache."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from fastkernels.context import is_reference_asked
from fastkernels.errors import UnsupportedError
from fastkernels.kernels.paged_cpu import is_compiling, store_paged_kv
from fastkernels.kernels.store_kvcache import store_kvcache
from fastkernels.op import Op
from fastkernels.spec import Compare, Cost, OpSpec, Role, TensorSpec

_NEW = TensorSpec(("num_tokens", "num_kv_heads", "head_size")).strided()
_CACHE = TensorSpec(
    ("num_pages", "page_size", "num_kv_heads", "head_size"), role=Role.CACHE, compare=Compare.EXACT
).strided()


class StoreKVCache(Op):
    """cache[slot // page_size, slot % page_size] = new, for keys and for values; a token of slot -1 is skipped.

    Shapes:  key, value: [num_tokens, num_kv_heads, head_size]; key_cache, value_cache: [num_pages, page_size,
             num_kv_heads, head_size]; slot_mapping: [num_tokens], no slot twice.
    Dtypes:  bf16, fp16 or fp32, the caches alike, moved bit for bit; slot_mapping int64.
    Returns: None. key_cache and value_cache are written to.
    Errors:  ValueError when shapes do not fit; UnsupportedError when the caches have another dtype.
    Source:  Kwon et al. 2023 (https://arxiv.org/abs/2309.06180); as vLLM's reshape_and_cache_flash.
    """

    spec = OpSpec(
        inputs={
            "key": _NEW,
            "value": _NEW,
            "key_cache": _CACHE,
            "value_cache": _CACHE,
            "slot_mapping": TensorSpec(("num_tokens",), dtype="int64", role=Role.SLOT),
        },
        outputs={},
        mutates=("key_cache", "value_cache"),
        example_axes={"num_kv_heads": (2, 1), "head_size": (16, 80, 128), "page_size": (16,)},
    )

    def forward(self, key: Tensor, value: Tensor, key_cache: Tensor, value_cache: Tensor, slot_mapping: Tensor) -> None:
        if not key.shape[1:] == value.shape[1:] == key_cache.shape[2:] == value_cache.shape[2:]:
            raise ValueError(
                f"StoreKVCache: key {tuple(key.shape)} and value {tuple(value.shape)} do not fit caches "
                f"{tuple(key_cache.shape)} and {tuple(value_cache.shape)}."
            )
        if not key.shape[0] == value.shape[0] == slot_mapping.shape[0]:
            raise ValueError(f"StoreKVCache: {len(key)} keys, {len(value)} values, {len(slot_mapping)} slots.")
        if not key.dtype == value.dtype == key_cache.dtype == value_cache.dtype:
            raise UnsupportedError(
                f"StoreKVCache moves without converting: key {key.dtype}, key_cache {key_cache.dtype}."
            )
        if is_reference_asked():
            self.reference(key, value, key_cache, value_cache, slot_mapping)
        elif is_compiling():
            store_paged_kv(key, value, key_cache, value_cache, slot_mapping)
        elif not key.is_cuda:
            _store(key, value, key_cache, value_cache, slot_mapping)
        else:
            store_kvcache(key, value, key_cache, value_cache, slot_mapping)

    def reference(
        self, key: Tensor, value: Tensor, key_cache: Tensor, value_cache: Tensor, slot_mapping: Tensor
    ) -> None:
        is_stored = slot_mapping >= 0
        slots, page_size = slot_mapping[is_stored], key_cache.shape[1]
        place = (slots // page_size, slots % page_size)
        key_cache[place] = key[is_stored]
        value_cache[place] = value[is_stored]

    def cost(self, inputs: dict[str, Any], outputs: dict[str, Tensor]) -> Cost:
        slots, key = inputs["slot_mapping"], inputs["key"]
        num_stored = int((slots >= 0).sum())
        row_bytes = key[0:1].numel() * key.element_size()
        return Cost(slots.numel() * slots.element_size() + num_stored * 2 * 2 * row_bytes)


def _store(key: Tensor, value: Tensor, key_cache: Tensor, value_cache: Tensor, slot_mapping: Tensor) -> None:
    """On a CPU: one scatter a cache, and nothing sorted out where every token has a slot."""
    is_stored = slot_mapping >= 0
    if not is_stored.all():
        key, value, slot_mapping = key[is_stored], value[is_stored], slot_mapping[is_stored]
    page_size = key_cache.shape[1]
    place = (slot_mapping.div(page_size, rounding_mode="floor"), slot_mapping.remainder(page_size))
    key_cache.index_put_(place, key)
    value_cache.index_put_(place, value)
