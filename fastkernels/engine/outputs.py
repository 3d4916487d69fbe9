"""What the engine says of a request: after each step, and to a caller."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastkernels.engine.multimodal import Media
from fastkernels.engine.sampling_params import SamplingParams


class FinishReason(StrEnum):
    STOP = "stop"  # the end token, a stop token or a stop text came
    LENGTH = "length"  # max_tokens were made
    ABORT = "abort"  # the caller went away
    ERROR = "error"  # the engine could not go on with it


@dataclass(frozen=True)
class EngineRequest:
    """A request as the engine takes it: one answer (n is 1), tokens only.

    is_embedding: no token is drawn; the answer is the last token's hidden state, of length 1.
    encoder_input: for models with an encoder, what it reads, of any shape that the model's encoder takes.
    media: pictures, videos and sounds whose embeddings take the place of some of the prompt's tokens.
    """

    request_id: str
    prompt_token_ids: tuple[int, ...]
    params: SamplingParams
    is_embedding: bool = False
    encoder_input: NDArray[Any] | None = None
    media: Media | None = None


@dataclass(frozen=True)
class TokenLogprobs:
    """Log-probabilities at one position. token_ids[0] is the token that is there, then the likeliest in order.

    rank: of token_ids[0] among all tokens; 1 is the likeliest.
    """

    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    rank: int


class StepOutput(NamedTuple):
    """What one step gave one request. token_ids: the new ones, usually one.

    logprobs: one a new token, when asked for. prompt_logprobs: once, one a prompt token after the first.
    num_cached_tokens: prompt tokens that the prefix cache held, told with the first token.
    """

    request_id: str
    token_ids: tuple[int, ...] = ()
    finish_reason: FinishReason | None = None
    logprobs: tuple[TokenLogprobs, ...] | None = None
    prompt_logprobs: tuple[TokenLogprobs, ...] | None = None
    embedding: tuple[float, ...] | None = None
    num_cached_tokens: int = 0
    num_preemptions: int = 0
    error: str | None = None


@dataclass(frozen=True)
class CompletionOutput:
    """One answer; text is that of token_ids, cut at a stop text. stop_reason: the stop text or token id, if one."""

    index: int
    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason | None
    stop_reason: str | int | None = None
    logprobs: tuple[TokenLogprobs, ...] | None = None


@dataclass(frozen=True)
class RequestOutput:
    """A prompt and its answers, so far or finished; as vLLM's RequestOutput."""

    request_id: str
    prompt: str | None
    prompt_token_ids: tuple[int, ...]
    outputs: tuple[CompletionOutput, ...]
    finished: bool
    prompt_logprobs: tuple[TokenLogprobs, ...] | None = None
    embedding: tuple[float, ...] | None = None
    num_cached_tokens: int = 0
    num_preemptions: int = 0


EMBEDDING = "application/x-embedding"
"""The media type of one vector in little-endian float32."""


@dataclass(frozen=True)
class EncodedResult:
    """The answer of a model that makes no tokens: content of a media type, and a summary as JSON has it."""

    media_type: str
    content: bytes
    summary: Mapping[str, Any]

    @property
    def vector(self) -> list[float]:
        """Of an EMBEDDING."""
        found: list[float] = np.frombuffer(self.content, "<f4").tolist()
        return found


@dataclass(frozen=True)
class EngineInfo:
    """What does not change while an engine runs. makes: tokens, or the media type of the results."""

    model: str
    dtype: str
    device: str
    vocab_size: int
    max_model_len: int
    eos_token_ids: frozenset[int]
    num_pages: int
    page_size: int
    max_num_seqs: int
    max_num_batched_tokens: int
    tensor_parallel_size: int
    startup_seconds: float
    weight_bytes: int = 0
    cache_bytes: int = 0
    kind: str = "autoregressive"
    makes: str = "tokens"
    takes_media: bool = False
    enable_expert_parallel: bool = False


@dataclass(frozen=True)
class EngineStats:
    """Counters since the start, and the state now."""

    num_running: int
    num_waiting: int
    num_free_pages: int
    num_steps: int
    num_graph_steps: int
    num_prompt_tokens: int
    num_cached_tokens: int
    num_generated_tokens: int
    num_preemptions: int
    num_finished: Mapping[str, int] = field(default_factory=dict)
    num_compilations: int = 0
    num_kernels_made: int = 0
    peak_memory_bytes: int = 0
