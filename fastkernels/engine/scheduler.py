"""Which tokens of which requests the next step computes.

There is no prefill and no decode: a request is behind by some tokens, and a step takes as many of them as the
budget and the pages allow. The idea is vLLM's (https://docs.vllm.ai/en/latest/design/arch_overview.html, V1).
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from fastkernels.engine.cache import PageAllocator
from fastkernels.engine.request import Request
from fastkernels.errors import UnsupportedError, UsageError


@dataclass(frozen=True)
class SchedulerLimits:
    """What a step and the cache can hold. max_model_len: the positions that the model knows."""

    num_pages: int
    page_size: int
    max_num_batched_tokens: int
    max_num_seqs: int
    max_model_len: int
    vocab_size: int

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value < 1:
                raise UsageError(f"{name} is {value}; the least is 1.")


@dataclass(frozen=True)
class ScheduledRow:
    """The next `num_tokens` of a request; `samples` when they are all that it lacked."""

    request: Request
    num_tokens: int

    @property
    def samples(self) -> bool:
        return self.num_tokens == self.request.num_missing


class Scheduler:
    """Running requests first, oldest first; then waiting ones. Who is youngest gives way when pages run out."""

    def __init__(self, limits: SchedulerLimits) -> None:
        self.limits = limits
        self.pages = PageAllocator(limits.num_pages)
        self.waiting: deque[Request] = deque()
        self.running: list[Request] = []

    @property
    def has_unfinished(self) -> bool:
        return bool(self.waiting or self.running)

    def add(self, request: Request) -> None:
        """Errors: UnsupportedError names the limit when the request can never run."""
        self._check(request)
        self.waiting.append(request)

    def schedule(self) -> list[ScheduledRow]:
        """The rows of the next step, with their pages; never empty while a request is unfinished."""
        rows: list[ScheduledRow] = []
        budget = self.limits.max_num_batched_tokens
        was_preempted = False
        index = 0
        while index < len(self.running) and budget > 0:
            request = self.running[index]
            num_tokens = min(request.num_missing, budget)
            while not self._grow(request, request.num_computed + num_tokens):
                was_preempted = True
                if self._preempt_youngest() is request:
                    break
            else:
                rows.append(ScheduledRow(request, num_tokens))
                budget -= num_tokens
                index += 1
        while self.waiting and budget > 0 and len(self.running) < self.limits.max_num_seqs and not was_preempted:
            # A request comes in only with pages for all that it knows, so that a chunked prompt is not cut short.
            if not self._grow(self.waiting[0], self.waiting[0].num_tokens):
                break
            request = self.waiting.popleft()
            self.running.append(request)
            num_tokens = min(request.num_missing, budget)
            rows.append(ScheduledRow(request, num_tokens))
            budget -= num_tokens
        return rows

    def update(self, rows: list[ScheduledRow], sampled: dict[int, int], eos_token_ids: frozenset[int]) -> list[Request]:
        """Take the results of a step: `sampled` by request id. Returns the requests that finished."""
        finished = []
        for row in rows:
            request = row.request
            request.num_computed += row.num_tokens
            if request.request_id in sampled:
                request.append(sampled[request.request_id], eos_token_ids)
            if request.finish_reason is not None:
                self._release(request)
                self.running.remove(request)
                finished.append(request)
        return finished

    def abort_all(self) -> None:
        """Drop every request and take its pages back."""
        for request in self.running:
            self._release(request)
        self.running.clear()
        self.waiting.clear()

    def check_invariants(self) -> None:
        """Errors: AssertionError when a page is lost, held twice, or too many or too few are held."""
        held = [page for request in (*self.running, *self.waiting) for page in request.pages]
        assert len(held) == len(set(held)), f"A page is held twice: {sorted(held)}."
        assert self.pages.num_used == len(held), f"{self.pages.num_used} pages are used, requests hold {len(held)}."
        assert self.pages.num_free + self.pages.num_used == self.pages.num_pages
        for request in self.running:
            assert request.num_computed <= len(request.pages) * self.limits.page_size
        for request in self.waiting:
            assert not request.pages
            assert request.num_computed == 0

    def _check(self, request: Request) -> None:
        limits, most = self.limits, request.prompt_len + request.params.max_tokens
        label = f"Request {request.request_id}"
        if request.prompt_len == 0:
            raise UnsupportedError(f"{label} has an empty prompt; at least 1 token is needed.")
        for token in request.tokens:
            if not 0 <= token < limits.vocab_size:
                raise UnsupportedError(f"{label}: token id {token} is not in [0, {limits.vocab_size}), the vocabulary.")
        sizes = f"{request.prompt_len} prompt + {request.params.max_tokens} new = {most} tokens"
        if most > limits.max_model_len:
            raise UnsupportedError(
                f"{label} may come to {sizes}; max_model_len is {limits.max_model_len}. Ask for fewer tokens."
            )
        # The token sampled last is never written to the cache.
        needed = self._num_pages(most - 1)
        if needed > limits.num_pages:
            raise UnsupportedError(
                f"{label} may come to {sizes}, {needed} pages of {limits.page_size}; num_pages is {limits.num_pages}. "
                f"Raise num_pages or ask for fewer tokens."
            )

    def _num_pages(self, num_tokens: int) -> int:
        return -(-num_tokens // self.limits.page_size)

    def _grow(self, request: Request, num_tokens: int) -> bool:
        """Whether `request` now holds the pages for its first `num_tokens`."""
        lacking = self._num_pages(num_tokens) - len(request.pages)
        if lacking <= 0:
            return True
        pages = self.pages.allocate(lacking)
        if pages is None:
            return False
        request.pages += pages
        return True

    def _preempt_youngest(self) -> Request:
        """The last of the running gives its pages back and will be computed again from its first token."""
        request = self.running.pop()
        self._release(request)
        request.num_computed = 0
        request.num_preemptions += 1
        self.waiting.appendleft(request)
        return request

    def _release(self, request: Request) -> None:
        self.pages.free(request.pages)
        request.pages = []
