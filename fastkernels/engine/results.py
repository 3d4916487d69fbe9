"""What LLM gives back, in vLLM's form: https://docs.vllm.ai/en/latest/api/vllm/outputs

Inside the engine and the server results are the smaller ones of `outputs`; here is the border.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fastkernels.engine import outputs
from fastkernels.engine.detokenizer import Vocabulary
from fastkernels.engine.outputs import TokenLogprobs


@dataclass(frozen=True)
class Logprob:
    """rank: among all tokens of the vocabulary, 1 is the likeliest. decoded_token: None without detokenize."""

    logprob: float
    rank: int
    decoded_token: str | None


Logprobs = dict[int, Logprob]
"""At one place by token id: the token that is there, then the likeliest in order."""


@dataclass
class CompletionOutput:
    """One answer; text is that of token_ids, cut at a stop text.

    cumulative_logprob: the sum over token_ids, and logprobs: one a token; both None unless they were asked for.
    finish_reason: "stop" or "length". stop_reason: the stop text or token id, if one of those ended it.
    """

    index: int
    text: str
    token_ids: list[int]
    cumulative_logprob: float | None
    logprobs: list[Logprobs] | None
    finish_reason: str | None = None
    stop_reason: int | str | None = None

    def finished(self) -> bool:
        return self.finish_reason is not None


@dataclass
class RequestOutput:
    """A prompt and its answers. prompt: None when it came as token ids. prompt_logprobs: one a token of the prompt,
    None for the first. num_cached_tokens: of the prompt, found in the prefix cache."""

    request_id: str
    prompt: str | None
    prompt_token_ids: list[int]
    prompt_logprobs: list[Logprobs | None] | None
    outputs: list[CompletionOutput]
    finished: bool
    num_cached_tokens: int = 0
    num_preemptions: int = 0


@dataclass
class EmbeddingOutput:
    """embedding: of length 1."""

    embedding: list[float]

    @property
    def hidden_size(self) -> int:
        return len(self.embedding)


@dataclass
class EmbeddingRequestOutput:
    request_id: str
    outputs: EmbeddingOutput
    prompt_token_ids: list[int]
    finished: bool = True
    num_cached_tokens: int = 0


def request_output(said: outputs.RequestOutput, vocabulary: Vocabulary, detokenize: bool = True) -> RequestOutput:
    """As a caller of LLM reads it."""
    words = vocabulary if detokenize else None
    prompt_logprobs: list[Logprobs | None] | None = None
    if said.prompt_logprobs is not None:
        prompt_logprobs = [None, *(_by_token(one, words) for one in said.prompt_logprobs)]
    return RequestOutput(
        said.request_id,
        said.prompt,
        list(said.prompt_token_ids),
        prompt_logprobs,
        [_completion(answer, words) for answer in said.outputs],
        said.finished,
        said.num_cached_tokens,
        said.num_preemptions,
    )


def embedding_output(said: outputs.RequestOutput) -> EmbeddingRequestOutput:
    output = EmbeddingOutput(list(said.embedding or ()))
    return EmbeddingRequestOutput(said.request_id, output, list(said.prompt_token_ids), said.finished)


def _completion(answer: outputs.CompletionOutput, words: Vocabulary | None) -> CompletionOutput:
    said: Sequence[TokenLogprobs] | None = answer.logprobs
    return CompletionOutput(
        answer.index,
        answer.text,
        list(answer.token_ids),
        None if said is None else sum(one.logprobs[0] for one in said),
        None if said is None else [_by_token(one, words) for one in said],
        None if answer.finish_reason is None else answer.finish_reason.value,
        answer.stop_reason,
    )


def _by_token(said: TokenLogprobs, words: Vocabulary | None) -> Logprobs:
    found: Logprobs = {}
    ranks = (said.rank, *range(1, len(said.token_ids)))
    for token, value, rank in zip(said.token_ids, said.logprobs, ranks, strict=True):
        # The one that is there may be among the likeliest: it stays first, with its rank among those.
        found[token] = Logprob(value, rank, None if words is None else words.token_text(token))
    return found
