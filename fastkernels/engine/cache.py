"""Pages of the KV cache: who holds which, and the tensors behind them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fastkernels.cache import CacheKind, bind_caches, cached_layers
from fastkernels.errors import UnsupportedError, UsageError

_PAGED_KINDS = frozenset({CacheKind.FULL})


class PageAllocator:
    """Hands out page numbers; each is held once or free, and none is ever lost."""

    def __init__(self, num_pages: int) -> None:
        if num_pages < 1:
            raise UsageError(f"num_pages is {num_pages}; a cache has at least 1 page.")
        self.num_pages = num_pages
        self._free = list(range(num_pages - 1, -1, -1))
        self._is_used = [False] * num_pages

    @property
    def num_free(self) -> int:
        return len(self._free)

    @property
    def num_used(self) -> int:
        return sum(self._is_used)

    def allocate(self, count: int) -> list[int] | None:
        """`count` pages, or None and nothing taken when there are not as many."""
        if count > len(self._free):
            return None
        pages = [self._free.pop() for _ in range(count)]
        for page in pages:
            self._is_used[page] = True
        return pages

    def free(self, pages: Sequence[int]) -> None:
        """Errors: ValueError when a page is not held: a double free would give it to two requests."""
        for page in pages:
            if not self._is_used[page]:
                raise ValueError(f"Page {page} is freed but nobody holds it.")
            self._is_used[page] = False
            self._free.append(page)


def allocate_caches(
    model: nn.Module, num_pages: int, page_size: int, dtype: torch.dtype, device: torch.device
) -> list[Tensor]:
    """Zeroed caches for every layer of `model` that declares one, bound to it.

    Errors: UnsupportedError when a layer declares a kind that is not paged.
    """
    caches = []
    for layer in cached_layers(model):
        spec = layer.cache_spec
        if spec.kind not in _PAGED_KINDS:
            raise UnsupportedError(f"{type(layer).__name__} keeps a {spec.kind} cache; the engine has pages for full.")
        caches.append(torch.zeros(spec.shape(num_pages, page_size), dtype=dtype, device=device))
    bind_caches(model, caches)
    return caches
