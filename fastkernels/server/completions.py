"""/v1/completions: a text, texts, or token ids, continued."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fastkernels.engine.detokenizer import Vocabulary
from fastkernels.engine.outputs import CompletionOutput, RequestOutput, TokenLogprobs
from fastkernels.server.generation import Job, Prompt, usage
from fastkernels.server.protocol import CompletionBody
from fastkernels.server.service import Service
from fastkernels.server.token_logprobs import TextOffsets, token_name

DEFAULT_MAX_TOKENS = 16
_TOLD = ("text", "finish_reason", "logprobs", "token_ids", "prompt_logprobs")
"""A choice of a chunk in which all of these are empty is left out."""


async def build_job(service: Service, body: CompletionBody, request_id: str) -> Job:
    """Errors: ApiError and SamplingParamsError name the field."""
    body.check()
    prompts = await read_prompts(service, body.prompt, "prompt", body.add_special_tokens is not False)
    # 0 tokens and echo ask for the prompt's log-probabilities: one is made and not told.
    wanted = 1 if body.max_tokens == 0 and body.echo else body.max_tokens
    longest = max(len(prompt.token_ids) for prompt in prompts)
    shortest = min(len(prompt.token_ids) for prompt in prompts)
    max_tokens = service.max_tokens(wanted, DEFAULT_MAX_TOKENS, longest if shortest else 0, "prompt")
    if body.echo and body.logprobs is not None and body.prompt_logprobs is None:
        body.prompt_logprobs = body.logprobs
    params = body.sampling_params(max_tokens, body.logprobs)
    is_scoring = body.max_tokens == 0
    return Job(request_id, body.model or service.model_names[0], prompts, params, is_scoring)


async def read_prompts(service: Service, given: Any, param: str, add_special_tokens: bool = True) -> list[Prompt]:
    """One prompt or several; texts or token ids. Errors: ApiError."""
    many = given if isinstance(given, list) and given and not isinstance(given[0], int) else [given]
    service.check_count(many, param)
    if isinstance(many[0], str):
        encoded = await service.encode_all(many, param, add_special_tokens)
        prompts = [Prompt(tokens, text) for tokens, text in zip(encoded, many, strict=True)]
    else:
        for tokens in many:
            service.check_tokens(tokens, param)
        prompts = [Prompt(tokens) for tokens in many]
    for prompt in prompts:
        service.check_placeholders(prompt.token_ids, param)
    return prompts


class CompletionShape:
    def __init__(self, body: CompletionBody, job: Job, vocabulary: Vocabulary) -> None:
        self._job, self._vocabulary = job, vocabulary
        self._echo = bool(body.echo)
        self._wants_logprobs = body.logprobs is not None
        self._wants_token_ids = bool(body.return_token_ids)
        self._wants_prompt_logprobs = body.prompt_logprobs is not None
        self._echoed: set[tuple[int, int]] = set()
        self._scored: set[tuple[int, int]] = set()
        self._offsets: dict[tuple[int, int], TextOffsets] = {}

    def response(self, outputs: Sequence[RequestOutput]) -> dict[str, Any]:
        choices = [self._choice(i, output, answer) for i, output in enumerate(outputs) for answer in output.outputs]
        num_output = 0 if self._job.is_scoring else sum(len(a.token_ids) for o in outputs for a in o.outputs)
        num_cached = sum(output.num_cached_tokens for output in outputs)
        return self._head() | {"choices": choices, "usage": usage(self._job.num_prompt_tokens, num_output, num_cached)}

    def chunks(self, prompt_index: int, output: RequestOutput) -> list[dict[str, Any]]:
        choices = [self._choice(prompt_index, output, answer) for answer in output.outputs]
        told = [c for c in choices if any(c.get(k) for k in _TOLD)]
        return [self._head() | {"choices": told}] if told else []

    def last_chunk(self) -> dict[str, Any]:
        return self._head() | {"choices": []}

    def _head(self) -> dict[str, Any]:
        job = self._job
        return {"id": job.request_id, "object": "text_completion", "created": job.created, "model": job.model}

    def _choice(self, prompt_index: int, output: RequestOutput, answer: CompletionOutput) -> dict[str, Any]:
        key = (prompt_index, answer.index)
        echoes = self._echo and key not in self._echoed
        self._echoed.add(key)
        prompt = self._prompt_text(prompt_index) if echoes else ""
        choice: dict[str, Any] = {
            "index": prompt_index * self._job.params.n + answer.index,
            "text": prompt + ("" if self._job.is_scoring else answer.text),
            "logprobs": None,
            "finish_reason": answer.finish_reason.value if answer.finish_reason is not None else None,
            "stop_reason": answer.stop_reason,
        }
        if self._wants_token_ids:
            choice["token_ids"] = [] if self._job.is_scoring else list(answer.token_ids)
        if self._wants_logprobs:
            choice["logprobs"] = self._logprobs(key, output, answer, echoes)
        is_scored = key in self._scored or not self._wants_prompt_logprobs
        if not is_scored and output.prompt_logprobs is not None:
            self._scored.add(key)
            choice["prompt_logprobs"] = prompt_logprobs(output.prompt_logprobs, self._vocabulary)
        return choice

    def _prompt_text(self, index: int) -> str:
        prompt = self._job.prompts[index]
        if prompt.text is not None:
            return prompt.text
        return self._vocabulary.tokenizer.decode(list(prompt.token_ids), skip_special_tokens=False)

    def _logprobs(
        self, key: tuple[int, int], output: RequestOutput, answer: CompletionOutput, echoes: bool
    ) -> dict[str, Any]:
        said: list[tuple[int, TokenLogprobs | None]] = []
        offsets = self._offsets.get(key)
        if offsets is None:
            skips = self._job.params.skip_special_tokens
            offsets = self._offsets[key] = TextOffsets(self._vocabulary, skips)
        begins = []
        if echoes:
            tokens = output.prompt_token_ids
            said += zip(tokens, [None, *(output.prompt_logprobs or [None] * (len(tokens) - 1))], strict=False)
            begins += offsets.of_prompt([token for token, _ in said], self._prompt_text(key[0]))
        if not self._job.is_scoring:
            told = list(zip(answer.token_ids, answer.logprobs or (), strict=False))
            said += told
            begins += offsets.of_answer([token for token, _ in told])
        return {
            "tokens": [token_name(self._vocabulary, token) for token, _ in said],
            "token_logprobs": [None if p is None else _finite(p.logprobs[0]) for _, p in said],
            "top_logprobs": [None if p is None else self._by_name(p) for _, p in said],
            "text_offset": begins,
        }

    def _by_name(self, said: TokenLogprobs) -> dict[str, float]:
        """Of two tokens of one text the first is told: the one that was drawn, or the likelier."""
        named: dict[str, float] = {}
        for token, value in zip(said.token_ids, said.logprobs, strict=True):
            named.setdefault(token_name(self._vocabulary, token), _finite(value))
        return named


def prompt_logprobs(said: Sequence[TokenLogprobs], vocabulary: Vocabulary) -> list[dict[str, Any] | None]:
    """vLLM's form: by token id, None for the first token."""
    return [
        None,
        *(
            {
                str(token): {"logprob": _finite(value), "decoded_token": vocabulary.token_text(token)}
                for token, value in zip(one.token_ids, one.logprobs, strict=True)
            }
            for one in said
        ),
    ]


def _finite(value: float) -> float:
    """JSON has no infinity; OpenAI's least is -9999."""
    return max(value, -9999.0)
