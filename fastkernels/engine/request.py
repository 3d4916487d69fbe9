"""A request inside the engine: how far it has come and what it holds."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from numpy.typing import NDArray

from fastkernels.engine.multimodal import Media
from fastkernels.engine.outputs import EngineRequest, FinishReason, TokenLogprobs
from fastkernels.engine.sampling_params import SamplingParams

NO_ROW = -1


@dataclass(eq=False, slots=True)
class Request:
    """A row whose `num_computed` chases what is known of it; it has no phase.

    tokens: the prompt, and the sampled tokens that the host has seen. num_pending: sampled on the device, not yet
    seen (a step may be launched on them all the same). num_computed: tokens whose keys and values are written by
    the steps launched so far. row: its place in the device's per-request state while it runs;
    row_is_new: no step was launched on it yet. needs_tokens: no step runs ahead of its tokens.
    encoder_len: states that the model's encoder makes of encoder_input.
    max_tokens: the most that prompt and answer can come to.
    pages: for each cache group the pages that hold its tokens, in order; -1 where a page lies behind the window.
    """

    request_id: str
    prompt_len: int
    tokens: list[int]
    params: SamplingParams
    is_embedding: bool = False
    encoder_input: NDArray[Any] | None = None
    encoder_len: int = 0
    media: Media | None = None
    row: int = NO_ROW
    num_computed: int = 0
    num_pending: int = 0
    num_preemptions: int = 0
    num_cached: int | None = None
    needs_tokens: bool = False
    row_is_new: bool = False
    pages: list[list[int]] = field(default_factory=list)
    page_hashes: list[bytes] = field(default_factory=list)
    num_registered: int = 0
    prompt_logprobs: list[TokenLogprobs] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    max_tokens: int = field(init=False)
    _most_computed: int = field(init=False)

    def __post_init__(self) -> None:
        num_new = 0 if self.is_embedding else self.params.max_tokens
        assert num_new is not None, "EngineCore.add says how many there is room for."
        self.max_tokens = self.prompt_len + num_new
        self._most_computed = self.prompt_len if self.is_embedding else self.max_tokens - 1

    @classmethod
    def of(cls, request: EngineRequest) -> Request:
        tokens = list(request.prompt_token_ids)
        return cls(
            request.request_id,
            len(tokens),
            tokens,
            request.params,
            request.is_embedding,
            request.encoder_input,
            media=request.media,
        )

    @property
    def num_tokens(self) -> int:
        """Tokens that exist, seen by the host or not."""
        return len(self.tokens) + self.num_pending

    @property
    def num_missing(self) -> int:
        """Tokens to compute before the next can be sampled; 0 when nothing more is to be launched for now.

        The token sampled last is never computed: nothing follows it.
        """
        pending = self.num_pending
        if pending and self.needs_tokens:
            return 0
        known = len(self.tokens) + pending
        return (known if known < self._most_computed else self._most_computed) - self.num_computed

    def append(self, token: int, eos_token_ids: frozenset[int]) -> None:
        """Take a sampled token that the host now knows, and finish when it is the last."""
        self.tokens.append(token)
        self.num_pending -= 1
        num_output = len(self.tokens) - self.prompt_len
        params = self.params
        stops = token in params.stop_token_ids or (token in eos_token_ids and not params.ignore_eos)
        if stops and num_output > params.min_tokens:
            self.finish_reason = FinishReason.STOP
        elif len(self.tokens) >= self.max_tokens:
            self.finish_reason = FinishReason.LENGTH
