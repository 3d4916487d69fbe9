"""One step: rows of tokens in, the context of the paged cache around the model, sampled tokens out."""

from __future__ import annotations

import importlib
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fastkernels.context import ForwardContext, Phase, set_forward_context
from fastkernels.engine.request import Request
from fastkernels.engine.scheduler import ScheduledRow
from fastkernels.registry import find_ops

_MASK = (1 << 64) - 1


def sampler_class(name: str) -> type[nn.Module]:
    """An L1 sampling op, or what replaces it."""
    entry = find_ops(name)[0]
    return getattr(importlib.import_module(entry.module), entry.class_name)


def row_seed(seed: int, position: int) -> int:
    """The seed of one draw (splitmix64's finalizer): by request and position alone, so no batching changes it.

    Source: Steele, Lea & Flood 2014 (https://doi.org/10.1145/2660193.2660195).
    """
    z = (seed + (position + 1) * 0x9E3779B97F4A7C15) & _MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK
    return (z ^ (z >> 31)) >> 1


class Runner:
    """Holds the model and the sampling ops; knows pages, not requests' lives."""

    def __init__(self, model: nn.Module, device: torch.device, page_size: int, seed: int) -> None:
        self.model, self.device, self.page_size, self.seed = model, device, page_size, seed
        self.greedy = sampler_class("greedy_sample")()
        self.sample = sampler_class("top_k_top_p_sample")()

    @torch.inference_mode()
    def step(self, rows: Sequence[ScheduledRow]) -> dict[int, int]:
        """Compute the rows' tokens; the next token, by request id, of those rows that have caught up."""
        token_ids = [t for row in rows for t in _slice(row)]
        positions = [p for row in rows for p in _positions(row)]
        ends = [i for i, row in enumerate(rows) if row.samples]
        with set_forward_context(self._context(rows)):
            hidden = self.model(self._tensor(token_ids, torch.int64), self._tensor(positions, torch.int64))
            if not ends:
                return {}
            last = torch.tensor([row.num_tokens for row in rows]).cumsum(0)[ends] - 1
            logits = self.model.compute_logits(hidden[last.to(self.device)])  # type: ignore[operator]
            requests = [rows[i].request for i in ends]
            sampled = self._sample(logits, requests).tolist()
        return {request.request_id: token for request, token in zip(requests, sampled, strict=True)}

    def _context(self, rows: Sequence[ScheduledRow]) -> ForwardContext:
        num_tokens = [row.num_tokens for row in rows]
        seq_lens = [row.request.num_computed + row.num_tokens for row in rows]
        width = max(len(row.request.pages) for row in rows)
        table = [row.request.pages + [-1] * (width - len(row.request.pages)) for row in rows]
        starts = torch.tensor([0, *num_tokens]).cumsum(0).tolist()
        slots = [self._slot(row.request, p) for row in rows for p in _positions(row)]
        return ForwardContext(
            query_start_loc=self._tensor(starts, torch.int32),
            seq_lens=self._tensor(seq_lens, torch.int32),
            block_table=self._tensor(table, torch.int32),
            slot_mapping=self._tensor(slots, torch.int64),
            max_query_len=max(num_tokens),
            max_seq_len=max(seq_lens),
            phase=phase_of(rows),
        )

    def _slot(self, request: Request, position: int) -> int:
        return request.pages[position // self.page_size] * self.page_size + position % self.page_size

    def _sample(self, logits: Tensor, requests: Sequence[Request]) -> Tensor:
        params = [request.params for request in requests]
        if all(p.is_greedy for p in params):
            return self.greedy(logits)
        seeds = [row_seed(self._request_seed(request), request.num_tokens) for request in requests]
        return self.sample(
            logits,
            self._tensor([p.temperature for p in params], torch.float32),
            self._tensor([p.top_k for p in params], torch.int32),
            self._tensor([p.top_p for p in params], torch.float32),
            self._tensor(seeds, torch.int64),
        )

    def _request_seed(self, request: Request) -> int:
        given = request.params.seed
        return row_seed(self.seed, request.request_id) if given is None else given

    def _tensor(self, values: Sequence[object], dtype: torch.dtype) -> Tensor:
        return torch.tensor(values, dtype=dtype).to(self.device, non_blocking=True)


def phase_of(rows: Sequence[ScheduledRow]) -> Phase:
    """What the batch holds; a first chunk of a single token counts as prefill."""
    if all(row.request.num_computed == 0 for row in rows):
        return Phase.PREFILL
    if all(row.num_tokens == 1 for row in rows):
        return Phase.DECODE
    return Phase.MIXED


def _positions(row: ScheduledRow) -> range:
    return range(row.request.num_computed, row.request.num_computed + row.num_tokens)


def _slice(row: ScheduledRow) -> list[int]:
    return row.request.tokens[row.request.num_computed : row.request.num_computed + row.num_tokens]
