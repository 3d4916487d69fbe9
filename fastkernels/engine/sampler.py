"""Draws the next token of every row of a batch on the device: nothing here waits for it."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from fastkernels.engine.bad_words import BadWords, bad_word_tokens
from fastkernels.engine.logprobs import LogprobTensors, logprobs
from fastkernels.engine.sampling_op import sampling_op
from fastkernels.engine.sampling_params import SamplingParams, SamplingParamsError
from fastkernels.engine.sampling_rows import Biases, RowTable, RowValues, TokenCounts, TokenMasks
from fastkernels.engine.structured import Grammars, TokenGrammar, mask_of

MAX_BIASES = 1024
"""Entries of one request's logit_bias; each row of the batch pays for the longest."""

_MANY_ROWS = 256
"""More than a GPU has multiprocessors: of so many rows kernels are other ones."""


@dataclass(frozen=True)
class Sampled:
    """What was drawn. token_ids: [n] int64 on the device; logprobs: with as many of the likeliest as the request of
    the batch that asks for most, None when none asks."""

    token_ids: Tensor
    logprobs: LogprobTensors | None = None


@dataclass(frozen=True)
class _Follower:
    """A row whose mask depends on its tokens: where it is in its grammar and in its bad words, and what else bounds it.

    Shapes:  allowed: [num_words] int32, one bit a token; every bit is set when nothing bounds it.
    """

    grammar: TokenGrammar | None
    bad_words: BadWords | None
    min_tokens: int
    allowed: np.ndarray

    def accept(self, token: int) -> None:
        """Errors: GrammarError."""
        if self.bad_words is not None:
            self.bad_words.accept(token)
        if self.grammar is not None:
            self.grammar.accept(token)

    def mask(self) -> np.ndarray:
        mask = self.allowed.copy()
        if self.grammar is not None:
            self.grammar.fill(mask, self.min_tokens, self.allowed)
        if self.bad_words is not None:
            self.bad_words.bar(mask)
        return mask


class Sampler:
    """Parameters, seeds and token counts by the engine's row; a batch is any of the rows in any order.

    A draw depends on the row's logits, its request's parameters and seed, and the token's position alone. Raw logits
    give the log-probabilities; then come masks and biases, penalties, min-p, and the draw by temperature, top-k and
    top-p. A batch in which no row needs a part skips it; rows that need none are left as they are by it.
    """

    def __init__(
        self,
        vocab_size: int,
        device: torch.device,
        max_rows: int,
        eos_token_ids: Collection[int] = (),
        grammars: Grammars | None = None,
    ) -> None:
        """eos_token_ids: barred before min_tokens. grammars: None refuses structured output and bad words."""
        self.vocab_size, self.eos_token_ids, self._grammars = vocab_size, frozenset(eos_token_ids), grammars
        self._device, self._max_rows = device, max_rows
        self.greedy, self._draw = sampling_op("greedy_sample"), sampling_op("top_k_top_p_sample")
        self._draw_seeds, self._apply_min_p = sampling_op("draw_seeds"), sampling_op("min_p")
        self._apply_mask, self._apply_bias = sampling_op("apply_token_bitmask"), sampling_op("apply_logit_bias")
        self._apply_penalties = sampling_op("apply_penalties")
        self._table = RowTable(device, max_rows)
        self._counts = TokenCounts(device, max_rows, vocab_size)
        self._biases = Biases(device, max_rows)
        self._masks = TokenMasks(device, max_rows, vocab_size)
        self._drawn: set[int] = set()
        self._min_p: set[int] = set()
        self._biased: set[int] = set()
        self._penalised: set[int] = set()
        self._masked: set[int] = set()
        self._followers: dict[int, _Follower] = {}
        self._num_logprobs: dict[int, int] = {}

    def check(self, params: SamplingParams) -> None:
        """Compiles the grammar, if there is one. May be called in another thread.

        Errors: SamplingParamsError for what no row can do: a grammar that no text fits, too many biases.
        """
        if len(params.logit_bias) > MAX_BIASES:
            raise SamplingParamsError(
                "logit_bias", f"logit_bias holds {len(params.logit_bias)} tokens; at most {MAX_BIASES}."
            )
        if params.structured_outputs is not None:
            self._required_grammars().check(params.structured_outputs)
        if params.bad_words:
            bad_word_tokens(params.bad_words, self._required_grammars("bad_words").tokenizer)

    def add(
        self,
        row: int,
        params: SamplingParams,
        seed: int,
        prompt_token_ids: Sequence[int],
        output_token_ids: Sequence[int] = (),
    ) -> None:
        """A request takes a row; after a preemption with the tokens that it has made. Nothing is enqueued yet."""
        self.remove(row)
        self._add_mask(row, params, output_token_ids)
        self._table.stage(row, params, seed, row in self._masked)
        if not params.is_greedy:
            self._drawn.add(row)
            if params.min_p > 0:
                self._min_p.add(row)
        if params.repetition_penalty != 1 or params.frequency_penalty or params.presence_penalty:
            self._penalised.add(row)
            self._counts.stage(row, prompt_token_ids, output_token_ids)
        biases = self._bias_entries(row, params, len(prompt_token_ids))
        if biases:
            self._biased.add(row)
            self._biases.stage(row, biases)
        if params.logprobs is not None:
            self._num_logprobs[row] = params.logprobs

    def _add_mask(self, row: int, params: SamplingParams, output: Sequence[int]) -> None:
        allowed = None
        if params.allowed_token_ids is not None:
            allowed = mask_of(params.allowed_token_ids, self.vocab_size)
        if params.needs_tokens:
            follower = self._followers[row] = self._follower(params, allowed)
            for token in output:
                follower.accept(token)
        elif allowed is not None:
            self._masks.stage(row, allowed)
        else:
            return
        self._masked.add(row)

    def _follower(self, params: SamplingParams, allowed: np.ndarray | None) -> _Follower:
        grammar = bad_words = None
        if params.structured_outputs is not None:
            grammar = self._required_grammars().start(params.structured_outputs)
        if params.bad_words:
            ways = bad_word_tokens(params.bad_words, self._required_grammars("bad_words").tokenizer)
            bad_words = BadWords(ways, self.vocab_size)
        return _Follower(grammar, bad_words, params.min_tokens, self._every if allowed is None else allowed)

    @cached_property
    def _every(self) -> np.ndarray:
        """Every token may be drawn."""
        return mask_of(range(self.vocab_size), self.vocab_size)

    def _bias_entries(self, row: int, params: SamplingParams, num_prompt: int) -> list[tuple[int, float, int]]:
        entries = [(token, float(bias), Biases.FOREVER) for token, bias in params.logit_bias.items() if bias]
        entries += [(token, -float("inf"), Biases.FOREVER) for token in params.suppress_tokens]
        entries += [(token, -float("inf"), num_prompt + 1) for token in params.begin_suppress_tokens]
        if params.min_tokens and params.structured_outputs is None:
            ends = {*params.stop_token_ids, *(() if params.ignore_eos else self.eos_token_ids)}
            entries += [(token, -float("inf"), num_prompt + params.min_tokens) for token in sorted(ends)]
        return entries

    def _required_grammars(self, parameter: str = "structured_outputs") -> Grammars:
        if self._grammars is None:
            raise SamplingParamsError(parameter, f"{parameter} need a tokenizer, and this engine has none.")
        return self._grammars

    def remove(self, row: int) -> None:
        if row in self._biased:
            self._biases.discard(row)
        self._counts.discard(row)
        self._masks.discard(row)
        for rows in (self._drawn, self._min_p, self._biased, self._penalised, self._masked):
            rows.discard(row)
        self._followers.pop(row, None)
        self._num_logprobs.pop(row, None)

    def needs_tokens(self, row: int) -> bool:
        """Whether `accept` must have heard of the row's last token before the row is sampled again."""
        return row in self._followers

    def num_logprobs(self, rows: Sequence[int]) -> list[int | None]:
        """How many of the likeliest tokens each row's request asks for; None for no log-probabilities."""
        return [self._num_logprobs.get(row) for row in rows]

    def accept(self, row: int, token: int) -> None:
        """A token of the row is final. Errors: GrammarError when the row's grammar does not allow it."""
        if row in self._followers:
            self._followers[row].accept(token)

    def is_plain_greedy(self, rows: Sequence[int]) -> bool:
        """Whether a call is GreedySample on the logits and nothing more, which a graph may hold."""
        special = (self._drawn, self._masked, self._biased, self._penalised)
        has_logprobs = bool(self._num_logprobs) and any(row in self._num_logprobs for row in rows)
        return not has_logprobs and not any(_meets(some, rows) for some in special)

    @torch.inference_mode()
    def __call__(self, logits: Tensor, rows: Sequence[int], row_index: Tensor, positions: Tensor) -> Sampled:
        """Draw one token a row, and count it.

        Shapes:  logits: [n, vocab_size], read only; rows: n unlike ones; row_index: [n] int64, the same on the device;
                 positions: [n] int64, of the tokens that are drawn.
        """
        self._table.flush()
        is_drawn = _meets(self._drawn, rows)
        is_edited = any(_meets(s, rows) for s in (self._masked, self._biased, self._penalised, self._min_p))
        values = self._table.gather(row_index) if is_drawn or is_edited else None
        edited = self._edit(logits, rows, row_index, positions, values) if is_edited and values else logits
        if is_drawn and values is not None:
            seeds = self._draw_seeds(self._table.seeds, row_index, positions)
            token_ids = self._draw(edited, values.temperature, values.top_k, values.top_p, seeds)
        else:
            token_ids = self.greedy(edited)
        if _meets(self._penalised, rows):
            self._counts.add(row_index, token_ids)
        nums = [self._num_logprobs[row] for row in rows if row in self._num_logprobs] if self._num_logprobs else []
        return Sampled(token_ids, logprobs(logits, token_ids, max(nums)) if nums else None)

    def _edit(
        self, logits: Tensor, rows: Sequence[int], row_index: Tensor, positions: Tensor, values: RowValues
    ) -> Tensor:
        """The logits from which tokens are drawn, in fp32: masks, biases, penalties, min-p."""
        x = logits.to(torch.float32, copy=True)
        if _meets(self._masked, rows):
            for row in rows:
                if row in self._followers:
                    self._masks.stage(row, self._followers[row].mask())
            self._masks.flush()
            self._apply_mask(x, self._masks.masks, values.mask_index)
        if _meets(self._biased, rows):
            self._biases.flush()
            self._apply_bias(x, *self._biases.gather(row_index, positions))
        if _meets(self._penalised, rows):
            self._counts.flush()
            penalties = (values.repetition_penalty, values.frequency_penalty, values.presence_penalty)
            self._apply_penalties(x, row_index, self._counts.counts, *penalties)
        if _meets(self._min_p, rows):
            self._apply_min_p(x, values.temperature, values.min_p)
        return x

    def warm_up(self, dtype: torch.dtype) -> None:
        """Compile every kernel for logits of `dtype`, of few rows and of many; no row is touched."""
        every = SamplingParams(
            temperature=0.5, min_p=0.1, top_p=0.9, top_k=5, presence_penalty=0.5, logit_bias={0: 1.0},
            allowed_token_ids=(0,), logprobs=1,
        )  # fmt: skip
        for num_rows in sorted({2, max(2, min(self._max_rows, _MANY_ROWS))}):
            scratch = Sampler(self.vocab_size, self._device, num_rows)
            logits = torch.zeros((num_rows, self.vocab_size), dtype=dtype, device=self._device)
            rows = torch.arange(num_rows, device=self._device)
            for params in (SamplingParams(temperature=0, logprobs=0), SamplingParams(), every):
                for row in range(num_rows):
                    scratch.add(row, params, 0, (0,))
                scratch(logits, tuple(range(num_rows)), rows, rows)


def _meets(some: set[int], rows: Sequence[int]) -> bool:
    return bool(some) and not some.isdisjoint(rows)
