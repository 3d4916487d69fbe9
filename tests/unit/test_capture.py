"""Recording: what a case holds, that nothing changes by it, and that replaying it gives it back."""

from __future__ import annotations

import gc
import weakref
from collections import Counter
from functools import cache
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from fastkernels import adversarial, loading
from fastkernels.cache import CacheKind, CacheSpec
from fastkernels.capture.case import Case
from fastkernels.capture.digest import case_digest
from fastkernels.capture.record import Recorder, recapture
from fastkernels.capture.replay import build_op, call_op, case_inputs, replay
from fastkernels.capture.run import capture
from fastkernels.capture.store import CaseSet
from fastkernels.context import ForwardContext, Phase, forward_context, set_forward_context
from fastkernels.engine.llm import LLM
from fastkernels.engine.sampling_params import SamplingParams
from fastkernels.errors import CaseFileError, UnknownNameError, UnsupportedError, UsageError
from fastkernels.op import Op
from fastkernels.registry import ops
from fastkernels.sets import resolve_set
from fastkernels.spec import Compare, OpSpec, Role, TensorSpec
from fastkernels.tasks.baseline.L1.linear import Linear
from fastkernels.tasks.baseline.L1.rms_norm import RMSNorm
from fastkernels.workloads import Workload, find_workload

TWINS = Path(adversarial.__file__).with_name("twins")
WORKLOAD = Workload("mixture", num_requests=6, input_len=40, output_len=6)


@cache
def captured(temperature: float = 0.0) -> tuple[CaseSet, Counter[tuple[str, Phase | None]], list[tuple[int, ...]]]:
    cases, calls, outputs = capture(
        "tiny-llama", WORKLOAD, device="cpu", temperature=temperature, max_num_batched_tokens=64
    )
    return cases, calls, [output.outputs[0].token_ids for output in outputs]


def all_cases() -> list[Case]:
    return list(captured()[0]) + list(captured(0.7)[0].filter(op="top_k_top_p_sample"))


class Scale(Op):
    """y = x * weight * factor; adds the sum of y to `total`, in place."""

    spec = OpSpec(
        inputs={
            "x": TensorSpec(("...", "size")).strided(),
            "total": TensorSpec(("size",), compare=Compare.VALUES),
            "factor": TensorSpec(role=Role.SCALAR, dtype="python"),
        },
        outputs={"y": TensorSpec(("...", "size"))},
        mutates=("total",),
    )

    def __init__(self, size: int, *, start: float = 1.0) -> None:
        super().__init__()
        self.size = size
        self.weight = nn.Parameter(torch.full((size,), start))

    def forward(self, x: Tensor, total: Tensor, factor: float = 2.0) -> Tensor:
        y = x * self.weight * factor
        total += y.reshape(-1, self.size).sum(0)
        return y


class Lookup(Op):
    """out[i] = the sum of the cached rows of sequence i; stores x first. A small layer with a cache of its own."""

    spec = OpSpec(
        inputs={"x": TensorSpec(("num_tokens", "width"))},
        outputs={"out": TensorSpec(("num_seqs", "width"))},
        mutates=("kv_cache",),
        reads_context=True,
    )

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width
        self.cache_spec = CacheSpec(CacheKind.FULL, 1, width)
        self.kv_cache: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        context, cache = forward_context(), self.kv_cache
        assert cache is not None
        page_size = cache.shape[2]
        stored = context.slot_mapping >= 0
        slots = context.slot_mapping[stored]
        cache[0, slots // page_size, slots % page_size, 0] = x[stored]
        rows = []
        for table, length in zip(context.block_table.tolist(), context.seq_lens.tolist(), strict=True):
            rows.append(sum(cache[0, table[j // page_size], j % page_size, 0] for j in range(length)))
        return torch.stack(rows)


def lookup_context(num_pages: int = 9) -> ForwardContext:
    """Two sequences of 5 and 3 tokens in pages 7, 2 and 5 of 4 slots; the rest of the table is rubbish."""
    return ForwardContext(
        query_start_loc=torch.tensor([0, 1, 2], dtype=torch.int32),
        seq_lens=torch.tensor([5, 3], dtype=torch.int32),
        block_table=torch.tensor([[7, 2, 8], [5, 0, 1]], dtype=torch.int32),
        slot_mapping=torch.tensor([8, -1]),
        max_query_len=1,
        max_seq_len=5,
        phase=Phase.DECODE,
    )


def record_lookup() -> tuple[Case, Tensor]:
    generator = torch.Generator().manual_seed(0)
    with Recorder() as recorder:
        op = Lookup(3)
        op.kv_cache = torch.randn(2, 9, 4, 1, 3, generator=generator)
        with set_forward_context(lookup_context()):
            out = op(torch.randn(2, 3, generator=generator))
    return recorder.cases[0], out


def test_recording_keeps_init_inputs_params_and_mutations() -> None:
    with Recorder() as recorder:
        op = Scale(4, start=3.0)
        total = torch.ones(4)
        op(torch.ones(2, 4), total)
    (case,) = recorder.cases
    assert (case.op, case.init) == ("scale", {"size": 4, "start": 3.0})
    assert list(case.inputs) == ["x", "total", "factor"]
    assert case.inputs["factor"] == 2.0
    assert torch.equal(case.inputs["total"], torch.ones(4))
    assert torch.equal(case.after["total"], torch.full((4,), 13.0))
    assert torch.equal(case.params["weight"], torch.full((4,), 3.0))
    assert (case.count, case.callers, case.phase) == (1, ("Scale",), None)


def test_replay_of_a_mutating_op_equals_and_leaves_the_case_alone() -> None:
    with Recorder() as recorder:
        Scale(4, start=3.0)(torch.randn(3, 8)[:, 2:6], torch.ones(4), factor=0.3)
    (case,) = recorder.cases
    before = case_digest(case)
    again = replay(case, op_class=Scale)
    assert again.digest == case.outputs_digest
    assert torch.equal(again.after["total"], case.after["total"])
    assert case_digest(case) == before
    assert case.inputs["x"].stride() == (8, 1)


def test_only_touched_pages_are_kept_and_renumbered_in_order() -> None:
    case, out = record_lookup()
    assert case.caches[0].shape == (2, 3, 4, 1, 3)
    assert case.context is not None
    assert case.context.block_table.tolist() == [[2, 0, -1], [1, -1, -1]]
    assert case.context.slot_mapping.tolist() == [0, -1]
    assert list(case.after) == ["kv_cache.0"]
    again = replay(case, op_class=Lookup)
    assert again.digest == case.outputs_digest
    assert torch.equal(again.outputs[0], out)


def test_page_compaction_done_twice_changes_nothing() -> None:
    case, _ = record_lookup()
    with Recorder() as recorder:
        call_op(build_op(case, op_class=Lookup), case)
    assert case_digest(recorder.cases[0]) == case_digest(case)


def test_equal_keys_are_one_case_with_count_and_callers() -> None:
    class Two(Op):
        spec = OpSpec(inputs={"x": TensorSpec(("...", "size"))}, outputs={"y": TensorSpec(("...", "size"))})

        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = RMSNorm(4), RMSNorm(4)

        def forward(self, x: Tensor) -> Tensor:
            return self.second(self.second(self.first(x)))

    with Recorder(["rms_norm"]) as recorder:
        two = Two()
        two(torch.randn(3, 4))
        two(torch.randn(5, 4))
    assert [(c.count, c.callers) for c in recorder.cases] == [(3, ("second", "first")), (3, ("second", "first"))]
    assert [c.inputs["x"].shape[0] for c in recorder.cases] == [3, 5]


def test_keep_takes_so_many_different_values_per_key() -> None:
    with Recorder([RMSNorm], keep=2) as recorder:
        op = RMSNorm(4)
        for value in (1.0, 1.0, 2.0, 3.0):
            op(torch.full((2, 4), value))
    assert [c.inputs["x"][0, 0].item() for c in recorder.cases] == [1.0, 2.0]
    assert [c.count for c in recorder.cases] == [4, 4]
    assert recorder.calls == {("rms_norm", None): 4}


def test_recording_ends_with_the_context() -> None:
    with Recorder() as recorder:
        op = RMSNorm(4)
    op(torch.ones(1, 4))
    RMSNorm(8)(torch.ones(1, 8))
    assert recorder.cases == []
    assert not {"__call__"} & vars(Op).keys()


def test_recordings_do_not_nest() -> None:
    with Recorder(), pytest.raises(UsageError, match="do not nest"), Recorder():
        pass
    with Recorder() as recorder:
        RMSNorm(4)(torch.ones(1, 4))
    assert len(recorder.cases) == 1


def test_op_built_before_the_recording_is_refused() -> None:
    op = RMSNorm(4)
    with pytest.raises(UnsupportedError, match="Build the model inside"), Recorder():
        op(torch.ones(1, 4))


def test_argument_that_a_case_cannot_hold_is_named() -> None:
    class Listed(Op):
        spec = OpSpec(inputs={"parts": TensorSpec(dtype="python")}, outputs={})

        def forward(self, parts: list[Tensor]) -> None:
            return None

    with pytest.raises(UnsupportedError, match="listed is called with parts of type list"), Recorder():
        Listed()([torch.ones(1)])


def test_nothing_outlives_the_call() -> None:
    """Inputs, outputs and caches of the model are gone once the caller drops them: cases are copies."""
    with Recorder() as recorder:
        op = Scale(4)
        x, total = torch.ones(2, 4), torch.zeros(4)
        y = op(x, total)
        references = [weakref.ref(t) for t in (x, total, y)]
        del x, total, y
        gc.collect()
        assert [r() for r in references] == [None, None, None]
    assert len(recorder.cases) == 1


def test_capture_changes_no_token() -> None:
    llm = LLM("tiny-llama", device="cpu", max_num_batched_tokens=64)
    params = SamplingParams(temperature=0, max_tokens=WORKLOAD.output_len, ignore_eos=True)
    plain = llm.generate(WORKLOAD.token_ids(llm.tokenizer), params)
    assert captured()[2] == [output.outputs[0].token_ids for output in plain]
    assert len({tuple(tokens) for tokens in captured()[2]}) == len(plain)


def test_capture_meets_every_level_and_phase() -> None:
    cases, calls, _ = captured()
    levels = {(ops()[case.op].level, case.phase) for case in cases}
    assert levels == {(level, phase) for level in (1, 2, 3, 4) for phase in Phase}
    num_calls = Counter[str]()
    for (op, _), count in calls.items():
        num_calls[op] += count
    assert num_calls["llama_for_causal_lm"] == 9
    assert num_calls["rms_norm"] == 5 * num_calls["llama_for_causal_lm"]
    assert num_calls["linear"] == 9 * num_calls["llama_for_causal_lm"]
    layers = [case for case in cases if case.op == "llama_decoder_layer" and case.phase is Phase.MIXED]
    assert {caller for case in layers for caller in case.callers} == {"model.layers.0", "model.layers.1"}
    assert all(case.context is not None and case.caches for case in layers)


@pytest.mark.parametrize("case", all_cases(), ids=lambda c: f"{c.op}-{c.phase}-{c.shapes()}".replace(" ", "-"))
def test_replay_equals_bit_for_bit_and_is_captured_identically(case: Case) -> None:
    assert case.outputs_digest
    assert replay(case).digest == case.outputs_digest
    again = recapture(case)
    assert case_digest(again) == case_digest(case)
    assert (again.phase, again.count, again.callers) == (case.phase, case.count, case.callers)


def test_replay_from_disk_equals_bit_for_bit(tmp_path: Path) -> None:
    captured()[0].save(tmp_path)
    for case in CaseSet.load(tmp_path):
        assert replay(case).digest == case.outputs_digest


def test_capture_of_the_replays_is_the_same_set(tmp_path: Path) -> None:
    """Byte for byte: both files of the set that is captured from the replays equal those of the first."""
    first = captured()[0]
    first.save(tmp_path / "first")
    again = CaseSet(
        [recapture(c) for c in CaseSet.load(tmp_path / "first")], first.model, first.workload, first.environment
    )
    again.save(tmp_path / "again")
    for path in (tmp_path / "first").iterdir():
        assert path.read_bytes() == (tmp_path / "again" / path.name).read_bytes()


def test_a_changed_input_changes_the_digest() -> None:
    case = next(c for c in captured()[0] if c.op == "llama_decoder_layer")
    inputs = case_inputs(case)
    inputs["hidden_states"][0, 0] += 1e-3
    module = build_op(case)
    changed = call_op(module, case, inputs)
    assert not torch.equal(changed[0], call_op(build_op(case), case)[0])


def test_parameters_of_another_op_are_refused_by_name() -> None:
    case = next(c for c in captured()[0] if c.op == "rms_norm")
    wrong = Case(op=case.op, init=case.init, inputs=case.inputs, params={"scale": torch.ones(64)})
    with pytest.raises(CaseFileError, match=r"'missing weight', 'unknown scale'"):
        build_op(wrong)
    short = Case(op=case.op, init=case.init, inputs=case.inputs, params={"weight": torch.ones(3)})
    with pytest.raises(CaseFileError, match=r"weight is \[3\], the op's \[64\]"):
        build_op(short)


def test_unknown_op_of_a_case_suggests_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match="Did you mean rms_norm"):
        build_op(Case(op="rms_nrm", init={}, inputs={}))


def test_bfloat16_case_replays() -> None:
    cases, _, _ = capture("tiny-llama", WORKLOAD, dtype="bfloat16", device="cpu", max_num_batched_tokens=64)
    for case in cases:
        assert case.dtype in (torch.bfloat16, torch.float32)
        assert replay(case).digest == case.outputs_digest
    assert {c.dtype for c in cases if ops()[c.op].level > 1} == {torch.bfloat16}


def test_two_hundred_calls_stay_under_20_megabytes(tmp_path: Path) -> None:
    """The demo workload in chunks as the command takes them: its first 200 cases and their tensors."""
    cases, calls, _ = capture("tiny-llama", find_workload("demo"), device="cpu", keep=2)
    assert len(cases) >= 200
    assert sum(calls.values()) > 1000
    CaseSet(cases.records[:200]).save(tmp_path)
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) < 20_000_000


def test_a_candidate_that_packs_its_weights_replays() -> None:
    with Recorder() as recorder:
        Linear(8, 6)(torch.randn(3, 8))
    (case,) = recorder.cases
    twin = loading.load_class(ops()["linear"], resolve_set(TWINS / "weight_packing"))
    assert torch.allclose(replay(case, op_class=twin).outputs[0], replay(case).outputs[0], atol=1e-6)
