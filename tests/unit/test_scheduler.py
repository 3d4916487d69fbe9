"""The scheduler alone, over a runner that answers at once: invariants on random schedules."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastkernels.engine.cache import PageAllocator
from fastkernels.engine.request import FinishReason, Request, SamplingParams
from fastkernels.engine.scheduler import Scheduler, SchedulerLimits
from fastkernels.errors import UnsupportedError, UsageError

VOCAB = 97


def make_scheduler(**changes: int) -> Scheduler:
    limits = {
        "num_pages": 8,
        "page_size": 4,
        "max_num_batched_tokens": 16,
        "max_num_seqs": 4,
        "max_model_len": 64,
        "vocab_size": VOCAB,
    }
    return Scheduler(SchedulerLimits(**{**limits, **changes}))


def make_request(request_id: int, prompt_len: int, max_tokens: int) -> Request:
    tokens = [(request_id + i) % VOCAB for i in range(prompt_len)]
    return Request(request_id, prompt_len, tokens, SamplingParams(max_tokens=max_tokens))


def next_token(tokens: list[int]) -> int:
    return (sum(tokens) * 31 + len(tokens)) % VOCAB


def run_to_end(scheduler: Scheduler) -> list[Request]:
    """Steps with checks after each: every step makes progress, within its limits, and no page is lost."""
    finished: list[Request] = []
    limits = scheduler.limits
    for _ in range(10_000):
        if not scheduler.has_unfinished:
            return finished
        rows = scheduler.schedule()
        scheduler.check_invariants()
        assert rows
        assert sum(row.num_tokens for row in rows) <= limits.max_num_batched_tokens
        assert len(rows) <= limits.max_num_seqs
        assert len({row.request.request_id for row in rows}) == len(rows)
        for row in rows:
            assert row.num_tokens >= 1
            assert row.request.num_computed + row.num_tokens <= len(row.request.pages) * limits.page_size
        sampled = {row.request.request_id: next_token(row.request.tokens) for row in rows if row.samples}
        finished += scheduler.update(rows, sampled, frozenset())
        scheduler.check_invariants()
    raise AssertionError("The schedule never ends.")


@settings(max_examples=200, deadline=None)
@given(
    requests=st.lists(st.tuples(st.integers(1, 20), st.integers(1, 12)), min_size=1, max_size=12),
    num_pages=st.integers(8, 20),
    page_size=st.integers(4, 6),
    budget=st.integers(1, 40),
    max_num_seqs=st.integers(1, 6),
)
def test_random_schedules_finish_and_lose_no_page(
    requests: list[tuple[int, int]], num_pages: int, page_size: int, budget: int, max_num_seqs: int
) -> None:
    scheduler = make_scheduler(
        num_pages=num_pages, page_size=page_size, max_num_batched_tokens=budget, max_num_seqs=max_num_seqs
    )
    for i, (prompt_len, max_tokens) in enumerate(requests):
        scheduler.add(make_request(i, prompt_len, max_tokens))
    finished = run_to_end(scheduler)
    assert scheduler.pages.num_free == num_pages
    assert len(finished) == len(requests)
    for request in finished:
        prompt_len, max_tokens = requests[request.request_id]
        expected = make_request(request.request_id, prompt_len, max_tokens).tokens
        while len(expected) < prompt_len + max_tokens:
            expected.append(next_token(expected))
        assert request.tokens == expected


def test_youngest_is_preempted_and_starts_again() -> None:
    scheduler = make_scheduler(num_pages=4, page_size=4)
    for i in range(2):
        scheduler.add(make_request(i, 7, 8))
    finished = run_to_end(scheduler)
    assert [r.request_id for r in finished] == [0, 1]
    assert [r.num_preemptions for r in finished] == [0, 1]


def test_chunks_of_a_long_prompt_leave_room_for_others_to_decode() -> None:
    scheduler = make_scheduler(num_pages=16, max_num_batched_tokens=4)
    scheduler.add(make_request(0, 2, 8))
    scheduler.add(make_request(1, 20, 2))
    sizes = []
    while scheduler.has_unfinished:
        rows = scheduler.schedule()
        sizes.append({row.request.request_id: row.num_tokens for row in rows})
        scheduler.update(rows, {r.request.request_id: 0 for r in rows if r.samples}, frozenset())
    assert sizes[:3] == [{0: 2, 1: 2}, {0: 1, 1: 3}, {0: 1, 1: 3}]


@pytest.mark.parametrize(
    ("prompt_len", "max_tokens", "message"),
    [
        (0, 1, "empty prompt"),
        (60, 5, "65 tokens; max_model_len is 64"),
        (30, 4, r"34 tokens, 9 pages of 4; num_pages is 8"),
    ],
)
def test_request_that_can_never_fit_is_refused_by_its_limit(prompt_len: int, max_tokens: int, message: str) -> None:
    with pytest.raises(UnsupportedError, match=message):
        make_scheduler().add(make_request(0, prompt_len, max_tokens))


def test_request_that_just_fits_runs() -> None:
    scheduler = make_scheduler()
    scheduler.add(make_request(0, 29, 4))  # 33 tokens, of which the last is never cached: 8 pages of 4
    assert len(run_to_end(scheduler)[0].output_ids) == 4


@pytest.mark.parametrize("token", [-1, VOCAB])
def test_token_outside_of_the_vocabulary_is_refused(token: int) -> None:
    with pytest.raises(UnsupportedError, match=f"token id {token} is not in"):
        make_scheduler().add(Request(0, 1, [token], SamplingParams()))


def test_stop_tokens_finish_a_request() -> None:
    request = Request(0, 1, [5], SamplingParams(max_tokens=9, stop_token_ids=(7,)))
    request.append(3, frozenset({2}))
    assert request.finish_reason is None
    request.append(7, frozenset({2}))
    assert request.finish_reason is FinishReason.STOP
    ended = Request(0, 1, [5], SamplingParams(max_tokens=9))
    ended.append(2, frozenset({2}))
    assert ended.finish_reason is FinishReason.STOP
    ignoring = Request(0, 1, [5], SamplingParams(max_tokens=9, ignore_eos=True))
    ignoring.append(2, frozenset({2}))
    assert ignoring.finish_reason is None


@pytest.mark.parametrize(
    "wrong",
    [
        {"temperature": -0.1},
        {"temperature": float("nan")},
        {"top_k": -1},
        {"top_p": 0.0},
        {"top_p": 1.1},
        {"max_tokens": 0},
        {"seed": -1},
        {"seed": 2**63},
    ],
    ids=str,
)
def test_sampling_params_name_the_value_out_of_range(wrong: dict[str, float]) -> None:
    (name,) = wrong
    with pytest.raises(UsageError, match=f"{name} is .* it must be"):
        SamplingParams(**wrong)  # type: ignore[arg-type]


def test_page_allocator_refuses_a_double_free() -> None:
    pages = PageAllocator(3)
    held = pages.allocate(2)
    assert held is not None
    assert pages.allocate(2) is None
    assert (pages.num_free, pages.num_used) == (1, 2)
    pages.free(held)
    with pytest.raises(ValueError, match="nobody holds"):
        pages.free(held[:1])
