"""CUDA graphs of decode steps: one for each padded number of sequences, captured when it is first needed."""

from __future__ import annotations

import weakref
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from fastkernels.cache import CacheKind
from fastkernels.context import Phase, set_forward_context
from fastkernels.engine.batch import Array, StepInputs
from fastkernels.engine.cache import table_width
from fastkernels.engine.runners.replay import renew_cublas_workspaces, unowned
from fastkernels.engine.staging import ALIGNMENT, packed_bytes, views
from fastkernels.kernels.backend import step_graph

if TYPE_CHECKING:
    from fastkernels.engine.runners.autoregressive import AutoregressiveRunner

_MAX_GRAPH_SEQS = 512
_NUM_COUNTERS = 4096
"""More than sequences times key heads wherever a kernel has too few of them to fill a GPU."""


def graph_sizes(max_num_seqs: int) -> tuple[int, ...]:
    """1, 2, 4, then steps of 8 up to 256 and of 16 above: at most a few padding rows in any step."""
    sizes = [1, 2, 4, *range(8, 256, 8), *range(256, _MAX_GRAPH_SEQS + 1, 16)]
    most = min(max_num_seqs, _MAX_GRAPH_SEQS)
    return (*(size for size in sizes if size < most), most)


@dataclass(frozen=True)
class _Captured:
    graph: torch.cuda.CUDAGraph
    logits: Tensor
    greedy_ids: Tensor
    rows: Tensor
    positions: Tensor


@dataclass(frozen=True)
class Replayed:
    """logits: [num_seqs, vocab_size]; greedy_ids, rows, positions of the drawn tokens: [num_seqs]."""

    logits: Tensor
    greedy_ids: Tensor
    rows: Tensor
    positions: Tensor


class GraphPool:
    """Replays the model and its logits from static buffers; all graphs share one pool of memory.

    runner: lives at least as long as the pool.
    """

    def __init__(self, runner: AutoregressiveRunner, kinds: Sequence[CacheKind]) -> None:
        # The runner holds the pool: a cycle would keep weights and caches on the GPU until a collection finds it.
        self.runner: AutoregressiveRunner = weakref.proxy(runner)
        self.kinds = list(kinds)
        limits, device = runner.limits, runner.device
        self.sizes = limits.graph_sizes
        self.captured: dict[int, _Captured] = {}
        # On "meta", where steps are run for the names of their kernels alone, nothing is captured.
        self._pool = torch.cuda.graph_pool_handle() if device.type != "meta" else None
        most = self.sizes[-1]
        self.stored = [kind for kind in kinds if kind is not CacheKind.CROSS]
        self._pad_row = limits.max_num_seqs
        lens = (limits.page_size, limits.max_model_len, limits.max_encoder_len)
        shapes = {kind: (most, table_width(kind, *lens)) for kind in self.kinds}
        self._tables = {k: torch.zeros(shape, dtype=torch.int32, device=device) for k, shape in shapes.items()}
        num_bytes = packed_bytes(_padded(_fields(None, self.stored), most, self._pad_row))
        num_bytes += sum(table.numel() * 4 + ALIGNMENT for table in self._tables.values())
        self._static = torch.zeros(num_bytes, dtype=torch.uint8, device=device)
        self._starts = torch.arange(most + 1, dtype=torch.int32, device=device)
        self._counters = torch.zeros(_NUM_COUNTERS, dtype=torch.int32, device=device)

    def size_for(self, inputs: StepInputs) -> int | None:
        """The graph for a step; None where it has to run eagerly."""
        if not inputs.is_uniform_decode or inputs.num_seqs > self.sizes[-1] or inputs.prompt_logprobs:
            return None
        return self.sizes[bisect_left(self.sizes, inputs.num_seqs)]

    def warm(self, size: int) -> None:
        """Capture a size; whoever wants several begins with the largest, into whose memory the smaller ones fit.

        On "meta" the step is run.
        """
        with torch.inference_mode(), torch.cuda.stream(self.runner.stream):
            if self.runner.device.type != "meta":
                self._get(size)
                return
            with step_graph(self._counters):
                self._step(size)[0]()

    def replay(self, inputs: StepInputs, size: int) -> Replayed:
        """Run a decode step; every row's likeliest token is noted as its last."""
        captured = self._get(size)
        num = inputs.num_seqs
        tables = [np.ascontiguousarray(inputs.block_tables[kind]) for kind in self.kinds]
        arrays = [*_padded(_fields(inputs, self.stored), size, self._pad_row), *tables]
        placed = self.runner.staging.put(arrays, self._static)
        for kind, table in zip(self.kinds, placed[-len(tables) :] if tables else (), strict=True):
            self._tables[kind][: table.shape[0], : table.shape[1]].copy_(table)
        captured.graph.replay()
        results = (captured.logits, captured.greedy_ids, captured.rows, captured.positions)
        return Replayed(*(t[:num] for t in results))

    def close(self) -> None:
        """Destroy the graphs."""
        for captured in self.captured.values():
            captured.graph.reset()
        self.captured.clear()

    def _get(self, size: int) -> _Captured:
        if size not in self.captured:
            self.captured[size] = self._capture(size)
        return self.captured[size]

    def _step(self, size: int) -> tuple[Callable[[], tuple[Tensor, Tensor]], Tensor, Tensor]:
        """A step over the static buffers, which are padding from now on: it gives logits and each row's likeliest
        token. Then the places of its rows and of the drawn tokens' positions."""
        from fastkernels.engine.runners.autoregressive import step_context

        runner = self.runner
        empty = _padded(_fields(None, self.stored), size, self._pad_row)
        runner.staging.put(empty, self._static)
        ids, positions, rows, seq_lens, drawn, cross_lens, state_slots, has_state, *slots = views(empty, self._static)
        context = step_context(
            dict(zip(self.stored, slots, strict=True)),
            {kind: table[:size] for kind, table in self._tables.items()},
            self._starts[: size + 1],
            seq_lens,
            *((state_slots, has_state) if runner.limits.has_state else (None, None)),
            cross=(cross_lens, None) if CacheKind.CROSS in self.kinds else None,
            max_query_len=1,
            max_seq_len=runner.limits.max_model_len,
            phase=Phase.DECODE,
            num_decodes=size,
        )

        def forward() -> tuple[Tensor, Tensor]:
            known = torch.where(ids < 0, runner.last_token[rows], ids)
            with set_forward_context(context):
                logits = runner.model.compute_logits(runner.model(known, positions))  # type: ignore[operator]
                likeliest = runner.sampler.greedy(logits)
            runner.last_token.index_copy_(0, rows, likeliest)
            return logits, likeliest

        return forward, rows, drawn

    def _capture(self, size: int) -> _Captured:
        forward, rows, drawn = self._step(size)
        graph = torch.cuda.CUDAGraph()
        with step_graph(self._counters):
            forward()  # compiles what is compiled at first use: a capture must not
            torch.cuda.synchronize()
            renew_cublas_workspaces()
            # NCCL and the server have threads of their own, whose CUDA calls must not end the capture.
            graph.capture_begin(pool=self._pool, capture_error_mode="thread_local")
            try:
                logits, likeliest = forward()
            finally:
                graph.capture_end()
        return _Captured(graph, unowned(logits), unowned(likeliest), rows, drawn)


_Field = tuple[Array | None, int | None, type]
"""Values, what fills the padding (None: the padding row), dtype."""


def _fields(inputs: StepInputs | None, stored: Sequence[CacheKind]) -> list[_Field]:
    """ids, positions, rows, sequence lengths, positions of the drawn tokens, encoder lengths, state slots, whether they
    hold anything, then slots by kind; without inputs a batch of padding."""
    if inputs is None:
        values: list[Array | None] = [None] * (8 + len(stored))
    else:
        ends = inputs.positions + 1
        turned = inputs.positions if inputs.rope_positions is None else inputs.rope_positions
        values = [inputs.token_ids, turned, inputs.rows, ends, ends, inputs.encoder_lens, inputs.rows]
        values += [inputs.starts > 0, *(inputs.slot_mappings[kind] for kind in stored)]
    fills = [0, 0, None, 0, 0, 0, None, 1, *([-1] * len(stored))]
    dtypes: list[type] = [np.int64] * 3 + [np.int32, np.int64, np.int32, np.int32, np.bool_] + [np.int64] * len(stored)
    return list(zip(values, fills, dtypes, strict=True))


def _padded(fields: Sequence[_Field], size: int, pad_row: int) -> list[Array]:
    arrays = []
    for values, fill, dtype in fields:
        array: Array = np.full(size, pad_row if fill is None else fill, dtype=dtype)
        if values is not None:
            array[: len(values)] = values
        arrays.append(array)
    return arrays
