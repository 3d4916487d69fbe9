"""A batch of variable-length sequences over scattered cache pages, drawn so that all its parts agree."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fastkernels.context import ForwardContext, Phase


@dataclass(frozen=True)
class Geometry:
    """query_lens, seq_lens: per sequence, new and cached + new tokens; pages: physical pages of each."""

    query_lens: tuple[int, ...]
    seq_lens: tuple[int, ...]
    pages: tuple[tuple[int, ...], ...]
    page_size: int
    num_pages: int
    phase: Phase

    @property
    def num_seqs(self) -> int:
        return len(self.query_lens)

    @property
    def num_tokens(self) -> int:
        return sum(self.query_lens)

    @property
    def num_decodes(self) -> int:
        """Sequences at the front that have a single new token."""
        return next((i for i, query_len in enumerate(self.query_lens) if query_len != 1), self.num_seqs)

    @property
    def max_pages(self) -> int:
        return max(len(pages) for pages in self.pages) + 1

    def query_start_loc(self) -> Tensor:
        starts = torch.tensor((0, *self.query_lens), dtype=torch.int32)
        return starts.cumsum(0, dtype=torch.int32)

    def seq_lens_tensor(self) -> Tensor:
        return torch.tensor(self.seq_lens, dtype=torch.int32)

    def block_table(self) -> Tensor:
        """[num_seqs, max_pages] int32; entries past a sequence's pages are -1."""
        table = torch.full((self.num_seqs, self.max_pages), -1, dtype=torch.int32)
        for row, pages in enumerate(self.pages):
            table[row, : len(pages)] = torch.tensor(pages, dtype=torch.int32)
        return table

    def positions(self) -> Tensor:
        ranges = [torch.arange(n - q, n) for q, n in zip(self.query_lens, self.seq_lens, strict=True)]
        return torch.cat(ranges)

    def slot_mapping(self) -> Tensor:
        slots = []
        for query, length, pages in zip(self.query_lens, self.seq_lens, self.pages, strict=True):
            position = torch.arange(length - query, length)
            page = torch.tensor(pages)[position // self.page_size]
            slots.append(page * self.page_size + position % self.page_size)
        return torch.cat(slots)

    def context(self) -> ForwardContext:
        return ForwardContext(
            query_start_loc=self.query_start_loc(),
            seq_lens=self.seq_lens_tensor(),
            block_table=self.block_table(),
            slot_mapping=self.slot_mapping(),
            max_query_len=max(self.query_lens),
            max_seq_len=max(self.seq_lens),
            phase=self.phase,
            num_decodes=self.num_decodes,
        )


def draw_geometry(
    generator: torch.Generator, phase: Phase, num_seqs: int, max_len: int, page_size: int, *, is_fixed: bool = False
) -> Geometry:
    """Lengths in [1, max_len], pages scattered with gaps; `is_fixed` gives every sequence `max_len`."""

    def integer(low: int, high: int) -> int:
        return int(torch.randint(low, high + 1, (1,), generator=generator))

    query_lens, seq_lens = [], []
    for index in range(num_seqs):
        length = max_len if is_fixed else integer(1, max_len)
        is_decode = phase is Phase.DECODE or (phase is Phase.MIXED and index % 2 == 0)
        if phase is Phase.PREFILL:
            query = length
        elif is_decode:
            query = 1
        else:
            query = length if is_fixed else integer(1, length)
        query_lens.append(query)
        seq_lens.append(length)
    counts = [-(-length // page_size) for length in seq_lens]
    num_pages = sum(counts) + 3
    order = torch.randperm(num_pages, generator=generator).tolist()
    pages, used = [], 0
    for count in counts:
        pages.append(tuple(order[used : used + count]))
        used += count
    return Geometry(tuple(query_lens), tuple(seq_lens), tuple(pages), page_size, num_pages, phase)


def redraw_pages(geometry: Geometry, generator: torch.Generator) -> Geometry:
    """Other pages for the same lengths: the shapes stay, the placement does not."""
    order = torch.randperm(geometry.num_pages, generator=generator).tolist()
    pages, used = [], 0
    for old in geometry.pages:
        pages.append(tuple(order[used : used + len(old)]))
        used += len(old)
    return Geometry(
        geometry.query_lens, geometry.seq_lens, tuple(pages), geometry.page_size, geometry.num_pages, geometry.phase
    )
