"""What a layer keeps between steps, declared by the layer and allocated by whoever runs it.

A layer that keeps state has `cache_spec: CacheSpec` and an attribute `kv_cache` (None until bound).
The order of `cached_layers(module)` is the order of the caches everywhere: engine, capture, judge. Capture and judge
count tensors: each state of a layer is a cache of its own (`flat_caches`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # the server and the fake device do without torch
    import torch
    from torch import Tensor, nn


class CacheKind(StrEnum):
    """full, window, mla and cross have pages; state has one slot a request; none has nothing."""

    FULL = "full"
    WINDOW = "window"
    MLA = "mla"
    CROSS = "cross"
    STATE = "state"
    NONE = "none"


PAGED_KINDS = frozenset({CacheKind.FULL, CacheKind.WINDOW, CacheKind.MLA, CacheKind.CROSS})


@dataclass(frozen=True)
class CacheSpec:
    """The cache of one layer.

    full, window, cross: [2 (key, value), num_pages, page_size, num_kv_heads, head_size]; mla: [num_pages, page_size,
    head_size], one latent a token. window: tokens that are seen, the newest included.
    state: (shape, dtype) of each tensor kept for a request; kv_cache is then a tuple of [num_slots, *shape].
    """

    kind: CacheKind
    num_kv_heads: int = 0
    head_size: int = 0
    window: int | None = None
    state: tuple[tuple[tuple[int, ...], torch.dtype], ...] = ()

    def shape(self, num_pages: int, page_size: int) -> tuple[int, ...]:
        if self.kind is CacheKind.MLA:
            return (num_pages, page_size, self.head_size)
        return (2, num_pages, page_size, self.num_kv_heads, self.head_size)


def cached_layers(module: nn.Module) -> list[Any]:
    """The layers of `module`, itself included, that declare a cache, in module order."""
    return [layer for layer in module.modules() if getattr(layer, "cache_spec", None) is not None]


def bind_caches(module: nn.Module, caches: Sequence[Tensor | tuple[Tensor, ...]]) -> None:
    """Give each cached layer its cache; a layer's states may come as one tuple or one after another.

    Errors: ValueError when the numbers differ.
    """
    layers = cached_layers(module)
    counts = [num_tensors(layer.cache_spec) for layer in layers]
    flat = [tensor for cache in caches for tensor in (cache if isinstance(cache, tuple) else (cache,))]
    if sum(counts) != len(flat):
        raise ValueError(
            f"{type(module).__name__} has {len(layers)} cached layers of {sum(counts)} tensors, got {len(flat)} caches."
        )
    for layer, count in zip(layers, counts, strict=True):
        taken, flat = flat[:count], flat[count:]
        layer.kv_cache = tuple(taken) if layer.cache_spec.kind is CacheKind.STATE else taken[0]


def num_tensors(spec: CacheSpec) -> int:
    """How many tensors a layer's cache is."""
    return len(spec.state) if spec.kind is CacheKind.STATE else 1


def flat_caches(module: nn.Module) -> list[tuple[CacheSpec, Tensor]]:
    """Every tensor of the bound caches with its layer's spec, in the order of `bind_caches`."""
    found: list[tuple[CacheSpec, Tensor]] = []
    for layer in cached_layers(module):
        cache = layer.kv_cache
        if cache is not None:
            found += [(layer.cache_spec, tensor) for tensor in (cache if isinstance(cache, tuple) else (cache,))]
    return found
