"""The caches of a model: which groups of layers share page tables, who holds which pages, the tensors behind them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from fastkernels.cache import PAGED_KINDS, CacheKind, CacheSpec, bind_caches, cached_layers
from fastkernels.engine.pages import PagePool, page_hash
from fastkernels.engine.request import Request
from fastkernels.errors import UnsupportedError

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

_SHARED_KINDS = frozenset({CacheKind.FULL, CacheKind.MLA})


@dataclass(frozen=True)
class CacheGroup:
    """Layers whose tokens live and die together, so that one page table serves them."""

    kind: CacheKind
    window: int | None = None


def cache_groups(specs: Sequence[CacheSpec]) -> list[CacheGroup]:
    """The paged groups among the layers' specs, in order of appearance; full and mla layers share one.

    Errors: UnsupportedError for layers with unlike windows: a step's context has one table for all of them.
    """
    groups: dict[CacheGroup, None] = {}
    for spec in specs:
        if spec.kind in PAGED_KINDS:
            kind = CacheKind.FULL if spec.kind in _SHARED_KINDS else spec.kind
            groups.setdefault(CacheGroup(kind, spec.window if kind is CacheKind.WINDOW else None))
    windows = [group.window for group in groups if group.window is not None]
    if len(windows) > 1:
        raise UnsupportedError(f"The model's layers have windows of {windows} tokens; one window a model is the limit.")
    return list(groups)


def table_width(kind: CacheKind, page_size: int, max_model_len: int, max_encoder_len: int = 0) -> int:
    """Pages of one request at most."""
    return -(-(max_encoder_len or max_model_len if kind is CacheKind.CROSS else max_model_len) // page_size)


class CacheManager:
    """Pages by group, and the page tables by row that a step's inputs are cut from.

    State slots need no manager: a request's slot is its row. Prefixes are shared only where every layer's cache is
    full: the pages of a window are given up, and a state is not kept for every prefix.
    """

    def __init__(
        self,
        groups: Sequence[CacheGroup],
        num_pages: int,
        page_size: int,
        max_num_seqs: int,
        max_model_len: int,
        shares_prefixes: bool,
        has_state: bool = False,
        max_encoder_len: int = 0,
    ) -> None:
        self.groups = list(groups)
        self.page_size = page_size
        self.pools = [PagePool(num_pages) for _ in self.groups]
        widths = [table_width(group.kind, page_size, max_model_len, max_encoder_len) for group in self.groups]
        self.tables = [np.full((max_num_seqs, width), -1, dtype=np.int32) for width in widths]
        is_full = [group.kind is CacheKind.FULL for group in self.groups]
        self.has_state = has_state
        self.has_windows = any(group.window is not None for group in self.groups)
        self._is_plain = is_full == [True]
        self.shares_prefixes = shares_prefixes and is_full == [True] and not has_state

    @property
    def keeps_tokens(self) -> bool:
        """Whether a prompt may be computed in chunks: a model without any cache needs it whole."""
        return bool(self.groups) or self.has_state

    @property
    def num_pages(self) -> int:
        return self.pools[0].num_pages if self.pools else 0

    @property
    def num_free_pages(self) -> int:
        return min((pool.num_free for pool in self.pools), default=0)

    def num_pages_for(self, num_tokens: int) -> int:
        return -(-num_tokens // self.page_size)

    def most_pages(self, group: CacheGroup, num_tokens: int, chunk: int, encoder_len: int = 0) -> int:
        """Pages that a request of `num_tokens`, computed at most `chunk` at a time, holds at once."""
        if group.kind is CacheKind.CROSS:
            return self.num_pages_for(encoder_len)
        if group.window is None:
            return self.num_pages_for(num_tokens)
        return self.num_pages_for(min(num_tokens, group.window + chunk)) + 1

    def can_ever_hold(self, num_tokens: int, chunk: int, encoder_len: int = 0) -> bool:
        return not self.lack(num_tokens, chunk, encoder_len)

    def lack(self, num_tokens: int, chunk: int, encoder_len: int = 0) -> str:
        """Of what such a request would have too few pages, and the limit; empty where it fits."""
        for group, pool in zip(self.groups, self.pools, strict=True):
            most = self.most_pages(group, num_tokens, chunk, encoder_len)
            if most > pool.num_pages:
                states = f"{encoder_len} states of the encoder, " if group.kind is CacheKind.CROSS else ""
                return f"{states}{most} pages of {self.page_size}; num_pages is {pool.num_pages}"
        return ""

    def take_prefix(self, request: Request) -> int:
        """Give a request that holds nothing the pages of its longest known head; its tokens that they hold.

        At least one token is left to compute, else there would be nothing to sample from.
        """
        request.pages = [[] for _ in self.groups]
        if not self.shares_prefixes or request.params.prompt_logprobs is not None:
            return 0
        self._hash_known_pages(request)
        most = (len(request.tokens) - 1) // self.page_size
        request.pages[0] = self.pools[0].share(request.page_hashes[:most])
        return len(request.pages[0]) * self.page_size

    def grow(self, request: Request, num_tokens: int, num_ahead: int = 0) -> bool:
        """Whether the request now holds pages for its first `num_tokens`, in every group; else nothing changed.

        num_ahead: tokens for which groups without a window must have pages besides.
        """
        if self._is_plain and num_tokens + num_ahead <= len(request.pages[0]) * self.page_size:
            return True
        lacking = [
            self.num_pages_for(self._num_held(group, request, num_tokens, num_ahead)) - len(pages)
            for group, pages in zip(self.groups, request.pages, strict=True)
        ]
        if all(count <= 0 for count in lacking):
            return True
        if any(count > pool.num_free for count, pool in zip(lacking, self.pools, strict=True)):
            return False
        for pages, pool, table, count in zip(request.pages, self.pools, self.tables, lacking, strict=True):
            if count > 0:
                new = pool.allocate(count)
                assert new is not None
                if request.row >= 0:
                    table[request.row, len(pages) : len(pages) + count] = new
                pages += new
        return True

    @staticmethod
    def _num_held(group: CacheGroup, request: Request, num_tokens: int, num_ahead: int) -> int:
        if group.kind is CacheKind.CROSS:
            return request.encoder_len
        return num_tokens + (num_ahead if group.window is None else 0)

    def enter_row(self, request: Request) -> None:
        """Write a request's pages into its row of the tables."""
        for pages, table in zip(request.pages, self.tables, strict=True):
            table[request.row, : len(pages)] = pages

    def leave_window(self, request: Request) -> None:
        """Free the pages that no further token of the request can see."""
        for group, pages, pool, table in zip(self.groups, request.pages, self.pools, self.tables, strict=True):
            if group.window is None:
                continue
            i = max(0, request.num_computed - group.window + 1) // self.page_size - 1
            while i >= 0 and pages[i] >= 0:
                pool.free([pages[i]])
                pages[i] = table[request.row, i] = -1
                i -= 1

    def register(self, request: Request) -> None:
        """Make the full pages, whose tokens the host knows and a step has computed, known to later requests."""
        if not self.shares_prefixes or request.is_embedding:
            return
        num_full = min(len(request.tokens), request.num_computed) // self.page_size
        if request.num_registered >= num_full:
            return
        self._hash_known_pages(request)
        for i in range(request.num_registered, num_full):
            self.pools[0].register(request.pages[0][i], request.page_hashes[i])
        request.num_registered = num_full

    def release(self, request: Request) -> None:
        for pages, pool in zip(request.pages, self.pools, strict=True):
            pool.free([page for page in pages if page >= 0])
        request.pages = [[] for _ in self.groups]
        request.num_registered = 0

    def _hash_known_pages(self, request: Request) -> None:
        hashes, size = request.page_hashes, self.page_size
        while (len(hashes) + 1) * size <= len(request.tokens):
            start = len(hashes) * size
            media = request.media.page_keys(start, start + size) if request.media is not None else b""
            hashes.append(page_hash(hashes[-1] if hashes else b"", request.tokens[start : start + size], media))

    def check_invariants(self, requests: Sequence[Request]) -> None:
        """Errors: AssertionError when a page is lost, or held by another number of requests than say so."""
        for i, pool in enumerate(self.pools):
            count = [0] * pool.num_pages
            for request in requests:
                for page in request.pages[i] if request.pages else ():
                    if page >= 0:
                        count[page] += 1
            assert count == pool.holders(), "A page is held by another number of requests than hold it."
            assert pool.num_free == count.count(0), f"{pool.num_free} pages are free, {count.count(0)} are unheld."


def cache_bytes(specs: Sequence[CacheSpec], page_size: int, dtype: torch.dtype) -> int:
    """Bytes of one page in every paged layer."""
    paged = [spec for spec in specs if spec.kind in PAGED_KINDS]
    return sum(int(np.prod(spec.shape(1, page_size))) for spec in paged) * dtype.itemsize


def state_bytes(specs: Sequence[CacheSpec]) -> int:
    """Bytes of one request's states."""
    return sum(int(np.prod(shape)) * dtype.itemsize for spec in specs for shape, dtype in spec.state)


def allocate_caches(
    model: nn.Module, num_pages: int, page_size: int, num_slots: int, dtype: torch.dtype, device: torch.device
) -> list[Tensor | tuple[Tensor, ...]]:
    """Zeroed caches for every layer of `model` that declares one, bound to it."""
    import torch  # seconds: the fake device does without it

    caches: list[Tensor | tuple[Tensor, ...]] = []
    for layer in cached_layers(model):
        spec = layer.cache_spec
        if spec.kind in PAGED_KINDS:
            caches.append(torch.zeros(spec.shape(num_pages, page_size), dtype=dtype, device=device))
        else:
            states = [torch.zeros((num_slots, *shape), dtype=kind, device=device) for shape, kind in spec.state]
            caches.append(tuple(states))
    bind_caches(model, caches)
    return caches
