"""The shapes at which a candidate is judged: what each of a run's shapes must show of its kind."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fastkernels.harness.expect import baseline_class
from fastkernels.harness.groups import Group, make_groups
from fastkernels.harness.hidden_shapes import hidden_shapes
from fastkernels.harness.judge import JudgeConfig
from fastkernels.registry import OpEntry, ops

ENTRIES = [e for e in ops().values() if e.name not in ("allreduce", "allgather")]
CPU = torch.device("cpu")


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _groups(entry: OpEntry, num_shapes: int) -> list[Group]:
    return make_groups(entry, [], (torch.float32,), num_shapes, CPU, generator(7))


@pytest.mark.parametrize("name", ["flash_attn_decode", "flash_attn_varlen", "store_kvcache", "llama_attention"])
def test_paged_op_meets_a_ragged_batch_within_the_shapes_of_a_plain_run(name: str) -> None:
    op_class = baseline_class(ops()[name])
    shapes = hidden_shapes(op_class(**op_class.spec.examples[0]), generator(), JudgeConfig().num_shapes)
    assert any(shape.geometry and shape.geometry.are_ends_free for shape in shapes)


@pytest.mark.parametrize("name", ["embedding", "vocab_parallel_embedding"])
def test_call_without_a_row_is_drawn_where_the_op_declares_it(name: str) -> None:
    assert baseline_class(ops()[name]).spec.may_be_empty == ("num_tokens",)
    assert [len(pool[0].inputs["input_ids"]) for pool in _groups(ops()[name], 3)[0].pools][-1] == 0


def test_calls_of_other_ops_have_a_row_and_one_is_a_single_request() -> None:
    for entry in ENTRIES:
        for group in _groups(entry, 3):
            if group.op.spec.may_be_empty:
                continue
            cases = [pool[0] for pool in group.pools]
            assert all(v.numel() for case in cases for v in case.inputs.values() if isinstance(v, Tensor)), entry.name
            if group.op.spec.reads_context:
                assert len(cases[1].context.seq_lens) == 1


def test_sampler_is_given_some_requests_twice() -> None:
    case = _groups(ops()["top_k_top_p_sample"], 3)[0].pools[1][0]
    seeds = case.inputs["seeds"]
    assert len(seeds) > 1000
    num_twice = len(seeds) - len(seeds.unique())
    assert len(seeds) // 16 < num_twice <= len(seeds) // 8
    rows = (seeds[:, None] == seeds).nonzero()
    for i, j in rows[rows[:, 0] < rows[:, 1]].tolist()[:20]:
        assert all(torch.equal(value[i], value[j]) for value in case.inputs.values())


def test_mixed_batches_have_one_none_and_two_decodes_in_front() -> None:
    """A kernel may take its tokens by twos: those of single ones at the front, and all others."""
    entry = ops()["flash_attn_varlen"]
    op_class = baseline_class(entry)
    chunks = []
    for seed in range(5):
        drawn = torch.Generator().manual_seed(seed)
        shapes = hidden_shapes(op_class(**op_class.spec.examples[0]), drawn, 6)
        geometries = [shape.geometry for shape in shapes if shape.geometry is not None]
        assert [g.num_decodes >= (1, 0, 2)[i % 3] for i, g in enumerate(geometries)] == [True] * 6
        chunks += [g for g in geometries if g.num_decodes == 0]
    assert len(chunks) >= 5
    assert any(g.seq_lens > g.query_lens for g in chunks), "Behind a prefix."


def test_what_may_be_left_out_comes_with_strides_and_without() -> None:
    op_class = baseline_class(ops()["rms_norm"])
    shapes = hidden_shapes(op_class(**op_class.spec.examples[0]), generator(), 4)
    assert {(s.is_strided, s.has_optional) for s in shapes} == {(a, b) for a in (True, False) for b in (True, False)}


def test_one_shape_of_a_plain_run_has_many_rows_or_sequences() -> None:
    for name in ("rms_norm", "llama_mlp", "apply_penalties", "flash_attn_decode", "llama_model"):
        op_class = baseline_class(ops()[name])
        shapes = hidden_shapes(op_class(**op_class.spec.examples[0]), generator(), 6)
        sizes = [len(s.geometry.query_lens) if s.geometry else s.axes.get("num_rows", s.lead[-1]) for s in shapes]
        large = [s for s, size in zip(shapes, sizes, strict=True) if size > 32 * (32 if not s.geometry else 1)]
        assert len(large) == 1, (name, sizes)
        assert large[0].families == ("normal", "wide_range")


def test_views_are_drawn_of_wider_rows_and_of_fused_ones() -> None:
    """Heads that are a slice of a fused projection lie densely beside each other, and their rows do not."""
    found = set()
    for name in ("store_kvcache", "flash_attn_decode", "chunk_gated_delta_rule"):
        for seed in range(4):
            for group in make_groups(ops()[name], [], (torch.float32,), 6, CPU, generator(seed)):
                for inputs in (pool[0].inputs for pool in group.pools):
                    found |= {_layout(v) for n, v in inputs.items() if n in ("key", "query", "q", "key_cache")}
    assert found == {"dense", "wider rows", "fused rows"}


def _layout(x: Tensor) -> str:
    if x.is_contiguous():
        return "dense"
    assert x.stride(-1) == 1
    return "fused rows" if x[0].is_contiguous() else "wider rows"


@pytest.mark.parametrize("name", ["flash_attn_decode", "llama_attention", "llama_model", "gpt_oss_attention"])
def test_batches_of_decodes_hold_a_row_of_no_request(name: str) -> None:
    """It has length 0, stores nothing, and its answer is zeros before the heads are put together."""
    pools = [pool for group in _groups(ops()[name], 6) for pool in group.pools]
    lens = [c.context.seq_lens if c.context else c.inputs["seq_lens"] for c in (pool[0] for pool in pools)]
    assert sum(int(n[-1]) == 0 for n in lens) >= len(lens) // 6
    for case in (pool[0] for pool in pools if pool[0].context is not None):
        is_empty = case.context.seq_lens == 0
        assert bool((case.context.slot_mapping[case.context.query_start_loc[:-1][is_empty].long()] == -1).all())


def test_states_are_drawn_for_requests_alone() -> None:
    for name in ("mamba2_mixer", "causal_conv1d_update", "qwen3_next_model", "whisper_decoder"):
        op_class = baseline_class(ops()[name])
        shapes = hidden_shapes(op_class(**op_class.spec.examples[0]), generator(), 6)
        assert all(0 not in s.geometry.seq_lens for s in shapes if s.geometry)


def test_logits_hold_tokens_that_are_ruled_out_and_samplers_low_temperatures() -> None:
    case = _groups(ops()["top_k_top_p_sample"], 3)[0].pools[1][0]
    logits = case.inputs["logits"]
    is_ruled = logits.isinf().any(-1)
    assert len(logits) // 16 < int(is_ruled.sum()) < len(logits) // 4
    assert bool((logits[logits.isinf()] < 0).all())
    assert bool(logits.isfinite().any(-1).all())
    for name, least in (("temperature", 0.02), ("top_p", 0.01)):
        values = case.inputs[name]
        low = values[(values > 0) & (values < 0.5)]
        assert len(values) // 8 < len(low) < len(values) // 2
        assert least <= float(low.min()) < 4 * least
    assert not any(_groups(ops()["topk_softmax"], 3)[0].pools[1][0].inputs["router_logits"].isinf().flatten().tolist())
