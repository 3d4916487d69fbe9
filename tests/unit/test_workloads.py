"""The shipped prompts, their tokenizer and the traffic mixes."""

from __future__ import annotations

import statistics
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastkernels.errors import UnknownNameError, UsageError
from fastkernels.workloads import (
    WORKLOADS,
    TrafficRequest,
    Workload,
    byte_tokenizer,
    capped,
    find_traffic,
    find_workload,
    prompts,
    traffic_names,
)
from fastkernels.workloads.tokenizer import SPECIAL_TOKENS, VOCAB_SIZE
from fastkernels.workloads.trace import TraceWorkload, trace_facts, trace_rows
from fastkernels.workloads.traffic import TokenSource

DIGEST = """
import hashlib
from fastkernels.workloads import byte_tokenizer
print(hashlib.sha256(byte_tokenizer().to_str().encode()).hexdigest())
"""


def test_prompts_are_32_of_varied_lengths() -> None:
    lengths = sorted(len(prompt.split()) for prompt in prompts())
    assert len(prompts()) == len(set(prompts())) == 32
    assert lengths[0] == 5
    assert 100 < lengths[-1] <= 120
    assert len(set(lengths)) > 20


@given(st.text().filter(lambda text: not any(special in text for special in SPECIAL_TOKENS)))
def test_byte_tokenizer_gives_any_text_back(text: str) -> None:
    ids = byte_tokenizer().encode(text).ids
    assert all(0 <= i < VOCAB_SIZE for i in ids)
    assert byte_tokenizer().decode(ids) == text


def test_byte_tokenizer_merges_the_prompts() -> None:
    assert byte_tokenizer().get_vocab_size() == VOCAB_SIZE
    num_bytes = sum(len(p.encode()) for p in prompts())
    assert sum(len(byte_tokenizer().encode(p).ids) for p in prompts()) < 0.55 * num_bytes


def test_byte_tokenizer_is_the_same_in_every_process() -> None:
    runs = {subprocess.run([sys.executable, "-c", DIGEST], capture_output=True, check=True).stdout for _ in range(2)}
    assert len(runs) == 1


@pytest.mark.parametrize("workload", WORKLOADS, ids=lambda w: w.name)
def test_workload_has_its_sizes_and_repeats(workload: Workload) -> None:
    small = workload.limited(min(workload.num_requests, 40)).scaled(1 / 16)
    requests = small.token_ids(byte_tokenizer())
    assert len(requests) == small.num_requests
    assert requests == small.token_ids(byte_tokenizer())
    if workload.input_len is not None:
        assert {len(r) for r in requests} == {max(1, round(workload.input_len / 16))}
        assert len({tuple(r) for r in requests}) > len(requests) // 2
    assert small.output_len == max(1, round(workload.output_len / 16))


def test_demo_workload_is_the_shipped_prompts() -> None:
    demo = find_workload("demo")
    assert [byte_tokenizer().decode(ids) for ids in demo.token_ids(byte_tokenizer())] == list(prompts())
    assert demo.output_len == 32


def test_unknown_workload_suggests_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match="Did you mean balanced"):
        find_workload("balance")


@pytest.mark.parametrize("factor", [0, -1, float("nan")])
def test_workload_refuses_a_factor_that_is_not_positive(factor: float) -> None:
    with pytest.raises(UsageError, match="above 0"):
        find_workload("single").scaled(factor)


def test_workload_refuses_no_requests() -> None:
    with pytest.raises(UsageError, match="num_requests is 0"):
        Workload("empty", 0, 1, 1)


PUBLISHED = {
    "single": (1, 512, 128),
    "batch32": (32, 512, 128),
    "decode_heavy": (512, 128, 512),
    "balanced": (1000, 512, 128),
    "prefill_heavy": (256, 2048, 32),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_named_mix_has_the_published_sizes(name: str) -> None:
    requests = find_traffic(name).requests(1000, {7})
    lengths = {(len(r.prompt_token_ids), r.output_len) for r in requests}
    assert (len(requests), *lengths) == (PUBLISHED[name][0], PUBLISHED[name][1:])


@pytest.mark.parametrize("name", traffic_names())
def test_drawn_tokens_are_of_the_vocabulary_and_never_end_an_answer(name: str) -> None:
    traffic = find_traffic(name).limited(12).scaled(0.2)
    ends = {0, 5, 31}
    requests = traffic.requests(32, ends)
    tokens = {t for r in requests for t in r.prompt_token_ids}
    assert tokens == set(range(32)) - ends
    assert requests == traffic.requests(32, ends)
    assert requests != traffic.seeded(1).requests(32, ends)
    assert [len(r.prompt_token_ids) for r in requests] == [
        len(r.prompt_token_ids) for r in traffic.seeded(1).requests(32, ends)
    ]
    assert traffic.lengths() == [(len(r.prompt_token_ids), r.output_len) for r in requests]


def test_equal_tokens_are_one_object() -> None:
    """A long trace has a hundred million, and each would take 32 bytes."""
    source = TokenSource(4000)
    first, second = source.draw(4000, 0), source.draw(4000, 1)
    by_value = {token: token for token in first}
    shared = [token for token in second if token in by_value]
    assert len(shared) > 1000
    assert all(token is by_value[token] for token in shared)


def test_the_shipped_prompts_are_scaled_too() -> None:
    demo = find_workload("demo")
    small = demo.scaled(0.5).scaled(0.2)
    whole = demo.token_ids(byte_tokenizer())
    assert [len(ids) for ids in small.token_ids(byte_tokenizer())] == [max(1, round(len(ids) * 0.1)) for ids in whole]
    assert [length for length, _ in small.lengths()] == [max(1, round(length * 0.1)) for length, _ in demo.lengths()]


def test_a_vocabulary_of_end_tokens_is_refused() -> None:
    with pytest.raises(UsageError, match="no token to draw"):
        find_traffic("single").requests(2, {0, 1})


@pytest.mark.parametrize("name", trace_facts())
def test_trace_is_whole_and_says_where_it_is_from(name: str) -> None:
    facts, rows = trace_facts()[name], trace_rows(name)
    assert len(rows) == facts["num_requests"]
    assert facts["license"] in ("CC-BY-4.0", "Apache-2.0")
    assert facts["provenance"].startswith("https://github.com/")
    arrivals = [row.arrival_s for row in rows]
    assert arrivals == sorted(arrivals)
    assert arrivals[0] == 0
    assert 3400 < arrivals[-1] < 3600


def test_azure_conversation_lengths_are_those_of_the_publication() -> None:
    rows = trace_rows("azure_conv")
    assert (rows[0].input_len, rows[0].output_len) == (374, 44)
    assert statistics.median(row.input_len for row in rows) == 1020
    assert statistics.median(row.output_len for row in rows) == 129


def test_mooncake_prompts_share_the_prefixes_that_their_blocks_share() -> None:
    rows = trace_rows("mooncake_conv")[:3]
    assert rows[0].block_ids == tuple(range(14))
    assert rows[1].block_ids[:2] == (0, 14)
    first, second, third = (r.prompt_token_ids for r in TraceWorkload("mooncake_conv", 3).requests(128_256))
    assert [len(p) for p in (first, second, third)] == [row.input_len for row in rows]
    assert first[:512] == second[:512] == third[:512]
    assert first[512:1024] != second[512:1024]


def test_a_scaled_trace_keeps_shared_blocks_whole() -> None:
    requests = TraceWorkload("mooncake_conv", 3).scaled(1 / 16).requests(128_256)
    shared = [r.prompt_token_ids[:32] for r in requests]
    assert shared[0] == shared[1] == shared[2]
    assert requests[0].prompt_token_ids[32:64] != requests[1].prompt_token_ids[32:64]
    assert len(requests[0].prompt_token_ids) == round(6758 / 16)


def test_trace_refuses_more_requests_than_it_has() -> None:
    with pytest.raises(UsageError, match="20000 requests asked for; it has 1 to 19366"):
        find_traffic("azure_conv").limited(20_000)


def test_unknown_traffic_suggests_a_trace() -> None:
    with pytest.raises(UnknownNameError, match="Did you mean azure_con"):
        find_traffic("azure_con")


def test_capped_cuts_the_prompt_first_and_counts() -> None:
    requests = [TrafficRequest(tuple(range(9)), 4), TrafficRequest((1, 2), 3), TrafficRequest((1, 2), 50)]
    found, num_cut = capped(requests, 8)
    assert [(r.prompt_token_ids, r.output_len) for r in found] == [((0, 1, 2, 3), 4), ((1, 2), 3), ((1,), 7)]
    assert num_cut == 2
    with pytest.raises(UsageError, match="at least 2"):
        capped(requests, 1)
