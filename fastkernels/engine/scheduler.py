"""Which tokens of which requests the next step computes.

There is no prefill and no decode: a request is behind by some tokens, and a step takes as many of them as the
budget and the pages allow. The idea is vLLM's (https://docs.vllm.ai/en/latest/design/arch_overview.html, V1).
A step may be scheduled before the tokens of the step before it are known: they count as pending.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from fastkernels.cache import CacheKind
from fastkernels.engine.cache import CacheManager
from fastkernels.engine.outputs import FinishReason
from fastkernels.engine.request import NO_ROW, Request
from fastkernels.errors import UnsupportedError, UsageError


@dataclass(frozen=True)
class SchedulerLimits:
    """What a step can hold. max_model_len: the positions that a request may come to."""

    max_num_batched_tokens: int
    max_num_seqs: int
    max_model_len: int
    vocab_size: int

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value < 1:
                raise UsageError(f"{name} is {value}; the least is 1.")


class ScheduledRow(NamedTuple):
    """Tokens [start, start + num_tokens) of a request; `samples` when they are all that it lacked."""

    request: Request
    row: int
    start: int
    num_tokens: int
    samples: bool


class Scheduler:
    """Running requests first, oldest first; then waiting ones. Who is youngest gives way when pages run out."""

    def __init__(self, limits: SchedulerLimits, cache: CacheManager) -> None:
        self.limits = limits
        self.cache = cache
        self.waiting: deque[Request] = deque()
        self.running: list[Request] = []
        self.num_preemptions = 0
        self._free_rows = list(range(limits.max_num_seqs - 1, -1, -1))

    @property
    def has_unfinished(self) -> bool:
        return bool(self.waiting or self.running)

    def add(self, request: Request) -> None:
        """Errors: UnsupportedError names the limit when the request can never run."""
        self._check(request)
        self.waiting.append(request)

    def room(self, prompt_len: int, encoder_len: int = 0) -> int:
        """New tokens that fit behind a prompt; 0 or less when none does."""
        most = self.limits.max_model_len
        if not self.cache.keeps_tokens:
            most = min(most, self.limits.max_num_batched_tokens + 1)

        def is_too_long(num_tokens: int) -> bool:
            return not self.cache.can_ever_hold(num_tokens - 1, self.limits.max_num_batched_tokens, encoder_len)

        return bisect_left(range(most + 1), True, lo=1, key=is_too_long) - 1 - prompt_len

    def schedule(self) -> list[ScheduledRow]:
        """The rows of the next step, with their pages; empty while all that is left waits for pending tokens."""
        rows: list[ScheduledRow] = []
        budget = self.limits.max_num_batched_tokens
        was_preempted = False
        index = 0
        while index < len(self.running) and budget > 0:
            request = self.running[index]
            num_tokens = request.num_missing
            if num_tokens <= 0:
                index += 1
                continue
            if num_tokens > budget:
                num_tokens = budget
            if self.cache.has_windows:  # before it grows: into what it leaves, where need be
                self.cache.leave_window(request)
            while not self.cache.grow(request, request.num_computed + num_tokens):
                was_preempted = True
                if self._preempt_youngest() is request:
                    break
            else:
                rows.append(self._take(request, num_tokens))
                budget -= num_tokens
                index += 1
        if not was_preempted:
            self._admit(rows, budget)
        return rows

    def _admit(self, rows: list[ScheduledRow], budget: int) -> None:
        while self.waiting and budget > 0 and self._free_rows:
            request = self.waiting[0]
            is_whole = self.cache.keeps_tokens or request.num_tokens <= budget
            if request.num_pending or not is_whole or not self._enter(request, budget):
                return
            self.waiting.popleft()
            self.running.append(request)
            num_tokens = min(request.num_missing, budget)
            rows.append(self._take(request, num_tokens))
            budget -= num_tokens

    def _enter(self, request: Request, budget: int) -> bool:
        """Give a waiting request a row and pages for all that it knows, so that a chunked prompt is not cut short.

        One page for each running request is left besides: else the next steps would take this one's pages away.
        """
        num_cached = self.cache.take_prefix(request)
        chunk_end = min(len(request.tokens), num_cached + budget)
        has_room = self.cache.grow(request, chunk_end, len(request.tokens) - chunk_end)
        is_tight = bool(self.cache.groups) and bool(self.running) and self.cache.num_free_pages < len(self.running)
        if not has_room or is_tight:
            self.cache.release(request)
            return False
        request.num_computed = num_cached
        if request.num_cached is None:
            request.num_cached = num_cached
        request.row, request.row_is_new = self._free_rows.pop(), True
        self.cache.enter_row(request)
        return True

    def _take(self, request: Request, num_tokens: int) -> ScheduledRow:
        start = request.num_computed
        end = request.num_computed = start + num_tokens
        samples = end == len(request.tokens) + request.num_pending
        if samples and not request.is_embedding:
            request.num_pending += 1
        return ScheduledRow(request, request.row, start, num_tokens, samples)

    def update(
        self, rows: Sequence[ScheduledRow], tokens: Sequence[int], eos_token_ids: frozenset[int]
    ) -> list[tuple[ScheduledRow, int]]:
        """Take the results of a step: `tokens` of the rows that sample, in order.

        Returns the rows of requests that are still wanted, with their new tokens; requests with a finish_reason are
        released.
        """
        news = []
        sampled = iter(tokens)
        for scheduled in rows:
            if not scheduled.samples:
                continue
            token, request = next(sampled), scheduled.request
            if request.finish_reason is not None:
                continue
            if request.is_embedding:
                request.finish_reason = FinishReason.STOP
            else:
                request.append(token, eos_token_ids)
            if request.row != NO_ROW:
                self.cache.register(request)
            if request.finish_reason is not None:
                self._remove(request)
            news.append((scheduled, token))
        return news

    def abort(self, request_ids: Iterable[str]) -> list[Request]:
        """Drop these requests and take back what they hold; those that are not here are ignored."""
        wanted = set(request_ids)
        dropped = [r for r in (*self.running, *self.waiting) if r.request_id in wanted]
        for request in dropped:
            request.finish_reason = FinishReason.ABORT
            self._remove(request)
        return dropped

    def fail(self, request: Request) -> None:
        """Drop a request that cannot go on, or that had just finished with a token that is none."""
        if request.finish_reason is None:
            self._remove(request)
        request.finish_reason = FinishReason.ERROR

    def _remove(self, request: Request) -> None:
        if request.row == NO_ROW:
            self.waiting.remove(request)
        else:
            self._leave_row(request)
            self.running.remove(request)

    def _preempt_youngest(self) -> Request:
        """The last of the running gives its pages back and will be computed again from its first token."""
        request = self.running.pop()
        self._leave_row(request)
        request.num_computed = 0
        request.num_preemptions += 1
        self.num_preemptions += 1
        self.waiting.appendleft(request)
        return request

    def _leave_row(self, request: Request) -> None:
        self.cache.release(request)
        self._free_rows.append(request.row)
        request.row = NO_ROW

    def check_invariants(self) -> None:
        """Errors: AssertionError when a page or a row is lost, or held twice."""
        self.cache.check_invariants(self.running)
        rows = [request.row for request in self.running]
        assert sorted(rows + self._free_rows) == list(range(self.limits.max_num_seqs)), "A row is lost or held twice."
        for request in self.running:
            assert 0 <= request.num_computed <= request.num_tokens
            for group, pages in zip(self.cache.groups, request.pages, strict=True):
                held = request.encoder_len if group.kind is CacheKind.CROSS else request.num_computed
                assert held <= len(pages) * self.cache.page_size
        for request in self.waiting:
            assert not any(request.pages)
            assert request.num_computed == 0
            assert request.row == NO_ROW

    def _check(self, request: Request) -> None:
        limits, most = self.limits, request.max_tokens
        label = f"Request {request.request_id}"
        if request.prompt_len == 0:
            raise UnsupportedError(f"{label} has an empty prompt; at least 1 token is needed.")
        for token in (min(request.tokens), max(request.tokens)):
            if not 0 <= token < limits.vocab_size:
                raise UnsupportedError(f"{label}: token id {token} is not in [0, {limits.vocab_size}), the vocabulary.")
        request.params.check_vocabulary(limits.vocab_size)
        sizes = f"{request.prompt_len} prompt + {most - request.prompt_len} new = {most} tokens"
        if most > limits.max_model_len:
            raise UnsupportedError(
                f"{label} may come to {sizes}; max_model_len is {limits.max_model_len}. Ask for fewer tokens."
            )
        # The token sampled last is never written to the cache.
        held = max(request.prompt_len, most - 1)
        if not self.cache.keeps_tokens and held > limits.max_num_batched_tokens:
            raise UnsupportedError(
                f"{label} has {held} tokens, and a model without a cache takes them in one step; "
                f"max_num_batched_tokens is {limits.max_num_batched_tokens}."
            )
        if lack := self.cache.lack(held, limits.max_num_batched_tokens, request.encoder_len):
            raise UnsupportedError(f"{label} may come to {sizes}, {lack}. Raise num_pages or ask for fewer tokens.")
