"""What is asked of the engine, and how far it has come."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from enum import StrEnum

from fastkernels.errors import UsageError


@dataclass(frozen=True)
class SamplingParams:
    """How tokens are drawn and when to stop.

    temperature 0 is greedy; top_k 0 and top_p 1 are off. seed None: the engine's seed and the request's id.
    ignore_eos: run to max_tokens past the model's end token; stop_token_ids still stop.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int | None = None
    max_tokens: int = 16
    ignore_eos: bool = False
    stop_token_ids: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        limits = (
            ("temperature", math.isfinite(self.temperature) and self.temperature >= 0, "finite and at least 0"),
            ("top_k", self.top_k >= 0, "at least 0 (0 is off)"),
            ("top_p", 0 < self.top_p <= 1, "in (0, 1] (1 is off)"),
            ("max_tokens", self.max_tokens >= 1, "at least 1"),
            ("seed", self.seed is None or 0 <= self.seed < 2**63, "in [0, 2**63)"),
        )
        for name, holds, limit in limits:
            if not holds:
                raise UsageError(f"{name} is {getattr(self, name)}; it must be {limit}.")

    @property
    def is_greedy(self) -> bool:
        return self.temperature == 0


class FinishReason(StrEnum):
    STOP = "stop"  # the end token or a stop token came
    LENGTH = "length"  # max_tokens were made


@dataclass(eq=False)
class Request:
    """A row whose `num_computed` chases `num_tokens`; it has no phase.

    tokens: the prompt and what was sampled. num_computed: how many of them are in the cache.
    pages: the pages of the cache that hold them, in order.
    """

    request_id: int
    prompt_len: int
    tokens: list[int]
    params: SamplingParams
    num_computed: int = 0
    num_preemptions: int = 0
    pages: list[int] = field(default_factory=list)
    finish_reason: FinishReason | None = None

    @property
    def num_tokens(self) -> int:
        return len(self.tokens)

    @property
    def num_missing(self) -> int:
        """Tokens known but not yet computed: the rest of the prompt, or the one sampled last."""
        return self.num_tokens - self.num_computed

    @property
    def output_ids(self) -> list[int]:
        return self.tokens[self.prompt_len :]

    def append(self, token: int, eos_token_ids: frozenset[int]) -> None:
        """Take a sampled token and finish when it is the last."""
        self.tokens.append(token)
        stops = token in self.params.stop_token_ids or (token in eos_token_ids and not self.params.ignore_eos)
        if stops:
            self.finish_reason = FinishReason.STOP
        elif self.num_tokens - self.prompt_len >= self.params.max_tokens:
            self.finish_reason = FinishReason.LENGTH


@dataclass(frozen=True)
class RequestOutput:
    """A finished request; the text is that of token_ids."""

    request_id: int
    prompt: str | None
    prompt_token_ids: tuple[int, ...]
    token_ids: tuple[int, ...]
    text: str
    finish_reason: FinishReason
    num_preemptions: int
