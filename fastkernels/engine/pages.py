"""Pages of the KV cache: who holds which, and which hold what some request has computed before."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from hashlib import blake2b

import numpy as np

from fastkernels.errors import UsageError


class PagePool:
    """Hands out page numbers. A page is free or held by one request, or by several that share its tokens.

    A free page keeps what it was registered for until it is handed out again, the one freed longest ago first.
    """

    def __init__(self, num_pages: int) -> None:
        if num_pages < 1:
            raise UsageError(f"num_pages is {num_pages}; a cache has at least 1 page.")
        self.num_pages = num_pages
        self._free: OrderedDict[int, None] = OrderedDict.fromkeys(range(num_pages))
        self._num_holders = [0] * num_pages
        self._hash_of: list[bytes | None] = [None] * num_pages
        self._page_of: dict[bytes, int] = {}

    @property
    def num_free(self) -> int:
        return len(self._free)

    def holders(self) -> list[int]:
        return list(self._num_holders)

    def allocate(self, count: int) -> list[int] | None:
        """`count` pages, or None and nothing taken when there are not as many."""
        if count > len(self._free):
            return None
        return [self._take_oldest() for _ in range(count)]

    def _take_oldest(self) -> int:
        page, _ = self._free.popitem(last=False)
        known = self._hash_of[page]
        if known is not None:
            del self._page_of[known]
            self._hash_of[page] = None
        self._num_holders[page] = 1
        return page

    def free(self, pages: Sequence[int]) -> None:
        """Give pages up; those at the end of a sequence are handed out again first.

        Errors: ValueError when a page is not held: a double free would give it to two requests.
        """
        for page in reversed(pages):
            if self._num_holders[page] < 1:
                raise ValueError(f"Page {page} is freed but nobody holds it.")
            self._num_holders[page] -= 1
            if not self._num_holders[page]:
                self._free[page] = None

    def share(self, hashes: Sequence[bytes]) -> list[int]:
        """The pages of the longest known head of `hashes`, held once more each."""
        pages = []
        for page_hash in hashes:
            page = self._page_of.get(page_hash)
            if page is None:
                break
            if not self._num_holders[page]:
                del self._free[page]
            self._num_holders[page] += 1
            pages.append(page)
        return pages

    def register(self, page: int, page_hash: bytes) -> None:
        """Say what a held, full page holds. The first page registered for a content stays the one that is shared."""
        if page_hash not in self._page_of and self._hash_of[page] is None:
            self._page_of[page_hash] = page
            self._hash_of[page] = page_hash

    def forget(self) -> None:
        """Nothing is shared from now on."""
        self._page_of.clear()
        self._hash_of = [None] * self.num_pages


def page_hash(parent: bytes, tokens: Sequence[int], media: bytes = b"") -> bytes:
    """Of a full page: its tokens, whose pictures they stand for, and all before them. 128 bits: a collision would serve
    another's cache."""
    return blake2b(np.asarray(tokens, dtype=np.int64).tobytes() + media, key=parent, digest_size=16).digest()
