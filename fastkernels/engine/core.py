"""The engine of one process: requests in, one step after another, news of each out.

A step is launched before the tokens of the one before it are read, so that the host's work hides behind the device's.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from hashlib import blake2b
from typing import Any

from fastkernels.engine.batch import EnteringRow, batch_order, build_inputs
from fastkernels.engine.cache import CacheManager
from fastkernels.engine.config import EngineConfig
from fastkernels.engine.fake import FakeExecutor
from fastkernels.engine.model_source import check_experts
from fastkernels.engine.multimodal import MediaPlanner
from fastkernels.engine.outputs import (
    EngineInfo,
    EngineRequest,
    EngineStats,
    FinishReason,
    StepOutput,
    TokenLogprobs,
)
from fastkernels.engine.request import Request
from fastkernels.engine.scheduler import ScheduledRow, Scheduler, SchedulerLimits
from fastkernels.engine.step import Executor, Step, StepResult
from fastkernels.engine.structured import GrammarError
from fastkernels.errors import FastKernelsError


@dataclass(frozen=True)
class _Launched:
    rows: list[ScheduledRow]
    step: Step


class EngineCore:
    """Schedules, launches, and tells.

    executor: what runs the steps; None: the one that `config` asks for.
    Errors: those of the configuration and the checkpoint when built; `add` refuses what can never run.
    """

    def __init__(self, config: EngineConfig, executor: Executor | None = None) -> None:
        started = time.perf_counter()
        self.config = config
        self.executor = executor or _executor(config)
        facts = self.executor.facts
        self.tokenizer = facts.tokenizer
        limits = SchedulerLimits(
            max_num_batched_tokens=config.max_num_batched_tokens,
            max_num_seqs=facts.max_num_seqs,
            max_model_len=facts.max_model_len,
            vocab_size=facts.vocab_size,
        )
        self.cache = CacheManager(
            facts.cache_groups,
            facts.num_pages,
            config.page_size,
            facts.max_num_seqs,
            facts.max_model_len,
            config.enable_prefix_caching,
            facts.has_state,
            facts.max_encoder_len,
        )
        self.scheduler = Scheduler(limits, self.cache)
        self.runner = self.executor.runner
        self.eos_token_ids = facts.eos_token_ids
        self.info = EngineInfo(
            model=facts.model,
            dtype=facts.dtype,
            device=facts.device,
            vocab_size=facts.vocab_size,
            max_model_len=facts.max_model_len,
            eos_token_ids=facts.eos_token_ids,
            num_pages=facts.num_pages,
            page_size=config.page_size,
            max_num_seqs=facts.max_num_seqs,
            max_num_batched_tokens=config.max_num_batched_tokens,
            tensor_parallel_size=config.tensor_parallel_size,
            enable_expert_parallel=config.enable_expert_parallel,
            startup_seconds=time.perf_counter() - started,
            weight_bytes=facts.weight_bytes,
            cache_bytes=facts.cache_bytes,
            takes_media=facts.takes_media,
        )
        self._planner: MediaPlanner | None = None
        self._in_flight: _Launched | None = None
        self._news: list[StepOutput] = []
        self._counts: Counter[str] = Counter()
        self._finished: Counter[str] = Counter()

    @property
    def has_unfinished(self) -> bool:
        return bool(self._news) or self._in_flight is not None or self.scheduler.has_unfinished

    def check(self, request: EngineRequest) -> None:
        """As `add` does first; it may be called in another thread before, to load and compile what takes long.

        Errors: SamplingParamsError or UnsupportedError for what the model's executor cannot do.
        """
        self.executor.check(request)

    def add(self, request: EngineRequest) -> int:
        """The most tokens that its answer can come to: without max_tokens as many as there is room for.

        Errors: UnsupportedError or SamplingParamsError names the limit that the request exceeds.
        """
        self.executor.check(request)
        encoder_len = 0 if request.encoder_input is None else self.executor.encoder_len(request.encoder_input)
        params = request.params
        if params.max_tokens is None:
            room = self.scheduler.room(len(request.prompt_token_ids), encoder_len)
            request = replace(request, params=replace(params, max_tokens=max(1, room, params.min_tokens)))
        added = Request.of(request)
        added.needs_tokens, added.encoder_len = params.needs_tokens, encoder_len
        self.scheduler.add(added)
        if request.media is not None and self._planner is None:
            self._planner = MediaPlanner()
        return added.max_tokens - added.prompt_len

    def abort(self, request_ids: Iterable[str]) -> None:
        """Drop requests; ids that are not here are ignored. A step in flight finishes without them."""
        for request in self.scheduler.abort(request_ids):
            self._news.append(self._output(request, ()))

    def step(self) -> list[StepOutput]:
        """Launch a step, then take the results of the one before: what is new of each request, if anything."""
        in_flight, self._in_flight = self._in_flight, None
        if in_flight is not None and self._must_wait(in_flight):
            self._complete(in_flight)
            in_flight = None
        rows = self.scheduler.schedule()
        if rows:
            self._in_flight = self._launch(rows)
        if in_flight is not None:
            self._complete(in_flight)
        news, self._news = self._news, []
        return news

    def stats(self) -> EngineStats:
        scheduler = self.scheduler
        return EngineStats(
            num_running=len(scheduler.running),
            num_waiting=len(scheduler.waiting),
            num_free_pages=self.cache.num_free_pages,
            num_steps=self._counts["steps"],
            num_graph_steps=self.runner.num_graph_steps,
            num_prompt_tokens=self._counts["prompt_tokens"],
            num_cached_tokens=self._counts["cached_tokens"],
            num_generated_tokens=self._counts["generated_tokens"],
            num_preemptions=scheduler.num_preemptions,
            num_finished=dict(self._finished),
            num_compilations=self.executor.num_compilations(),
            num_kernels_made=self.executor.num_kernels_made(),
            peak_memory_bytes=self.executor.peak_memory_bytes(),
        )

    def when_failed(self, tell: Callable[[FastKernelsError], None]) -> None:
        """`tell` is called, in any thread, when no step can be made any more, also while none is being made."""
        self.executor.when_failed(tell)

    def check_device(self) -> None:
        """There is nothing to look at: `add` uses no device, and an error in a step ends the engine."""

    def kernels(self) -> list[dict[str, Any]]:
        """Which implementation serves each op of the model."""
        return self.executor.kernels()

    def close(self) -> None:
        self.executor.close()

    def _must_wait(self, in_flight: _Launched) -> bool:
        """Whether a request in flight cannot go on before the host has seen its token."""
        return any(s.samples and s.request.needs_tokens for s in in_flight.rows)

    def _launch(self, scheduled: list[ScheduledRow]) -> _Launched:
        rows = batch_order(scheduled)
        new = [s.request for s in rows if s.request.row_is_new]
        entering = [self._entering(request) for request in new]
        for request in new:
            request.row_is_new = False
        step = self.runner.launch(build_inputs(rows, self.cache, entering, self._planner))
        self._counts["steps"] += 1
        return _Launched(rows, step)

    def _entering(self, request: Request) -> EnteringRow:
        seed = request.params.seed
        if seed is None:
            digest = blake2b(f"{self.config.seed} {request.request_id}".encode(), digest_size=7).digest()
            seed = int.from_bytes(digest, "little")
        prompt_len = request.prompt_len
        return EnteringRow(
            request.row,
            request.params,
            seed,
            tuple(request.tokens[:prompt_len]),
            tuple(request.tokens[prompt_len:]),
            request.encoder_input,
        )

    def _complete(self, launched: _Launched) -> None:
        result = launched.step.wait()
        for s in launched.rows if result.prompt_logprobs else ():
            part = result.prompt_logprobs.get(s.row)
            if part is not None:  # at its place: a prompt that gave way halfway is computed, and told, again
                s.request.prompt_logprobs[s.start :] = part
        said: dict[int, TokenLogprobs | None] = {}
        if result.logprobs:
            said = dict(zip((s.row for s in launched.rows if s.samples), result.logprobs, strict=True))
        for scheduled, token in self.scheduler.update(launched.rows, result.tokens, self.eos_token_ids):
            self._tell(scheduled.request, token, said.get(scheduled.row), result, scheduled.row)

    def _tell(self, request: Request, token: int, logprobs: TokenLogprobs | None, result: StepResult, row: int) -> None:
        if request.needs_tokens:
            try:
                self.runner.accept(row, token)
            except GrammarError as error:
                self.scheduler.fail(request)
                self._news.append(self._output(request, (), error=str(error)))
                return
        if request.is_embedding:
            self._news.append(self._output(request, (), embedding=result.embeddings[row]))
            return
        self._counts["generated_tokens"] += 1
        self._news.append(self._output(request, (token,), logprobs))

    def _output(
        self,
        request: Request,
        token_ids: tuple[int, ...],
        logprobs: TokenLogprobs | None = None,
        embedding: tuple[float, ...] | None = None,
        error: str | None = None,
    ) -> StepOutput:
        is_first = len(request.tokens) == request.prompt_len + len(token_ids) and request.num_cached is not None
        if is_first:
            self._counts["prompt_tokens"] += request.prompt_len
            self._counts["cached_tokens"] += request.num_cached or 0
        reason = request.finish_reason
        if reason is not None:
            self._finished[reason.value] += 1
        wants_prompt = is_first and request.params.prompt_logprobs is not None
        return StepOutput(
            request.request_id,
            token_ids,
            reason,
            None if logprobs is None else (logprobs,),
            tuple(request.prompt_logprobs) if wants_prompt else None,
            embedding,
            request.num_cached or 0,
            request.num_preemptions,
            "aborted" if reason is FinishReason.ABORT else error,
        )


def _executor(config: EngineConfig) -> Executor:
    if config.is_fake:
        return FakeExecutor(config)
    if config.enable_expert_parallel:
        check_experts(config.model, config.tensor_parallel_size)
    if config.tensor_parallel_size > 1:
        from fastkernels.engine.parallel import ParallelExecutor

        return ParallelExecutor(config)
    from fastkernels.engine.executor import ModelExecutor

    return ModelExecutor(config)
