"""The inputs of one step, as arrays on the host: what a runner needs, and all that it is told."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastkernels.cache import CacheKind
from fastkernels.context import Phase
from fastkernels.engine.cache import CacheManager
from fastkernels.engine.multimodal import MediaPlanner, StepMedia, rope_positions
from fastkernels.engine.sampling_params import SamplingParams
from fastkernels.engine.scheduler import ScheduledRow

PENDING = -1
"""In token_ids: the token that the row sampled last, which only the device knows."""

Ints = NDArray[np.int64]
Array = NDArray[Any]


@dataclass(frozen=True)
class EnteringRow:
    """A request that takes a row of the device's per-request state with this step."""

    row: int
    params: SamplingParams
    seed: int
    prompt_token_ids: tuple[int, ...]
    output_token_ids: tuple[int, ...]
    encoder_input: Array | None = None


@dataclass(frozen=True)
class PromptPart:
    """Part of a prompt whose log-probabilities are wanted, with `num` of the likeliest beside each.

    first: index in the batch of the token that next_ids[0] follows.
    """

    row: int
    first: int
    next_ids: tuple[int, ...]
    num: int


@dataclass(frozen=True)
class StepInputs:
    """Sequences in batch order, single tokens first.

    rows, starts, counts: [num_seqs]; token_ids, positions: [num_tokens], PENDING where only the device knows.
    slot_mappings, block_tables: by kind of cache, [num_tokens] and [num_seqs, width].
    encoder_lens: [num_seqs], encoder states of each; encoder_slots: where those of entering rows are stored.
    sample_index: [num_samples], which tokens' logits are sampled; sample_rows: their rows.
    media: what is encoded and placed. rope_positions: [num_tokens] or [num_axes, num_tokens], where the model is told
    others than `positions`.
    """

    rows: Ints
    starts: Ints
    counts: Ints
    token_ids: Ints
    positions: Ints
    slot_mappings: dict[CacheKind, Ints]
    block_tables: dict[CacheKind, NDArray[np.int32]]
    sample_index: Ints
    sample_rows: Ints
    phase: Phase
    encoder_lens: Ints
    encoder_slots: Ints
    entering: tuple[EnteringRow, ...] = ()
    embedding_rows: frozenset[int] = frozenset()
    prompt_logprobs: tuple[PromptPart, ...] = ()
    media: StepMedia | None = None
    rope_positions: Ints | None = None

    @property
    def num_seqs(self) -> int:
        return len(self.rows)

    @property
    def num_tokens(self) -> int:
        return len(self.token_ids)

    @property
    def is_uniform_decode(self) -> bool:
        """Whether all that the step does is to read caches, add a token to each and sample: what graphs hold."""
        is_decode = self.phase is Phase.DECODE and len(self.sample_rows) == len(self.rows) and not self.embedding_rows
        is_flat = self.rope_positions is None or self.rope_positions.ndim == 1
        brings_nothing = not len(self.encoder_slots) and (self.media is None or not self.media.parts)
        return is_decode and is_flat and brings_nothing


def build_inputs(
    scheduled: Sequence[ScheduledRow],
    cache: CacheManager,
    entering: Sequence[EnteringRow] = (),
    planner: MediaPlanner | None = None,
) -> StepInputs:
    """The arrays of a step from the rows that the scheduler chose, which are put in batch order.

    planner: of requests with media, once there was one.
    """
    requests, *columns, sampled = zip(*scheduled, strict=True)
    rows, starts, counts = (np.array(column, dtype=np.int64) for column in columns)
    ends = counts.cumsum()
    if ends[-1] == len(rows):
        positions, token_rows = starts, rows
    else:
        positions = np.arange(ends[-1]) + np.repeat(starts - (ends - counts), counts)
        token_rows = np.repeat(rows, counts)
    pages, offsets = np.divmod(positions, cache.page_size)
    width = -(-int((starts + counts).max()) // cache.page_size)
    slots: dict[CacheKind, Ints] = {}
    tables: dict[CacheKind, NDArray[np.int32]] = {}
    encoder_lens = np.array([request.encoder_len for request in requests], dtype=np.int64)
    encoder_slots = np.empty(0, dtype=np.int64)
    for group, table in zip(cache.groups, cache.tables, strict=True):
        if group.kind is CacheKind.CROSS:
            tables[group.kind] = table[rows, : -(-int(encoder_lens.max()) // cache.page_size)]
            lens = dict(zip(rows.tolist(), encoder_lens.tolist(), strict=True))
            encoder_slots = _encoder_slots(table, entering, lens, cache.page_size)
            continue
        slots[group.kind] = table[token_rows, pages].astype(np.int64) * cache.page_size + offsets
        tables[group.kind] = table[rows, :width]
    samples = np.array(sampled, dtype=bool)
    return StepInputs(
        rows=rows,
        starts=starts,
        counts=counts,
        token_ids=_token_ids(scheduled),
        positions=positions,
        slot_mappings=slots,
        block_tables=tables,
        sample_index=(ends - 1)[samples],
        sample_rows=rows[samples],
        phase=_phase(starts, counts),
        encoder_lens=encoder_lens,
        encoder_slots=encoder_slots,
        entering=tuple(entering),
        embedding_rows=frozenset(s.row for s in scheduled if s.samples and s.request.is_embedding),
        prompt_logprobs=_prompt_parts(scheduled, (ends - counts).tolist()),
        media=None if planner is None else planner.plan(scheduled),
        rope_positions=None if planner is None else rope_positions(scheduled, positions),
    )


def _encoder_slots(
    table: NDArray[np.int32], entering: Sequence[EnteringRow], encoder_lens: dict[int, int], page_size: int
) -> Ints:
    """Where the encoder states of the entering rows go, in their order."""
    slots = [np.empty(0, dtype=np.int64)]
    for row in (e.row for e in entering):
        pages, offsets = np.divmod(np.arange(encoder_lens[row]), page_size)
        slots.append(table[row, pages].astype(np.int64) * page_size + offsets)
    return np.concatenate(slots)


def batch_order(scheduled: Sequence[ScheduledRow]) -> list[ScheduledRow]:
    """Single tokens first, so that layers with a state can split the batch at one place."""
    return sorted(scheduled, key=lambda s: s.num_tokens > 1)


def _token_ids(scheduled: Sequence[ScheduledRow]) -> Ints:
    ids: list[int] = []
    for request, _, start, num_tokens, _ in scheduled:
        tokens = request.tokens
        if num_tokens == 1:
            ids.append(tokens[start] if start < len(tokens) else PENDING)
        else:
            ids += tokens[start : start + num_tokens]
            ids += [PENDING] * (start + num_tokens - len(tokens))
    return np.array(ids, dtype=np.int64)


def _prompt_parts(scheduled: Sequence[ScheduledRow], firsts: Sequence[int]) -> tuple[PromptPart, ...]:
    parts = []
    for s, first in zip(scheduled, firsts, strict=True):
        request = s.request
        num = request.params.prompt_logprobs
        if num is not None and len(request.prompt_logprobs) < request.prompt_len - 1:
            end = min(s.start + s.num_tokens + 1, request.prompt_len)
            next_ids = tuple(request.tokens[s.start + 1 : end])
            if next_ids:
                parts.append(PromptPart(s.row, first, next_ids, num))
    return tuple(parts)


def _phase(starts: Ints, counts: Ints) -> Phase:
    """What the batch holds; a first chunk of a single token counts as prefill."""
    if not starts.any():
        return Phase.PREFILL
    if (counts == 1).all():
        return Phase.DECODE
    return Phase.MIXED
