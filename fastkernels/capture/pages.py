"""The pages of one kind of cache that a call touches, and its tables renumbered to those alone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fastkernels.capture.tensors import copy_to
from fastkernels.spec import OpSpec, Role, TensorSpec


@dataclass(frozen=True)
class TouchedPages:
    """Old page numbers in ascending order: a page's new number is its place here, so doing it twice changes nothing."""

    pages: Tensor
    page_size: int

    @staticmethod
    def of(tables: Iterable[tuple[Tensor, Tensor | None]], slots: Iterable[Tensor], page_size: int) -> TouchedPages:
        """From page tables with their sequence lengths, and slot mappings; CPU tensors."""
        used = [table[_read_entries(table, lens, page_size)].long() for table, lens in tables]
        used += [slot[slot >= 0].long() // page_size for slot in slots]
        pages = torch.cat([u.flatten() for u in used]).unique() if used else torch.empty(0, dtype=torch.long)
        # An op may not take a cache of no pages: a call that stores nothing keeps the first.
        return TouchedPages(pages if pages.numel() else torch.zeros(1, dtype=torch.long), page_size)

    def renumber_table(self, table: Tensor, seq_lens: Tensor | None) -> Tensor:
        """Entries that are never read become -1."""
        is_read = _read_entries(table, seq_lens, self.page_size)
        new = torch.full_like(table, -1)
        new[is_read] = torch.searchsorted(self.pages, table[is_read].long()).to(table.dtype)
        return new

    def renumber_slots(self, slots: Tensor) -> Tensor:
        is_stored = slots >= 0
        new = torch.full_like(slots, -1)
        stored = slots[is_stored].long()
        page = torch.searchsorted(self.pages, stored // self.page_size)
        new[is_stored] = (page * self.page_size + stored % self.page_size).to(slots.dtype)
        return new

    def select(self, cache: Tensor, axis: int) -> Tensor:
        """The touched pages of a cache, copied to the CPU."""
        return copy_to(cache.detach().index_select(axis, self.pages.to(cache.device)), "cpu")


def _read_entries(table: Tensor, seq_lens: Tensor | None, page_size: int) -> Tensor:
    """Which entries of a page table are read: the first ceil(length / page_size) of a row."""
    is_read = table >= 0
    if seq_lens is None or table.dim() != 2:
        return is_read
    counts = -(-seq_lens.long() // page_size)
    return is_read & (torch.arange(table.shape[1])[None, :] < counts[:, None])


def page_axis(spec: TensorSpec) -> int:
    """The axis of a cache argument that counts pages; the next one is the page size.

    Errors: ValueError when the spec names none.
    """
    try:
        return spec.axes.index("num_pages")
    except ValueError:
        raise ValueError(f"A cache argument names an axis num_pages; this one has {spec.axes}.") from None


def arguments_of_role(spec: OpSpec, inputs: Mapping[str, Any], role: Role) -> dict[str, Tensor]:
    """The tensor arguments of a role, by name."""
    return {n: inputs[n] for n, t in spec.inputs.items() if t.role is role and isinstance(inputs.get(n), Tensor)}
