"""What end-to-end figures are made of: definitions, arrivals, digests, counters. No engine runs here."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import hashlib
import itertools
import math
import statistics
import struct
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from fastkernels.bench.e2e.http import Endpoint
from fastkernels.bench.e2e.load import Arrivals, Load, RequestRecord
from fastkernels.bench.e2e.metrics import (
    engine_shares,
    latencies,
    latency_ratios,
    load_summary,
    load_token_times,
    median_summary,
    peak_concurrency,
    ratio,
)
from fastkernels.bench.e2e.offline import Side, SideError, Watcher, _events
from fastkernels.bench.e2e.run import comparisons, side_json
from fastkernels.bench.e2e.scenario import Scenario
from fastkernels.bench.e2e.serving import LoadPlan, _repeat, read_counters, run_serving, serve_words
from fastkernels.bench.e2e.tokens import agreement, digest
from fastkernels.bench.environment import environment
from fastkernels.cli.e2e_table import e2e_tables
from fastkernels.errors import UnknownNameError, UsageError
from fastkernels.report.e2e_figures import token_rates
from fastkernels.report.e2e_page import render_e2e
from fastkernels.workloads import TrafficRequest


def record(index: int, start: float, ttft: float, gaps: list[float], output_len: int | None = None) -> RequestRecord:
    return RequestRecord(
        index, prompt_len=10, asked_len=len(gaps) + 1, start_s=start, ttft_s=ttft, e2e_s=ttft + sum(gaps), itl_s=gaps,
        output_len=len(gaps) + 1 if output_len is None else output_len,
    )  # fmt: skip


RECORDS = [
    record(0, 0.0, 0.5, [0.1, 0.3]),
    record(1, 0.2, 0.2, []),
    record(2, 1.0, 1.0, [0.5], output_len=5),
    RequestRecord(3, 10, 4, 0.4, error="HttpError: HTTP 500"),
]


def test_latencies_follow_their_definitions() -> None:
    found = latencies(RECORDS)
    assert found["ttft"] == [0.5, 0.2, 1.0]
    assert found["tpot"] == pytest.approx([0.4 / 2, 0.5 / 4])  # the answer of one token has none
    assert found["itl"] == [0.1, 0.3, 0.5]
    assert found["e2e"] == pytest.approx([0.9, 0.2, 1.5])


def test_summary_counts_completed_requests_over_the_whole_duration() -> None:
    summary = load_summary(RECORDS)
    assert (summary["num_completed"], summary["num_failed"]) == (3, 1)
    assert summary["duration_s"] == 2.5  # from the start of the load to the last piece
    assert summary["num_output_tokens"] == 3 + 1 + 5
    assert summary["output_tokens_per_s"] == pytest.approx(9 / 2.5)
    assert summary["total_tokens_per_s"] == pytest.approx((9 + 30) / 2.5)
    assert summary["requests_per_s"] == pytest.approx(3 / 2.5)
    assert summary["ttft"]["p50"] == pytest.approx(500)
    assert summary["ttft"]["p90"] == pytest.approx(900)  # linear between the closest ranks, as numpy's
    assert summary["peak_concurrency"] == 2


def test_goodput_counts_requests_that_keep_every_limit() -> None:
    good = load_summary(RECORDS, {"ttft": 600, "tpot": 150})["goodput"]
    assert good["num_good"] == 1  # the second: its TPOT counts as 0; the first is too slow a token
    assert good["requests_per_s"] == pytest.approx(1 / 2.5)
    assert load_summary(RECORDS, {"e2e": 1500.0})["goodput"]["num_good"] == 3


def test_a_load_of_which_nothing_came_back_has_no_rates() -> None:
    summary = load_summary(RECORDS[3:])
    assert summary == {"num_completed": 0, "num_failed": 1, "duration_s": 0.0}


def test_requests_that_touch_are_not_concurrent() -> None:
    assert peak_concurrency([record(0, 0.0, 1.0, []), record(1, 1.0, 1.0, [])]) == 1


def test_token_times_spread_usage_over_pieces() -> None:
    assert load_token_times(RECORDS[2:]) == [(2.0, 2.5), (2.5, 5.0)]


def test_token_rates_keep_every_token() -> None:
    points = [(0.5, 10), (1.0, 20), (2.0, 80), (2.5, 90)]
    x, rates = token_rates(points, 0.25)
    assert len(x) == len(rates) == 10
    assert sum(rate * 0.25 for rate in rates) == pytest.approx(90)
    assert rates[:2] == pytest.approx([20, 20])
    assert rates[4:8] == pytest.approx([60] * 4)


@pytest.mark.parametrize("burstiness", [0.25, 1.0, 4.0])
def test_arrivals_have_the_rate_and_the_burstiness_asked_for(burstiness: float) -> None:
    requests = [TrafficRequest((1,), 1)] * 20_000
    times = Arrivals(50.0, burstiness, seed=3).times(requests)
    assert times[-1] == pytest.approx(20_000 / 50)
    gaps = [b - a for a, b in itertools.pairwise(times)]
    assert min(gaps) >= 0
    variation = statistics.stdev(gaps) / statistics.fmean(gaps)
    assert variation == pytest.approx(burstiness**-0.5, rel=0.05)
    assert times == Arrivals(50.0, burstiness, seed=3).times(requests)
    assert times != Arrivals(50.0, burstiness, seed=4).times(requests)


def test_arrivals_of_a_trace_are_its_own_and_faster() -> None:
    requests = [TrafficRequest((1,), 1, arrival) for arrival in (0.0, 3.0, 10.0)]
    assert Arrivals(None, speedup=10.0).times(requests) == [0.0, 0.3, 1.0]
    assert Arrivals(math.inf).times(requests) == [0.0, 0.0, 0.0]


@pytest.mark.parametrize("values", [{"request_rate": 0.0}, {"burstiness": -1.0}, {"speedup": math.nan}])
def test_arrivals_refuse_what_is_not_positive(values: dict[str, float]) -> None:
    with pytest.raises(UsageError, match="must be above 0"):
        Arrivals(**values)


def test_digest_is_sha256_of_lengths_and_ids() -> None:
    expected = hashlib.sha256(struct.pack("<6I", 2, 7, 70_000, 0, 1, 5)).hexdigest()
    assert digest([[7, 70_000], [], [5]]) == expected
    assert digest([[7], [70_000]]) != digest([[7, 70_000], []])


def test_agreement_finds_the_first_difference() -> None:
    found = agreement([[1, 2, 3], [4, 5, 6, 7], [8, 9]], [[1, 2, 3], [4, 5, 0, 7], [9, 9]])
    assert found.first_difference == (1, 2)
    assert (found.num_equal_answers, found.num_equal_tokens, found.num_tokens) == (1, 7, 9)
    assert found.median_first_difference == 1.0
    assert agreement([[1]], [[1]]).to_json()["share_equal"] == 1.0
    assert agreement([[1]], [[1]]).first_difference is None
    assert agreement([[1, 2]], [[1]]).first_difference == (0, 1)
    with pytest.raises(ValueError, match="2 answers are compared with 1"):
        agreement([[1], [2]], [[1]])


class _AllButOne:
    """A route whose request 1 is never answered; the others say their own number."""

    path = "/"
    is_streamed = True

    def content(self, model: str, request: Any) -> bytes:
        return b"{}"

    def record(self, index: int, request: Any, start_s: float) -> RequestRecord:
        return RequestRecord(index, 3, 2, start_s)

    async def read(self, endpoint: Endpoint, body: bytes, record: RequestRecord, started: float) -> None:
        if record.index == 1:
            await asyncio.sleep(600)
        record.token_ids, record.ttft_s, record.e2e_s = [record.index, 7], 0.1, 0.2


def test_a_cancelled_load_keeps_its_records_and_is_compared_where_both_answered() -> None:
    """As Ctrl-C leaves it: request 2 is held against request 2, and a part is no measure of the speed."""
    load = Load(Endpoint("http://127.0.0.1:1"), "m", _AllButOne())

    async def cut_short() -> None:
        async with asyncio.timeout(0.2):
            await load.run([None] * 3, [0.0] * 3)

    with pytest.raises(TimeoutError):
        asyncio.run(cut_short())
    assert sorted(r.index for r in load.records) == [0, 2]
    whole = [dataclasses.replace(load.records[0], index=i, token_ids=[i, 7 - i // 2]) for i in range(3)]
    sides = [Side("baseline"), Side("mine")]
    for side, records in zip(sides, (whole, load.records), strict=True):
        side.repeats.append(_repeat(side, 0, records, {}, {}, None, True))
    sides[1].repeats[0]["is_whole"] = False
    (found,) = comparisons(sides)
    (tokens,) = found["tokens"]
    assert (tokens["num_answers"], tokens["num_unanswered"], tokens["num_equal_answers"]) == (2, 1, 1)
    assert (tokens["first_difference"], tokens["num_tokens"], tokens["num_equal_tokens"]) == ((2, 1), 4, 3)
    assert (found["speed"], found["latency"], found["has_equal_digests"]) == (None, {}, [False])
    scenario = Scenario("tiny-llama", "demo", 3)
    results: Any = {
        **{"kind": "e2e", "run_id": "x", "created": "2026-01-01T00:00:00+00:00", "status": "interrupted"},
        **{"mode": "serving", "environment": environment("cpu"), "request": {"model": "tiny-llama"}},
        "comparisons": [found],
        "workload": scenario.describe(scenario.requests()),
        "sides": [side_json(side, LoadPlan()) for side in sides],
    }
    page = render_e2e(results)
    assert "<dd>1 of 2; 1 more were not answered by both</dd>" in page
    assert "<dd>not measured: a side has no repeat in which every request was answered</dd>" in page
    assert len(e2e_tables(results)) == 3
    sides[1].tokens[0] = sides[1].tokens[0][:1]  # the second side is shorter
    assert comparisons(sides)[0]["tokens"][0]["num_unanswered"] == 2
    sides[1].tokens[0] = []
    assert comparisons(sides)[0]["tokens"] == [], "Of nothing no share is equal."


def test_a_side_that_refuses_half_of_the_load_is_not_the_faster_one() -> None:
    """Of its repeats the one that is whole counts."""
    whole = [dataclasses.replace(RECORDS[0], index=i, start_s=0.1 * i) for i in range(4)]
    half = [*whole[:2], *(RequestRecord(i, 10, 4, 0.1 * i, error="HttpError: HTTP 500") for i in (2, 3))]
    sides = [Side("baseline"), Side("mine")]
    for side, loads in zip(sides, ([whole], [half]), strict=True):
        side.repeats += [_repeat(side, number, load, {}, {}, None, True) for number, load in enumerate(loads)]
    (found,) = comparisons(sides)
    assert (found["speed"], found["latency"]) == (None, {})
    sides[1].repeats.append(_repeat(sides[1], 1, whole, {}, {}, None, True))
    (found,) = comparisons(sides)
    assert (found["speed"]["ratio"], found["latency"]["e2e"]) == (1.0, 1.0)


def test_last_words_that_are_not_utf_8_are_told_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dying = tmp_path / "python"
    dying.write_text("#!/bin/sh\nprintf 'no \\377 memory' >&2\nexit 3\n")
    dying.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(dying))
    with pytest.raises(SideError, match="ended with 3: no \ufffd memory"):
        list(_events(tmp_path / "order.json"))


@pytest.mark.parametrize(
    ("options", "num_gpus"),
    [({"device": "cpu"}, 0), ({"device": "cuda", "tensor_parallel_size": 2}, 2), ({}, 1), ({"device": "fake"}, 0)],
)
def test_a_server_of_ours_has_the_gpus_sampled_that_it_works_on(
    monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], num_gpus: int
) -> None:
    asked: list[int] = []

    def sampler(gpus: list[torch.device]) -> Any:
        asked.append(len(gpus))
        raise KeyboardInterrupt

    serving = "fastkernels.bench.e2e.serving"
    monkeypatch.setattr(f"{serving}._own_server", lambda *given: contextlib.nullcontext("http://127.0.0.1:1"))
    monkeypatch.setattr(f"{serving}._served_model", lambda *given: ("tiny-llama", None))
    monkeypatch.setattr(f"{serving}.BusySampler", sampler)
    with pytest.raises(KeyboardInterrupt):
        run_serving(
            Scenario("tiny-llama", "demo", 3, options=options), Side("x"), LoadPlan(), 1, Watcher(), lambda: None
        )
    assert asked == [num_gpus]


def test_ratio_is_of_medians_and_one_repeat_has_no_interval() -> None:
    assert ratio([3.0], [2.0]) == {"ratio": 1.5, "low": None, "high": None}
    found = ratio([2.0, 2.2, 2.1], [1.0, 1.1, 1.05])
    assert found["ratio"] == pytest.approx(2.0)
    assert 2.0 / 1.1 <= found["low"] <= found["ratio"] <= found["high"] <= 2.2 / 1.0


def test_latency_ratios_leave_out_what_one_side_lacks() -> None:
    slow = {"ttft": [2.0, 4.0, 6.0], "tpot": [1.0], "itl": [], "e2e": [3.0]}
    fast = {"ttft": [1.0, 2.0, 3.0], "tpot": [], "itl": [1.0], "e2e": [3.0]}
    assert latency_ratios(slow, fast) == {"ttft": 2.0, "e2e": 1.0}


def test_median_summary_is_a_real_repeat() -> None:
    chosen = median_summary([{"duration_s": d, "mark": d} for d in (3.0, 1.0, 2.0, 9.0)])
    assert chosen["mark"] == 2.0
    assert chosen["durations_s"] == [3.0, 1.0, 2.0, 9.0]
    assert chosen["batch_latency"]["p50"] == pytest.approx(2500)


def test_median_summary_is_of_a_repeat_of_which_something_came_back_where_one_is() -> None:
    nothing = load_summary(RECORDS[3:])
    chosen = median_summary([nothing, load_summary(RECORDS), nothing])
    assert chosen["num_completed"] == 3
    assert chosen["durations_s"] == [0.0, 2.5, 0.0]
    assert median_summary([nothing])["num_completed"] == 0


METRICS = """# HELP x y
fastkernels_steps_total 40.0
fastkernels_graph_step_ratio 0.75
fastkernels_preemptions_total 2.0
fastkernels_prompt_tokens_total 100.0
fastkernels_prefix_cache_hit_tokens_total 25.0
fastkernels_peak_memory_bytes 1.5e9
"""


def test_counters_of_our_metrics_give_shares() -> None:
    counters = read_counters(METRICS)
    assert counters["peak_memory_bytes"] == 1.5e9
    shares = engine_shares(counters)
    assert (shares["graph_hit_share"], shares["prefix_hit_share"], shares["num_preemptions"]) == (0.75, 0.25, 2)


def test_counters_of_vllms_metrics_are_read_and_labels_summed() -> None:
    text = 'vllm:num_preemptions_total{engine="0"} 3.0\nvllm:num_preemptions_total{engine="1"} 4.0\n'
    text += 'vllm:prefix_cache_queries_total{engine="0"} 10\nvllm:prefix_cache_hits_total{engine="0"} 5\n'
    shares = engine_shares(read_counters(text))
    assert (shares["num_preemptions"], shares["prefix_hit_share"], shares["graph_hit_share"]) == (7, 0.5, None)


def test_scenario_draws_other_tokens_each_repeat_and_cuts_to_the_model() -> None:
    scenario = Scenario("tiny-llama", "prefill_heavy", num_requests=3, seed=5)
    first, second = scenario.requests(0), scenario.requests(1)
    assert {len(r.prompt_token_ids) + r.output_len for r in first} == {512}
    assert first[0].prompt_token_ids != second[0].prompt_token_ids
    assert scenario.requests(-1)[0].prompt_token_ids not in {r.prompt_token_ids for r in (*first, *second)}
    assert all(1 not in r.prompt_token_ids for r in first)  # the end token
    described = scenario.describe(first)
    assert (described["num_cut"], described["num_requests"], described["prompt_len"]["p50"]) == (3, 3, 480)


def test_scenario_names_what_is_off() -> None:
    with pytest.raises(UnknownNameError, match="There is no workload named 'balance'"):
        Scenario("tiny-llama", "balance").check()
    with pytest.raises(UnknownNameError, match="tiny-lama"):
        Scenario("tiny-lama", "balanced").check()
    with pytest.raises(UsageError, match="no option 'max_seqs'"):
        Scenario("tiny-llama", "balanced", options={"max_seqs": 3}).check()
    with pytest.raises(UsageError, match="enable_expert_parallel is set, and tiny-llama has no experts"):
        Scenario("tiny-llama", "balanced", options={"enable_expert_parallel": True}).check()
    with pytest.raises(UsageError, match="page_size is 0"):
        Scenario("tiny-llama", "balanced", options={"page_size": 0}).check()


def test_serve_words_are_options_of_serve() -> None:
    scenario = Scenario(
        *("tiny-mixtral", "single"),
        seed=4,
        options={"tensor_parallel_size": 2, "enable_expert_parallel": True, "enforce_eager": True, "dtype": None},
    )
    words = serve_words(scenario, ("mine", "yours"))
    assert words[:2] == ["--seed", "4"]
    assert {"--enforce-eager", "--enable-expert-parallel"} <= set(words)
    assert words[words.index("--warm") + 1] == "full"
    assert words[words.index("--tensor-parallel-size") + 1] == "2"
    assert "--dtype" not in words
    assert words[-4:] == ["--candidates", "mine", "--candidates", "yours"]
