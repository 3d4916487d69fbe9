"""A case holds of every kind of cache what its call touches: pages of windows and encoder states, slots of states."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from fastkernels.cache import CacheKind, CacheSpec, bind_caches, flat_caches
from fastkernels.capture.digest import case_digest
from fastkernels.capture.record import Recorder
from fastkernels.capture.replay import build_op, call_op, replay
from fastkernels.capture.store import CaseSet
from fastkernels.context import ForwardContext, Phase, forward_context, set_forward_context
from fastkernels.op import Op
from fastkernels.spec import OpSpec, TensorSpec


class Remember(Op):
    """y = x + the slot's sum so far; the slot keeps the sum and the last row."""

    spec = OpSpec(
        inputs={"x": TensorSpec(("num_seqs", "width"))},
        outputs={"y": TensorSpec(("num_seqs", "width"))},
        mutates=("kv_cache",),
        reads_context=True,
    )

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width
        self.cache_spec = CacheSpec(CacheKind.STATE, state=(((width,), torch.float32), ((1, width), torch.float32)))
        self.kv_cache: tuple[Tensor, ...] | None = None

    def forward(self, x: Tensor) -> Tensor:
        context = forward_context()
        assert self.kv_cache is not None
        assert context.state_slots is not None
        assert context.has_initial_state is not None
        sums, last = self.kv_cache
        slots = context.state_slots.long()
        y = x + torch.where(context.has_initial_state[:, None], sums[slots], 0)
        sums[slots], last[slots] = y, x[:, None]
        return y


class Glance(Op):
    """The sum of the rows that each sequence sees in its window, and of its encoder states."""

    spec = OpSpec(
        inputs={"x": TensorSpec(("num_seqs", "width"))},
        outputs={"y": TensorSpec(("num_seqs", "width"))},
        mutates=("kv_cache",),
        reads_context=True,
    )

    def __init__(self, width: int, kind: CacheKind) -> None:
        super().__init__()
        self.width = width
        self.cache_spec = CacheSpec(kind, 1, width)
        self.kv_cache: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        context = forward_context()
        assert self.kv_cache is not None
        is_window = self.cache_spec.kind is CacheKind.WINDOW
        table = context.window_block_table if is_window else context.cross_block_table
        lens = context.seq_lens if is_window else context.cross_seq_lens
        assert table is not None
        assert lens is not None
        read = [row[: -(-int(n) // self.kv_cache.shape[2])] for row, n in zip(table, lens, strict=True)]
        rows = [self.kv_cache[0, row[row >= 0].long()].sum((0, 1, 2)) for row in read]
        return x + torch.stack(rows)


class Three(Op):
    """A layer of each kind."""

    spec = Remember.spec

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width
        self.parts = torch.nn.ModuleList(
            [Remember(width), Glance(width, CacheKind.WINDOW), Glance(width, CacheKind.CROSS)]
        )

    def forward(self, x: Tensor) -> Tensor:
        for part in self.parts:
            x = part(x)
        return x


CONTEXT = ForwardContext(
    query_start_loc=torch.tensor([0, 1, 2], dtype=torch.int32),
    seq_lens=torch.tensor([9, 1], dtype=torch.int32),
    block_table=torch.empty((2, 0), dtype=torch.int32),
    slot_mapping=torch.empty(0, dtype=torch.int64),
    max_query_len=1,
    max_seq_len=9,
    phase=Phase.DECODE,
    num_decodes=2,
    window_block_table=torch.tensor([[-1, 6, 3], [5, 1, 1]], dtype=torch.int32),
    window_slot_mapping=torch.tensor([12, 20]),
    cross_block_table=torch.tensor([[8, 2], [4, 0]], dtype=torch.int32),
    cross_seq_lens=torch.tensor([5, 3], dtype=torch.int32),
    state_slots=torch.tensor([4, 2], dtype=torch.int32),
    has_initial_state=torch.tensor([True, False]),
)


def record() -> tuple[list[object], Tensor]:
    generator = torch.Generator().manual_seed(0)
    with Recorder() as recorder:
        op = Three(3)
        states = (torch.randn(7, 3, generator=generator), torch.randn(7, 1, 3, generator=generator))
        pages = [torch.randn(2, 9, 4, 1, 3, generator=generator) for _ in range(2)]
        bind_caches(op, [states, *pages])
        with set_forward_context(CONTEXT):
            out = op(torch.randn(2, 3, generator=generator))
    return recorder.cases, out  # type: ignore[return-value]


def test_touched_slots_and_pages_are_kept_and_renumbered_in_order() -> None:
    cases, out = record()
    (case,) = (c for c in cases if c.op == "three")  # type: ignore[attr-defined]
    assert [tuple(c.shape) for c in case.caches] == [(2, 3), (2, 1, 3), (2, 3, 4, 1, 3), (2, 3, 4, 1, 3)]
    context = case.context
    assert context.state_slots.tolist() == [1, 0]
    assert context.window_block_table.tolist() == [[-1, 2, 0], [1, -1, -1]]
    assert context.window_slot_mapping.tolist() == [0, 4]
    assert context.cross_block_table.tolist() == [[2, 0], [1, -1]]
    assert list(case.after) == ["kv_cache.0", "kv_cache.1", "kv_cache.2", "kv_cache.3"]
    again = replay(case, op_class=Three)
    assert again.digest == case.outputs_digest
    assert torch.equal(again.outputs[0], out)


def test_a_layer_with_a_state_replays_alone_and_after_being_stored(tmp_path: object) -> None:
    cases, _ = record()
    (case,) = (c for c in cases if c.op == "remember")  # type: ignore[attr-defined]
    assert not torch.equal(case.after["kv_cache.0"], case.caches[0])
    CaseSet([case]).save(tmp_path)  # type: ignore[arg-type]
    (loaded,) = CaseSet.load(tmp_path)  # type: ignore[arg-type]
    assert case_digest(loaded) == case_digest(case)
    assert replay(loaded, op_class=Remember).digest == case.outputs_digest


def test_compaction_done_twice_changes_nothing() -> None:
    cases, _ = record()
    (case,) = (c for c in cases if c.op == "three")  # type: ignore[attr-defined]
    with Recorder(["three"]) as recorder:
        call_op(build_op(case, op_class=Three), case)
    assert case_digest(recorder.cases[0]) == case_digest(case)


def test_negative_slots_stay_negative_and_states_may_be_bound_one_by_one() -> None:
    op = Remember(3)
    bind_caches(op, [torch.zeros(4, 3), torch.zeros(4, 1, 3)])
    assert isinstance(op.kv_cache, tuple)
    assert [tuple(tensor.shape) for _, tensor in flat_caches(op)] == [(4, 3), (4, 1, 3)]
    with Recorder() as recorder:
        part = Remember(3)
        bind_caches(part, [(torch.zeros(4, 3), torch.zeros(4, 1, 3))])
        with set_forward_context(replace(CONTEXT, state_slots=torch.tensor([3, -1], dtype=torch.int32))):
            part(torch.ones(2, 3))
    assert recorder.cases[0].context.state_slots.tolist() == [0, -1]  # type: ignore[union-attr]
