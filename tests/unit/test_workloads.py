"""The shipped prompts, their tokenizer and the traffic mixes."""

from __future__ import annotations

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastkernels.errors import UnknownNameError, UsageError
from fastkernels.workloads import WORKLOADS, Workload, byte_tokenizer, find_workload, prompts
from fastkernels.workloads.tokenizer import VOCAB_SIZE

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


@given(st.text())
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
    small = workload.scaled(1 / 16)
    requests = small.token_ids(byte_tokenizer())
    assert len(requests) == workload.num_requests
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
