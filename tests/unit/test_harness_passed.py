"""A right candidate of each kind of op passes: plain, packed, in place, paged, sampled, composite, with caches."""

from __future__ import annotations

import pytest
import torch
from judging import Bench, bench
from right_candidates import ATTENTION, CANDIDATES, DECODE, SAMPLE, STORE, STORED

from fastkernels.harness.hidden_shapes import FAMILIES
from fastkernels.harness.judge import JudgeConfig
from fastkernels.harness.verdict import Verdict

__all__ = ["bench"]


@pytest.mark.parametrize("op", CANDIDATES)
def test_right_candidate_passes(bench: Bench, op: str) -> None:
    dtype = torch.bfloat16 if "att" in op else torch.float32
    record = bench.judge(op, CANDIDATES[op], JudgeConfig(num_shapes=2, is_timed=False, dtypes=(dtype,)))
    assert record.verdict == Verdict.PASSED, record.message
    assert {case.family for case in record.cases} == set(FAMILIES)
    assert {case.verdict for case in record.cases} == {Verdict.PASSED}
    assert record.num_calls == len(record.cases) >= 20
    assert record.message == record.witness == ""


def test_attention_without_a_cache_is_told_so_at_once(bench: Bench) -> None:
    """What fails before a call may start has a turn to take, and takes none."""
    source = CANDIDATES["llama_attention"].replace("self.cache_spec =", "self.my_spec =")
    record = bench.judge("llama_attention", source, JudgeConfig(num_shapes=1, is_timed=False))
    assert record.verdict == Verdict.RUNTIME_ERROR, record.message
    assert "LlamaAttention has 0 cached layers of 0 tensors, got 1 caches." in record.message


def test_right_candidate_passes_in_half_precision(bench: Bench) -> None:
    config = JudgeConfig(num_shapes=1, is_timed=False, dtypes=(torch.bfloat16, torch.float16))
    for op in ("rms_norm", "linear"):
        record = bench.judge(op, CANDIDATES[op], config)
        assert record.verdict == Verdict.PASSED, record.message
        assert {case.dtype for case in record.cases} == {"bfloat16", "float16"}


def test_cache_that_is_not_written_is_wrong_although_the_answer_is_right(bench: Bench) -> None:
    """The pages are outputs: keys must be left in them, bit for bit where the contract moves them."""
    private = "keys, values = keys.clone(), values.clone(); " + STORED
    record = bench.judge("llama_attention", ATTENTION.replace("STORE", private))
    assert record.verdict == Verdict.INCORRECT_NUMERICAL
    assert record.message.startswith("cache:0")


def test_cache_that_is_written_elsewhere_too_is_wrong(bench: Bench) -> None:
    """A page that no sequence owns is nobody's scratch space."""
    record = bench.judge("llama_attention", ATTENTION.replace("STORE", STORED + "; keys[keys.isnan()] = 0"))
    assert record.verdict == Verdict.INCORRECT_NUMERICAL
    assert record.message.startswith("cache:0")


@pytest.mark.parametrize(
    ("right", "wrong", "text"),
    [
        ("if slot >= 0:", "if True:", "must be exactly"),
        ("value_cache[slot", "key_cache[slot", "must be exactly"),
        ("key[row]", "key[row] * (1 + 2**-20)", "must be exactly"),
    ],
)
def test_cache_store_that_is_off_is_wrong(bench: Bench, right: str, wrong: str, text: str) -> None:
    record = bench.judge("store_kvcache", STORE.replace(right, wrong), JudgeConfig(num_shapes=5, is_timed=False))
    assert record.verdict == Verdict.INCORRECT_NUMERICAL
    assert text in record.message


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("torch.where(is_greedy, 0, drawn)", "p.argmax(-1)"),
        ("torch.where(is_greedy, 0, drawn)", "torch.where(is_greedy, 0, torch.multinomial(p, 1).squeeze(1))"),
        ("p.cumsum(-1) - p >= top_p[:, None]", "(p.cumsum(-1) > top_p[:, None]) & (ranks > 0)"),
        ("ranks >= top_k[:, None]", "ranks > top_k[:, None]"),
        ("logits.double() /", "logits.double() *"),
        ("torch.where(is_greedy, 0, drawn)", "drawn"),
    ],
    ids=[
        "argmax",
        "seeds ignored",
        "nucleus without its last",
        "top-k off by one",
        "temperature inverted",
        "greedy drawn",
    ],
)
def test_sampler_that_is_off_is_wrong(bench: Bench, right: str, wrong: str) -> None:
    assert right in SAMPLE
    record = bench.judge("top_k_top_p_sample", SAMPLE.replace(right, wrong))
    assert record.verdict == Verdict.INCORRECT_NUMERICAL
    assert "draw" in record.message or "drew" in record.message


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("< seq_lens[:, None]", "<= seq_lens[:, None]"),
        ("* self.scale", "* self.scale * 1.01"),
        ("values = torch.where(is_seen[:, :, None, None], values, 0.0)", ""),
        ("(self.num_kv_heads, -1))", "(-1, self.num_kv_heads)).transpose(1, 2)"),
    ],
    ids=["one key too many", "scale off by 1 %", "NaN of a page nobody owns", "heads grouped the other way"],
)
def test_decode_attention_that_is_off_is_wrong(bench: Bench, right: str, wrong: str) -> None:
    assert right in DECODE
    config = JudgeConfig(num_shapes=5, is_timed=False)
    record = bench.judge("flash_attn_decode", DECODE.replace(right, wrong), config)
    assert record.verdict == Verdict.INCORRECT_NUMERICAL, record.message
