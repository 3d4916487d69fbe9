"""A batch of variable-length sequences over scattered cache pages, drawn so that all its parts agree."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import islice

import torch
from torch import Tensor

from fastkernels.context import ForwardContext, Phase


@dataclass(frozen=True)
class Geometry:
    """query_lens, seq_lens: per sequence, new and cached + new tokens; pages: physical pages of each. A sequence of
    length 0 is a row that pads a batch of decodes: it has one new token of slot -1, and no page.

    are_ends_free: the first and the last page are nobody's, which an entry behind a sequence's end (-1) becomes when it
    is clamped or taken from behind.
    """

    query_lens: tuple[int, ...]
    seq_lens: tuple[int, ...]
    pages: tuple[tuple[int, ...], ...]
    page_size: int
    num_pages: int
    phase: Phase
    are_ends_free: bool = False

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
        return torch.cat(ranges).clamp_min(0)

    def slot_mapping(self) -> Tensor:
        slots = []
        for query, length, pages in zip(self.query_lens, self.seq_lens, self.pages, strict=True):
            position = torch.arange(length - query, length)
            if not length:
                slots.append(torch.full((query,), -1))
                continue
            page = torch.tensor(pages)[position // self.page_size]
            slots.append(page * self.page_size + position % self.page_size)
        return torch.cat(slots)

    @property
    def num_slots(self) -> int:
        return self.num_seqs + 2

    def state_slots(self) -> Tensor:
        """A slot for each sequence; they move with the pages."""
        generator = torch.Generator().manual_seed(hash(self.pages) & 0xFFFFFFFF)
        return torch.randperm(self.num_slots, generator=generator)[: self.num_seqs].int()

    def has_initial_state(self) -> Tensor:
        return torch.tensor([n > q for q, n in zip(self.query_lens, self.seq_lens, strict=True)])

    def context(self, has_state: bool = False, has_cross: bool = False) -> ForwardContext:
        """has_state: whether a layer keeps states. has_cross: whether one sees an encoder's, which then lie where the
        sequences' tokens do, those of the new ones at their slots."""
        return ForwardContext(
            query_start_loc=self.query_start_loc(),
            seq_lens=self.seq_lens_tensor(),
            block_table=self.block_table(),
            slot_mapping=self.slot_mapping(),
            max_query_len=max(self.query_lens),
            max_seq_len=max(self.seq_lens),
            phase=self.phase,
            num_decodes=self.num_decodes,
            state_slots=self.state_slots() if has_state else None,
            has_initial_state=self.has_initial_state() if has_state else None,
            cross_block_table=self.block_table() if has_cross else None,
            cross_seq_lens=self.seq_lens_tensor() if has_cross else None,
            cross_slot_mapping=self.slot_mapping() if has_cross else None,
        )


def draw_geometry(
    generator: torch.Generator,
    phase: Phase,
    num_seqs: int,
    max_len: int,
    page_size: int,
    *,
    is_fixed: bool = False,
    is_ragged: bool = False,
    num_front: int | None = None,
    is_padded: bool = False,
) -> Geometry:
    """Lengths in [1, max_len], pages scattered with gaps.

    is_fixed: every sequence has `max_len`. is_ragged: one of two or more has `max_len`, another a single token, and the
    first and the last page are nobody's. num_front: sequences at the front of a mixed batch that have one new token; of
    those behind the next one, which has more, a quarter has one too. Left out: every other one has. is_padded: behind
    them is one of length 0.
    """

    def integer(low: int, high: int) -> int:
        return int(torch.randint(low, high + 1, (1,), generator=generator))

    given = dict.fromkeys(range(num_seqs), max_len) if is_fixed else {}
    if is_ragged:
        longest, shortest = torch.randperm(num_seqs, generator=generator)[:2].tolist()
        given = {longest: max_len, shortest: 1}
    query_lens, seq_lens = [], []
    for index in range(num_seqs):
        length = given.get(index) or integer(1, max_len)
        is_decode = phase is Phase.DECODE
        if phase is Phase.MIXED:
            is_behind = num_front is not None and index > num_front and integer(0, 3) == 0
            is_decode = index % 2 == 0 if num_front is None else index < num_front or is_behind
        if phase is Phase.PREFILL:
            query = length
        elif is_decode:
            query = 1
        else:
            query = length if is_fixed else integer(min(2, length) if index == num_front else 1, length)
        query_lens.append(query)
        seq_lens.append(length)
    if is_padded:
        query_lens.append(1)
        seq_lens.append(0)
    counts = [-(-length // page_size) for length in seq_lens]
    num_pages = sum(counts) + 3
    pages = _place(counts, num_pages, is_ragged, generator)
    return Geometry(tuple(query_lens), tuple(seq_lens), pages, page_size, num_pages, phase, is_ragged)


def redraw_pages(geometry: Geometry, generator: torch.Generator) -> Geometry:
    """Other pages for the same lengths: the shapes stay, the placement does not."""
    counts = [len(pages) for pages in geometry.pages]
    return replace(geometry, pages=_place(counts, geometry.num_pages, geometry.are_ends_free, generator))


def _place(
    counts: Sequence[int], num_pages: int, are_ends_free: bool, generator: torch.Generator
) -> tuple[tuple[int, ...], ...]:
    """`counts` of the pages, in any order, none twice."""
    order = torch.randperm(num_pages, generator=generator).tolist()
    if are_ends_free:
        order = [page for page in order if 0 < page < num_pages - 1]
    pages = iter(order)
    return tuple(tuple(islice(pages, count)) for count in counts)
