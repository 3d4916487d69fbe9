"""What the engine's steps mean to a caller: answers with text, for the offline LLM and for the server."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any

from numpy.typing import NDArray
from tokenizers import Tokenizer

from fastkernels.engine.detokenizer import Detokenizer, NoText, TextStream, Vocabulary
from fastkernels.engine.multimodal import Media
from fastkernels.engine.outputs import (
    CompletionOutput,
    EngineRequest,
    FinishReason,
    RequestOutput,
    StepOutput,
    TokenLogprobs,
)
from fastkernels.engine.sampling_params import SamplingParams, SamplingParamsError

_SEED_LIMIT = 2**63


class OutputKind(StrEnum):
    """How much an output tells: all so far, what is new since the last one taken, or all once at the end."""

    CUMULATIVE = "cumulative"
    DELTA = "delta"
    FINAL_ONLY = "final_only"


@dataclass(eq=False)
class Answer:
    """One of a request's n answers, as far as it has come."""

    index: int
    engine_id: str
    params: SamplingParams
    stream: TextStream
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    stop_reason: str | int | None = None
    has_started: bool = False  # the client's mark
    _num_detokenized: int = 0
    _num_taken: int = 0
    _is_end_told: bool = False

    def add(self, output: StepOutput, ends: frozenset[int]) -> bool:
        """Take a step's tokens; whether a stop text ended the answer before the engine did."""
        self.token_ids += output.token_ids
        if output.logprobs:
            self.logprobs += output.logprobs
        if self.params.stop and self._find_stop(self._num_shown(output.finish_reason, ends)):
            return output.finish_reason is None
        if output.finish_reason is not None:
            self._finish(output.finish_reason, ends)
        return False

    def output(self, is_delta: bool) -> CompletionOutput:
        if not self.params.stop:
            self._detokenize(len(self.token_ids) if self.finish_reason is None else self._num_detokenized)
        start = self._num_taken if is_delta else 0
        self._num_taken = len(self.token_ids)
        self._is_end_told = self.finish_reason is not None
        return CompletionOutput(
            index=self.index,
            text=self.stream.take() if is_delta else self.stream.text,
            token_ids=tuple(self.token_ids[start:]),
            finish_reason=self.finish_reason,
            stop_reason=self.stop_reason,
            logprobs=tuple(self.logprobs[start:]) if self.params.logprobs is not None else None,
        )

    @property
    def has_news(self) -> bool:
        return self._num_taken < len(self.token_ids) or (self.finish_reason is not None and not self._is_end_told)

    def _detokenize(self, end: int) -> None:
        self.stream.add(self.token_ids[self._num_detokenized : end])
        self._num_detokenized = end

    def _find_stop(self, end: int) -> bool:
        """Token by token, so that none is kept behind the one that completed the stop text."""
        for count in range(self._num_detokenized + 1, end + 1):
            self._num_detokenized = count
            stop = self.stream.add(self.token_ids[count - 1 : count], may_stop=count > self.params.min_tokens)
            if stop is not None:
                self._stop_at(stop, count)
                return True
        return False

    def _stop_at(self, stop: str, num_tokens: int) -> None:
        del self.token_ids[num_tokens:], self.logprobs[num_tokens:]
        self.finish_reason, self.stop_reason = FinishReason.STOP, stop

    def _finish(self, reason: FinishReason, ends: frozenset[int]) -> None:
        self._detokenize(self._num_shown(reason, ends))
        stop = self.stream.finish()
        self.finish_reason = reason
        if stop is not None:
            self._stop_at(stop, len(self.token_ids))
        elif reason is FinishReason.STOP and self.token_ids and self.token_ids[-1] in self.params.stop_token_ids:
            self.stop_reason = self.token_ids[-1]

    def _num_shown(self, reason: FinishReason | None, ends: frozenset[int]) -> int:
        """Tokens whose text belongs to the answer: not the one that ended it, unless asked for."""
        count = len(self.token_ids)
        if reason is not FinishReason.STOP or not count or self.params.include_stop_str_in_output:
            return count
        last = self.token_ids[-1]
        return count - (last in ends or last in self.params.stop_token_ids)


@dataclass(eq=False)
class RequestState:
    """A request between its arrival and its last output. public_id: what outputs name it by, when not request_id."""

    request_id: str
    prompt: str | None
    prompt_token_ids: tuple[int, ...]
    answers: list[Answer]
    prompt_logprobs: tuple[TokenLogprobs, ...] | None = None
    embedding: tuple[float, ...] | None = None
    num_cached_tokens: int = 0
    num_preemptions: int = 0
    error: str | None = None
    public_id: str | None = None

    @property
    def is_finished(self) -> bool:
        for answer in self.answers:  # noqa: SIM110 -- once a token; a generator costs more than the look
            if answer.finish_reason is None:
                return False
        return True

    @property
    def num_output_tokens(self) -> int:
        return sum(len(answer.token_ids) for answer in self.answers)

    def output(self, kind: OutputKind = OutputKind.CUMULATIVE) -> RequestOutput:
        """What there is to tell; a DELTA holds only the answers that have something new."""
        is_delta = kind is OutputKind.DELTA
        return RequestOutput(
            request_id=self.request_id if self.public_id is None else self.public_id,
            prompt=self.prompt,
            prompt_token_ids=self.prompt_token_ids,
            outputs=tuple(a.output(is_delta) for a in self.answers if not is_delta or a.has_news),
            finished=self.is_finished,
            prompt_logprobs=self.prompt_logprobs,
            embedding=self.embedding,
            num_cached_tokens=self.num_cached_tokens,
            num_preemptions=self.num_preemptions,
        )


class OutputProcessor:
    """Every unfinished request. eos_token_ids: the model's end tokens; a tokenizer's special ones always end a text."""

    def __init__(self, tokenizer: Tokenizer, eos_token_ids: Iterable[int] = ()) -> None:
        self.vocabulary = Vocabulary(tokenizer)
        self._ends = self.vocabulary.special_ids | frozenset(eos_token_ids)
        self._states: dict[str, RequestState] = {}
        self._answers: dict[str, tuple[RequestState, Answer]] = {}

    def __len__(self) -> int:
        return len(self._states)

    def __contains__(self, request_id: object) -> bool:
        return request_id in self._states

    def add(
        self,
        request_id: str,
        prompt: str | None,
        prompt_token_ids: Sequence[int],
        params: SamplingParams,
        is_embedding: bool = False,
        media: Media | None = None,
        encoder_input: NDArray[Any] | None = None,
    ) -> list[EngineRequest]:
        """One engine request for each of the n answers; the i-th has seed + i.

        Errors: SamplingParamsError when the id is in use.
        """
        if request_id in self._states:
            raise SamplingParamsError("request_id", f"request_id {request_id!r} is in use; ids of requests differ.")
        tokens = tuple(prompt_token_ids)
        state = RequestState(request_id, prompt, tokens, [])
        requests = []
        for index in range(params.n):
            one = self._params_of(params, index)
            engine_id = request_id if params.n == 1 else f"{request_id}#{index}"
            stream = TextStream(self._detokenizer(params, tokens), params.stop, params.include_stop_str_in_output)
            answer = Answer(index, engine_id, one, stream)
            state.answers.append(answer)
            self._answers[engine_id] = state, answer
            requests.append(EngineRequest(engine_id, tokens, one, is_embedding, encoder_input, media))
        self._states[request_id] = state
        return requests

    def _detokenizer(self, params: SamplingParams, prompt_token_ids: Sequence[int]) -> Detokenizer:
        if not params.detokenize:
            return NoText()
        return self.vocabulary.detokenizer(params.skip_special_tokens, prompt_token_ids)

    def state(self, request_id: str) -> RequestState:
        return self._states[request_id]

    def find(self, engine_id: str) -> RequestState | None:
        """The request of an engine request that is not finished."""
        found = self._answers.get(engine_id)
        return found[0] if found is not None else None

    def update(self, step_outputs: Iterable[StepOutput]) -> tuple[list[RequestState], list[str]]:
        """The requests that changed, and the engine requests to abort because a stop text came."""
        changed: dict[str, RequestState] = {}
        to_abort = []
        for step in step_outputs:
            found = self._answers.get(step.request_id)
            if found is None:  # it ended here before it ended there
                continue
            state, answer = found
            changed[state.request_id] = state
            if answer.add(step, self._ends):
                to_abort.append(step.request_id)
            _note(state, answer, step)
            if answer.finish_reason is not None:
                del self._answers[step.request_id]
                if state.is_finished:
                    del self._states[state.request_id]
        return list(changed.values()), to_abort

    def process(
        self, step_outputs: Iterable[StepOutput], only_finished: bool = False
    ) -> tuple[list[RequestOutput], list[str]]:
        """As `update`, with the cumulative outputs; `only_finished` spares those of requests that go on."""
        changed, to_abort = self.update(step_outputs)
        return [state.output() for state in changed if not only_finished or state.is_finished], to_abort

    def abort(self, request_id: str, reason: FinishReason = FinishReason.ABORT) -> list[str]:
        """End a request here; the engine requests to end there. An unknown id has none."""
        state = self._states.pop(request_id, None)
        if state is None:
            return []
        open_ids = [a.engine_id for a in state.answers if a.finish_reason is None]
        for engine_id in open_ids:
            self._answers.pop(engine_id)[1].add(StepOutput(engine_id, finish_reason=reason), self._ends)
        return open_ids

    def _params_of(self, params: SamplingParams, index: int) -> SamplingParams:
        if params.n == 1:
            return params
        seed = None if params.seed is None else (params.seed + index) % _SEED_LIMIT
        return replace(params, n=1, seed=seed, prompt_logprobs=params.prompt_logprobs if index == 0 else None)


def _note(state: RequestState, answer: Answer, step: StepOutput) -> None:
    if step.num_preemptions > state.num_preemptions:
        state.num_preemptions = step.num_preemptions
    if answer.index == 0 and step.num_cached_tokens > state.num_cached_tokens:
        state.num_cached_tokens = step.num_cached_tokens
    if step.prompt_logprobs is not None:
        state.prompt_logprobs = step.prompt_logprobs
    if step.embedding is not None:
        state.embedding = step.embedding
    if step.finish_reason is FinishReason.ERROR:
        state.error = step.error
