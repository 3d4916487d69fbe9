"""How a request's tokens are drawn and when they end; fields as in vLLM's SamplingParams."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, TypeGuard

from fastkernels.engine.structured_limits import length_excess, regex_excess, schema_excess
from fastkernels.errors import UsageError

MAX_LOGPROBS = 20
_SEED_LIMIT = 2**63
_SUPPRESSED = ("suppress_tokens", "begin_suppress_tokens")
_TOKEN_LISTS = ("stop_token_ids", *_SUPPRESSED)
_TEXT_LISTS = ("stop", "bad_words")


class SamplingParamsError(UsageError):
    """`parameter` names the field that is off."""

    def __init__(self, parameter: str, message: str) -> None:
        super().__init__(message)
        self.parameter = parameter


@dataclass(frozen=True)
class StructuredOutputsParams:
    """What the text must be: exactly one of these is set. json: a schema, as text or object.

    Errors: SamplingParamsError, also for what is longer or more deeply nested than can be compiled safely.
    """

    json: str | Mapping[str, Any] | None = None
    regex: str | None = None
    choice: tuple[str, ...] | None = None
    grammar: str | None = None
    json_object: bool = False

    def __post_init__(self) -> None:
        if self.choice is not None:
            choice = _items("structured_outputs.choice", self.choice, "a list of texts")
            object.__setattr__(self, "choice", choice)
        for name, holds, wanted in self._kinds():
            if not holds:
                name = f"structured_outputs.{name}"
                raise SamplingParamsError(name, f"{name} must be {wanted}.")
        chosen = [f.name for f in fields(self) if getattr(self, f.name) not in (None, False)]
        if len(chosen) != 1:
            names = ", ".join(f.name for f in fields(self))
            raise SamplingParamsError(
                "structured_outputs", f"structured_outputs sets {chosen or 'nothing'}; set exactly one of {names}."
            )
        excess = self._excess()
        if excess is not None:
            raise SamplingParamsError(f"structured_outputs.{chosen[0]}", excess)

    def _kinds(self) -> tuple[tuple[str, bool, str], ...]:
        return (
            ("json", self.json is None or isinstance(self.json, str | Mapping), "a schema, as text or object"),
            ("regex", self.regex is None or isinstance(self.regex, str), "a text"),
            ("choice", all(isinstance(text, str) for text in self.choice or ()), "a list of texts"),
            ("grammar", self.grammar is None or isinstance(self.grammar, str), "a text"),
            ("json_object", self.json_object in (None, False, True), "true or false"),
        )

    def _excess(self) -> str | None:
        if self.json is not None:
            return schema_excess(self.json)
        if self.regex is not None:
            return regex_excess("regex", self.regex)
        if self.choice is not None:
            return length_excess("choice", self.choice)
        return None if self.grammar is None else length_excess("grammar", [self.grammar])


@dataclass(frozen=True)
class SamplingParams:
    """How tokens are drawn and when to stop. What is a tuple here may be given as any list, or None for an empty one.

    n: answers to the prompt. temperature 0 is greedy; top_k 0 (or -1), top_p 1 and min_p 0 are off.
    presence_penalty, frequency_penalty: subtracted once, or for each time, a token was made; repetition_penalty
        divides the positive logits and multiplies the negative ones of every token of prompt and answer.
    logit_bias: added by token id. allowed_token_ids: no other token is drawn.
    suppress_tokens: never drawn; begin_suppress_tokens: never drawn first. bad_words: texts that are not made: the last
        token of each, with and without a blank before it, is barred where the answer ends with its other tokens.
    seed: the same request gives the same tokens in any batch; None: the engine's seed and the request's id. A negative
        one is the same as 2**63 more.
    stop: texts that end the answer and are cut from it, unless include_stop_str_in_output.
    stop_token_ids: end the answer; kept in token_ids. ignore_eos: run past the model's end token.
    max_tokens: None is as many as the model and its cache have room for.
    min_tokens: no end before so many. logprobs: how many of the likeliest tokens to report beside the one drawn.
    prompt_logprobs: the same for every token of the prompt after the first.
    detokenize: without it answers have no text, and stop finds none. spaces_between_special_tokens: either; no blank is
        put there.
    Errors: SamplingParamsError names the field, its value and its limit.
    """

    n: int = 1
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    max_tokens: int | None = 16
    min_tokens: int = 0
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    allowed_token_ids: tuple[int, ...] | None = None
    structured_outputs: StructuredOutputsParams | None = None
    skip_special_tokens: bool = True
    include_stop_str_in_output: bool = False
    suppress_tokens: tuple[int, ...] = ()
    begin_suppress_tokens: tuple[int, ...] = ()
    bad_words: tuple[str, ...] = ()
    detokenize: bool = True
    spaces_between_special_tokens: bool = True

    def __post_init__(self) -> None:
        self._normalise()
        for name, holds, limit in self._limits():
            if not holds:
                raise SamplingParamsError(name, f"{name} is {getattr(self, name)!r}; it must be {limit}.")
        if self.seed is not None:
            object.__setattr__(self, "seed", self.seed % _SEED_LIMIT)

    def _normalise(self) -> None:
        """Lists become tuples. Errors: SamplingParamsError for what is none."""
        given: dict[str, Any] = {"top_k": 0 if self.top_k == -1 else self.top_k, "logit_bias": self.logit_bias or {}}
        for names, wanted in ((_TEXT_LISTS, "a text or a list of texts"), (_TOKEN_LISTS, "a list of token ids")):
            for name in names:
                value = getattr(self, name)
                one = value if value is not None else ()
                given[name] = (one,) if names is _TEXT_LISTS and isinstance(one, str) else _items(name, one, wanted)
        if self.allowed_token_ids is not None:
            given["allowed_token_ids"] = _items("allowed_token_ids", self.allowed_token_ids, "a list of token ids")
        for name, value in given.items():
            object.__setattr__(self, name, value)
        if not isinstance(self.logit_bias, Mapping):
            raise _wrong("logit_bias", self.logit_bias, "a map of token ids to numbers in [-100, 100]")
        if not isinstance(self.structured_outputs, StructuredOutputsParams | None):
            raise _wrong("structured_outputs", self.structured_outputs, "a StructuredOutputsParams")

    def _limits(self) -> tuple[tuple[str, bool, str], ...]:
        least_logprobs = f"in [0, {MAX_LOGPROBS}]"
        return (
            ("n", _is_int(self.n) and 1 <= self.n <= 128, "in [1, 128]"),
            ("presence_penalty", _within(self.presence_penalty, -2, 2), "in [-2, 2]"),
            ("frequency_penalty", _within(self.frequency_penalty, -2, 2), "in [-2, 2]"),
            ("repetition_penalty", _within(self.repetition_penalty, 1e-3, 1e3), "in [0.001, 1000] (1 is off)"),
            ("temperature", _within(self.temperature, 0, 1e3), "in [0, 1000] (0 is greedy)"),
            ("top_p", _within(self.top_p, 0, 1) and self.top_p > 0, "in (0, 1] (1 is off)"),
            ("top_k", _is_int(self.top_k) and 0 <= self.top_k < 2**31, "at least 0 (0 is off)"),
            ("min_p", _within(self.min_p, 0, 1), "in [0, 1] (0 is off)"),
            (
                "seed",
                self.seed is None or (_is_int(self.seed) and -_SEED_LIMIT <= self.seed < _SEED_LIMIT),
                "in [-2**63, 2**63)",
            ),
            *(
                (name, all(isinstance(s, str) and s for s in getattr(self, name)), "texts that are not empty")
                for name in _TEXT_LISTS
            ),
            ("stop", self.detokenize or not self.stop, "empty with detokenize = False: an answer has no text then"),
            *((name, all(_is_int(t) for t in getattr(self, name)), "token ids") for name in _TOKEN_LISTS),
            (
                "max_tokens",
                self.max_tokens is None or (_is_int(self.max_tokens) and self.max_tokens >= 1),
                "at least 1",
            ),
            (
                "min_tokens",
                _is_int(self.min_tokens)
                and self.min_tokens >= 0
                and (not _is_int(self.max_tokens) or self.min_tokens <= self.max_tokens),
                "at least 0" if self.max_tokens is None else f"in [0, max_tokens = {self.max_tokens}]",
            ),
            ("logprobs", self.logprobs is None or _is_count(self.logprobs), least_logprobs),
            ("prompt_logprobs", self.prompt_logprobs is None or _is_count(self.prompt_logprobs), least_logprobs),
            (
                "logit_bias",
                all(_is_int(t) and _within(b, -100, 100) for t, b in self.logit_bias.items()),
                "a map of token ids to numbers in [-100, 100]",
            ),
            (
                "allowed_token_ids",
                self.allowed_token_ids is None
                or (len(self.allowed_token_ids) > 0 and all(_is_int(t) for t in self.allowed_token_ids)),
                "token ids, at least one",
            ),
        )

    @property
    def is_greedy(self) -> bool:
        return self.temperature == 0

    @property
    def needs_tokens(self) -> bool:
        """Whether what may be drawn next depends on the tokens that were."""
        return self.structured_outputs is not None or bool(self.bad_words)

    def check_vocabulary(self, vocab_size: int) -> None:
        """Errors: SamplingParamsError when a token id is not one of the model's."""
        given = {
            "stop_token_ids": self.stop_token_ids,
            "logit_bias": tuple(self.logit_bias),
            "allowed_token_ids": self.allowed_token_ids or (),
            **{name: getattr(self, name) for name in _SUPPRESSED},
        }
        for name, tokens in given.items():
            for token in tokens:
                if not 0 <= token < vocab_size:
                    raise SamplingParamsError(name, f"{name} holds token id {token}; it must be in [0, {vocab_size}).")


def _items(name: str, value: Iterable[Any], wanted: str) -> tuple[Any, ...]:
    """Errors: SamplingParamsError where the value is no list; a text or a map is none."""
    if isinstance(value, str | bytes | Mapping) or not isinstance(value, Iterable):
        raise _wrong(name, value, wanted)
    return tuple(value)


def _wrong(name: str, value: object, wanted: str) -> SamplingParamsError:
    return SamplingParamsError(name, f"{name} is {value!r:.200}; it must be {wanted}.")


def _within(value: float, least: float, most: float) -> bool:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and math.isfinite(value) and least <= value <= most


def _is_int(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MAX_LOGPROBS
