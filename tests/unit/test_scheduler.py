"""Scheduler, pages and rows on the fake device, whose tokens are read back through the page tables."""

from __future__ import annotations

from typing import Any
from zlib import crc32

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastkernels.cache import CacheKind
from fastkernels.engine.cache import CacheGroup, CacheManager
from fastkernels.engine.config import EngineConfig
from fastkernels.engine.core import EngineCore
from fastkernels.engine.fake import next_token
from fastkernels.engine.outputs import EngineRequest, FinishReason, StepOutput
from fastkernels.engine.pages import PagePool, page_hash
from fastkernels.engine.request import Request
from fastkernels.engine.sampling_params import SamplingParams, SamplingParamsError
from fastkernels.engine.scheduler import Scheduler, SchedulerLimits
from fastkernels.errors import UnsupportedError, UsageError

VOCAB = 512


def make_core(**changes: Any) -> EngineCore:
    sizes = {"num_pages": 64, "page_size": 4, "max_num_batched_tokens": 16, "max_num_seqs": 4, "max_model_len": 256}
    return EngineCore(EngineConfig("tiny-llama", device="fake", **{**sizes, **changes}))


def make_request(name: int | str, prompt_len: int, max_tokens: int, shared: int = 0, **params: Any) -> EngineRequest:
    own = [(crc32(str(name).encode()) + 7 * i) % VOCAB for i in range(prompt_len)]
    values = {"ignore_eos": True, **params}
    return EngineRequest(str(name), (*([5] * shared), *own), SamplingParams(max_tokens=max_tokens, **values))


def run_to_end(core: EngineCore, requests: list[EngineRequest]) -> dict[str, list[StepOutput]]:
    """Steps with checks after each; the news of every request."""
    news: dict[str, list[StepOutput]] = {request.request_id: [] for request in requests}
    for request in requests:
        core.add(request)
    num_computed: dict[str, tuple[int, int]] = {}
    for _ in range(20_000):
        if not core.has_unfinished:
            return news
        for output in core.step():
            news[output.request_id].append(output)
        core.scheduler.check_invariants()
        for request in core.scheduler.running:
            before = num_computed.get(request.request_id, (0, request.num_preemptions))
            assert request.num_computed >= before[0] or request.num_preemptions > before[1]
            num_computed[request.request_id] = request.num_computed, request.num_preemptions
    raise AssertionError("The schedule never ends.")


def tokens_of(news: list[StepOutput]) -> list[int]:
    return [token for output in news for token in output.token_ids]


def expected(request: EngineRequest) -> list[int]:
    tokens = list(request.prompt_token_ids)
    for _ in range(request.params.max_tokens):
        tokens.append(next_token(tokens, VOCAB))
    return tokens[len(request.prompt_token_ids) :]


@settings(max_examples=150, deadline=None)
@given(
    sizes=st.lists(st.tuples(st.integers(1, 20), st.integers(1, 12), st.integers(0, 12)), min_size=1, max_size=12),
    num_pages=st.integers(12, 20),
    page_size=st.integers(4, 6),
    budget=st.integers(1, 40),
    max_num_seqs=st.integers(1, 6),
    shares=st.booleans(),
)
def test_random_schedules_lose_nothing_and_give_the_right_tokens(
    sizes: list[tuple[int, int, int]], num_pages: int, page_size: int, budget: int, max_num_seqs: int, shares: bool
) -> None:
    core = make_core(
        num_pages=num_pages,
        page_size=page_size,
        max_num_batched_tokens=budget,
        max_num_seqs=max_num_seqs,
        enable_prefix_caching=shares,
    )
    requests = [make_request(i, *size) for i, size in enumerate(sizes)]
    news = run_to_end(core, requests)
    for request in requests:
        assert tokens_of(news[request.request_id]) == expected(request)
        assert news[request.request_id][-1].finish_reason is FinishReason.LENGTH
    assert core.cache.num_free_pages == num_pages
    assert core.stats().num_generated_tokens == sum(r.params.max_tokens for r in requests)


def test_small_pool_serves_many_requests_with_few_preemptions() -> None:
    core = make_core(page_size=16, max_num_seqs=256, max_num_batched_tokens=512)
    requests = [make_request(i, 1 + i % 97, 1 + i % 61, shared=16 * (i % 3)) for i in range(256)]
    news = run_to_end(core, requests)
    assert all(tokens_of(news[r.request_id]) == expected(r) for r in requests)
    assert max(output.num_preemptions for said in news.values() for output in said) <= 4


def test_preempted_request_keeps_its_tokens() -> None:
    core = make_core(num_pages=12, max_num_seqs=8)
    requests = [make_request(i, 3, 30) for i in range(6)]
    news = run_to_end(core, requests)
    assert core.stats().num_preemptions >= 1
    assert all(tokens_of(news[r.request_id]) == expected(r) for r in requests)


def test_prefix_hit_skips_what_is_known_and_gives_the_same_tokens() -> None:
    core = make_core(max_num_batched_tokens=64)
    first, second = make_request("a", 3, 4, shared=24), make_request("b", 3, 4, shared=24)
    run_to_end(core, [first])
    news = run_to_end(core, [second])["b"]
    assert tokens_of(news) == expected(second)
    assert news[0].num_cached_tokens == 24
    assert core.stats().num_cached_tokens == 24


def test_whole_prompt_hit_leaves_one_page_to_compute() -> None:
    core = make_core(max_num_batched_tokens=64)
    first, again = make_request("a", 0, 4, shared=24), make_request("b", 0, 4, shared=24)
    run_to_end(core, [first])
    news = run_to_end(core, [again])["b"]
    assert tokens_of(news) == expected(again)
    assert news[0].num_cached_tokens == 20


def test_prefixes_are_not_shared_when_that_is_off() -> None:
    core = make_core(max_num_batched_tokens=64, enable_prefix_caching=False)
    run_to_end(core, [make_request("a", 3, 4, shared=24)])
    run_to_end(core, [make_request("b", 3, 4, shared=24)])
    assert core.stats().num_cached_tokens == 0


@pytest.mark.parametrize("after", [0, 1, 2, 3, 6, 9])
def test_abort_at_each_phase_gives_pages_back_within_two_steps(after: int) -> None:
    core = make_core(max_num_batched_tokens=8)
    core.add(make_request("a", 20, 10))
    core.add(make_request("b", 20, 10))
    for _ in range(after):
        core.step()
    core.abort(["a", "b", "unknown"])
    said = [output for _ in range(2) for output in core.step()]
    assert [o.finish_reason for o in said if o.finish_reason] == [FinishReason.ABORT] * 2
    assert core.cache.num_free_pages == 64
    assert not core.has_unfinished
    follower = make_request("c", 5, 3)
    assert tokens_of(run_to_end(core, [follower])["c"]) == expected(follower)


def test_stop_token_and_end_token_end_a_request() -> None:
    core = make_core()
    request = make_request("a", 6, 12)
    stop = expected(request)[4]
    first = expected(request).index(stop)
    stopping = make_request("a", 6, 12, stop_token_ids=(stop,))
    news = run_to_end(core, [stopping])["a"]
    assert tokens_of(news) == expected(request)[: first + 1]
    assert news[-1].finish_reason is FinishReason.STOP
    later = make_request("a", 6, 12, stop_token_ids=(stop,), min_tokens=first + 2)
    assert len(tokens_of(run_to_end(core, [later])["a"])) > first + 1
    ended = Request.of(make_request("d", 1, 9, ignore_eos=False))
    ended.num_pending = 1
    ended.append(1, frozenset({1}))
    assert ended.finish_reason is FinishReason.STOP


def test_embedding_request_ends_after_its_prompt() -> None:
    core = make_core(max_num_batched_tokens=8)
    request = EngineRequest("e", tuple(range(20)), SamplingParams(), is_embedding=True)
    news = run_to_end(core, [request])["e"]
    assert len(news) == 1
    assert news[0].embedding is not None
    assert sum(x * x for x in news[0].embedding) == pytest.approx(1)


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (make_request("r", 0, 4), "empty prompt"),
        (EngineRequest("r", (3, VOCAB), SamplingParams()), "token id 512 is not in"),
        (EngineRequest("r", (-1,), SamplingParams()), "token id -1 is not in"),
        (make_request("r", 250, 7), "257 tokens; max_model_len is 256"),
        (make_request("r", 60, 6, stop_token_ids=(VOCAB,)), "stop_token_ids holds token id 512"),
    ],
)
def test_request_that_can_never_run_is_refused_with_its_limit(request_: EngineRequest, message: str) -> None:
    core = make_core()
    with pytest.raises((UnsupportedError, SamplingParamsError), match=message):
        core.add(request_)
    assert not core.has_unfinished


def test_request_beyond_the_pool_is_refused_and_one_that_just_fits_runs() -> None:
    core = make_core(num_pages=4)
    with pytest.raises(UnsupportedError, match="5 pages of 4; num_pages is 4"):
        core.add(make_request("r", 10, 8))
    fits = make_request("s", 10, 7)
    assert tokens_of(run_to_end(core, [fits])["s"]) == expected(fits)


def test_window_pages_are_given_back_while_a_request_runs() -> None:
    groups = [CacheGroup(CacheKind.FULL), CacheGroup(CacheKind.WINDOW, window=8)]
    cache = CacheManager(groups, 64, 4, 4, 256, shares_prefixes=True)
    assert not cache.shares_prefixes
    scheduler = Scheduler(SchedulerLimits(10, 4, 256, VOCAB), cache)
    request = Request.of(make_request("w", 30, 40))
    scheduler.add(request)
    most = 0
    for _ in range(200):
        rows = scheduler.schedule()
        scheduler.check_invariants()
        held = [page for page in request.pages[1] if page >= 0]
        most = max(most, len(held))
        first = min((i for i, page in enumerate(request.pages[1]) if page >= 0), default=0)
        assert first * 4 <= max(0, rows[0].start - 8 + 1), "A page that the next tokens see is gone."
        scheduler.update(rows, [3] * sum(row.samples for row in rows), frozenset())
        if request.finish_reason is not None:
            break
    assert request.finish_reason is FinishReason.LENGTH
    assert most <= cache.most_pages(groups[1], 70, 10)
    assert [pool.num_free for pool in cache.pools] == [64, 64]


@pytest.mark.parametrize("page_size", [1, 3, 4])
@pytest.mark.parametrize("chunk", [1, 5, 16])
@pytest.mark.parametrize("window", [1, 8, 11])
def test_a_request_runs_in_the_pages_of_its_window_and_a_chunk(window: int, chunk: int, page_size: int) -> None:
    """As many as `most_pages` says are enough, though another holds some."""
    group = CacheGroup(CacheKind.WINDOW, window=window)
    num_pages = CacheManager([group], 1, page_size, 1, 128, False).most_pages(group, 100, chunk)
    cache = CacheManager([group], num_pages, page_size, 2, 128, False)
    scheduler = Scheduler(SchedulerLimits(chunk, 2, 128, VOCAB), cache)
    requests = [Request.of(make_request(name, 70, 31)) for name in "ab"]
    for request in requests:
        scheduler.add(request)
    for _ in range(1000):
        if not scheduler.has_unfinished:
            break
        rows = scheduler.schedule()
        assert rows, "It gives way to itself."
        scheduler.update(rows, [7] * sum(row.samples for row in rows), frozenset())
        scheduler.check_invariants()
    assert [request.finish_reason for request in requests] == [FinishReason.LENGTH] * 2


def test_page_is_neither_lost_nor_freed_twice() -> None:
    pool = PagePool(4)
    pages = pool.allocate(3)
    assert pages is not None
    assert pool.allocate(2) is None
    assert pool.num_free == 1
    pool.free(pages)
    with pytest.raises(ValueError, match="nobody holds it"):
        pool.free(pages[:1])
    with pytest.raises(UsageError, match="num_pages is 0"):
        PagePool(0)


def test_known_pages_are_shared_until_they_are_handed_out_again() -> None:
    pool = PagePool(3)
    hashes = [page_hash(b"", [1, 2]), page_hash(b"x" * 16, [1, 2])]
    assert hashes[0] != hashes[1]
    pages = pool.allocate(2)
    assert pages is not None
    for page, known in zip(pages, hashes, strict=True):
        pool.register(page, known)
    assert pool.share(hashes) == pages
    pool.free(pages)
    pool.free(pages)
    assert pool.share(hashes[:1]) == pages[:1], "A free page keeps what it holds."
    assert pool.allocate(2) is not None
    assert pool.share(hashes[1:]) == [], "A page that was handed out again is forgotten."


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", float("nan")),
        ("temperature", -0.1),
        ("top_p", 0.0),
        ("top_p", float("inf")),
        ("top_k", -2),
        ("min_p", 1.5),
        ("max_tokens", 0),
        ("n", 0),
        ("n", 129),
        ("presence_penalty", 2.5),
        ("repetition_penalty", 0.0),
        ("seed", -(2**63) - 1),
        ("logprobs", 21),
        ("min_tokens", 17),
        ("stop", ("",)),
        ("logit_bias", {3: float("nan")}),
        ("allowed_token_ids", ()),
    ],
)
def test_sampling_parameter_out_of_range_is_named(name: str, value: Any) -> None:
    with pytest.raises(SamplingParamsError, match=name) as caught:
        SamplingParams(**{name: value})
    assert caught.value.parameter == name
