"""Sequences over scattered pages, for tests that run models without the engine."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fastkernels.cache import CacheKind, CacheSpec, bind_caches, cached_layers
from fastkernels.context import ForwardContext, Phase, set_forward_context

PAGE_SIZE = 16


def make_context(
    query_lens: Sequence[int],
    seq_lens: Sequence[int],
    pages: Tensor,
    phase: Phase,
    page_size: int = PAGE_SIZE,
    state_slots: Tensor | None = None,
) -> ForwardContext:
    """pages: [num_seqs, max_pages], -1 behind a sequence's last page; state_slots: of layers that keep states."""
    slots = [
        int(pages[i, position // page_size]) * page_size + position % page_size
        for i, (n, total) in enumerate(zip(query_lens, seq_lens, strict=True))
        for position in range(total - n, total)
    ]
    starts = torch.tensor([0, *query_lens]).cumsum(0)
    return ForwardContext(
        query_start_loc=starts.int(),
        seq_lens=torch.tensor(seq_lens, dtype=torch.int32),
        block_table=pages.int(),
        slot_mapping=torch.tensor(slots, dtype=torch.int64),
        max_query_len=max(query_lens),
        max_seq_len=max(seq_lens),
        phase=phase,
        num_decodes=next((i for i, n in enumerate(query_lens) if n != 1), len(query_lens)),
        state_slots=None if state_slots is None else state_slots.int(),
        has_initial_state=torch.tensor([total > n for n, total in zip(query_lens, seq_lens, strict=True)]),
    )


def shapes_of(spec: CacheSpec, num_pages: int, num_slots: int) -> list[tuple[tuple[int, ...], torch.dtype | None]]:
    """Of a layer's tensors: pages in the model's dtype (None), states in their own."""
    if spec.kind is CacheKind.STATE:
        return [((num_slots, *shape), dtype) for shape, dtype in spec.state]
    return [(spec.shape(num_pages, PAGE_SIZE), None)]


def scattered_pages(seq_lens: Sequence[int], seed: int, page_size: int = PAGE_SIZE) -> tuple[Tensor, int]:
    """(a block table of pages in random order, number of pages in the pool); some pages belong to nobody."""
    counts = [-(-n // page_size) for n in seq_lens]
    num_pages = sum(counts) + 3
    order = torch.randperm(num_pages, generator=torch.Generator().manual_seed(seed)).tolist()
    table = torch.full((len(counts), max(counts)), -1)
    for i, count in enumerate(counts):
        table[i, :count] = torch.tensor([order.pop() for _ in range(count)])
    return table, num_pages


class PagedRun:
    """Token sequences that grow through a model's paged cache, in any batches."""

    def __init__(self, model: nn.Module, sequences: Sequence[Sequence[int]], max_len: int, seed: int) -> None:
        self.model = model
        self.tokens = [list(s) for s in sequences]
        self.num_computed = [0] * len(sequences)
        self.pages, num_pages = scattered_pages([max_len] * len(sequences), seed)
        some = next(model.parameters())
        self.device = some.device
        specs = [layer.cache_spec for layer in cached_layers(model)]
        shapes = [one for spec in specs for one in shapes_of(spec, num_pages, len(sequences))]
        # NaN where nothing was stored: a read of a page that is not the sequence's own shows in the logits.
        fill = [torch.full(shape, float("nan"), dtype=dtype or some.dtype) for shape, dtype in shapes]
        bind_caches(model, [cache.to(some.device) for cache in fill])

    def step(self, new: dict[int, int]) -> dict[int, Tensor]:
        """Compute the next new[i] tokens of each sequence i in one batch; logits of those tokens by sequence."""
        rows = list(new)
        starts = [self.num_computed[i] for i in rows]
        ends = [start + new[i] for i, start in zip(rows, starts, strict=True)]
        is_decode = all(n == 1 for n in new.values()) and all(starts)
        phase = Phase.PREFILL if not any(starts) else Phase.DECODE if is_decode else Phase.MIXED
        context = make_context(list(new.values()), ends, self.pages[rows], phase, state_slots=torch.tensor(rows))
        spans = list(zip(rows, starts, ends, strict=True))
        ids = torch.tensor([t for i, start, end in spans for t in self.tokens[i][start:end]])
        positions = torch.cat([torch.arange(start, end) for _, start, end in spans])
        with torch.no_grad(), set_forward_context(context.to(self.device)):
            logits = self.model.compute_logits(self.model(ids.to(self.device), positions.to(self.device)))
        for i, end in zip(rows, ends, strict=True):
            self.num_computed[i] = end
        return dict(zip(rows, logits.split(list(new.values())), strict=True))
