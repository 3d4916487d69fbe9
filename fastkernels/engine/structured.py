"""Structured output: grammars over tokens, compiled and followed by xgrammar (https://github.com/mlc-ai/xgrammar)."""

from __future__ import annotations

import importlib
import json
import threading
from collections.abc import Collection
from dataclasses import fields
from functools import cached_property
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from fastkernels.engine.sampling_params import SamplingParamsError, StructuredOutputsParams
from fastkernels.errors import FastKernelsError

_CACHE_BYTES = 256 << 20
_MAX_WHITESPACE = 32
"""Between the parts of a JSON text: without a limit a model can go on with blanks until max_tokens."""


class GrammarError(FastKernelsError):
    """An answer came to a place where its grammar allows nothing, or not what was drawn: it cannot go on."""


def num_mask_words(vocab_size: int) -> int:
    """int32 words that hold one bit a token."""
    return -(-vocab_size // 32)


class Grammars:
    """Compiles what requests ask for, once each; xgrammar is loaded when the first asks."""

    def __init__(self, tokenizer: Tokenizer, vocab_size: int, eos_token_ids: Collection[int]) -> None:
        self.tokenizer, self.vocab_size, self.eos_token_ids = tokenizer, vocab_size, sorted(eos_token_ids)
        self._loading = threading.Lock()

    def check(self, wanted: StructuredOutputsParams) -> None:
        """Compile it, which its first use would do, and look for a first token.

        Errors: SamplingParamsError names the field that cannot be followed, and why.
        """
        grammar = self.start(wanted)
        grammar.fill(np.empty(num_mask_words(self.vocab_size), dtype=np.int32))
        if grammar.is_stuck:
            name = _field_of(wanted)
            raise SamplingParamsError(
                f"structured_outputs.{name}", f"{name} allows no token at all: no text matches it. Give another."
            )

    def start(self, wanted: StructuredOutputsParams) -> TokenGrammar:
        """A grammar before its first token. Errors: as `check`."""
        matcher = self._xgrammar.GrammarMatcher(self._compiled(wanted))
        is_json = wanted.json is not None or wanted.json_object
        return TokenGrammar(matcher, self._end_mask, self._json_mask if is_json else None)

    @cached_property
    def _end_mask(self) -> np.ndarray:
        return mask_of(self.eos_token_ids, self.vocab_size)

    @cached_property
    def _json_mask(self) -> np.ndarray:
        """Tokens without control characters but line ends, which JSON never needs: xgrammar 0.2.8 lets the others into
        strings whose length a schema bounds."""
        vocab = enumerate(self._info.decoded_vocab)
        plain = [token for token, text in vocab if all(c >= 0x20 or c in b"\r\n" for c in bytes(text))]
        return mask_of(plain, self.vocab_size)

    def _compiled(self, wanted: StructuredOutputsParams) -> Any:
        compiler = self._loaded_compiler()
        try:
            if wanted.json is not None:
                return compiler.compile_json_schema(_schema_text(wanted.json), max_whitespace_cnt=_MAX_WHITESPACE)
            if wanted.json_object:
                return compiler.compile_json_schema('{"type": "object"}', max_whitespace_cnt=_MAX_WHITESPACE)
            if wanted.regex is not None:
                return compiler.compile_regex(wanted.regex)
            if wanted.choice is not None:
                return compiler.compile_grammar(_choice_grammar(wanted.choice))
            return compiler.compile_grammar(wanted.grammar)
        except SamplingParamsError:
            raise
        except Exception as error:  # xgrammar raises what its C++ parts raise, RuntimeError mostly
            name = _field_of(wanted)
            reason = " ".join(str(error).split())[-300:]
            raise SamplingParamsError(f"structured_outputs.{name}", f"{name} cannot be compiled: {reason}") from error

    def _loaded_compiler(self) -> Any:
        with self._loading:  # threads that check and start
            return self._compiler

    @cached_property
    def _xgrammar(self) -> Any:
        try:
            return importlib.import_module("xgrammar")
        except ModuleNotFoundError as error:
            raise SamplingParamsError(
                "structured_outputs",
                "structured_outputs need xgrammar, which is not installed. "
                "Install it: pip install 'fastkernels[structured]'.",
            ) from error

    @cached_property
    def _compiler(self) -> Any:
        if not self.eos_token_ids:
            raise SamplingParamsError(
                "structured_outputs", "structured_outputs need an end token, and the model's configuration names none."
            )
        return self._xgrammar.GrammarCompiler(self._info, cache_limit_bytes=_CACHE_BYTES)

    @cached_property
    def _info(self) -> Any:
        xgrammar, transformers = self._xgrammar, importlib.import_module("transformers")
        fast = transformers.PreTrainedTokenizerFast(tokenizer_object=self.tokenizer)
        stops = self.eos_token_ids
        found = xgrammar.TokenizerInfo.from_huggingface(fast, vocab_size=self.vocab_size, stop_token_ids=stops)
        vocab = [""] * self.vocab_size
        for text, token in self.tokenizer.get_vocab().items():
            if token < self.vocab_size:
                vocab[token] = text
        # A special token's name is no text: as such it would pass for the inside of a JSON string.
        for token, added in self.tokenizer.get_added_tokens_decoder().items():
            if added.special and token < self.vocab_size:
                vocab[token] = ""
        return xgrammar.TokenizerInfo(
            vocab,
            vocab_type=found.vocab_type,
            vocab_size=self.vocab_size,
            stop_token_ids=stops,
            add_prefix_space=found.add_prefix_space,
        )


class TokenGrammar:
    """Where one answer is in its grammar. plain_mask: no other token comes, when given.

    is_stuck: the mask that was filled last had no token of the grammar in it.
    """

    def __init__(self, matcher: Any, end_mask: np.ndarray, plain_mask: np.ndarray | None = None) -> None:
        self._matcher, self._end_mask, self._plain_mask = matcher, end_mask, plain_mask
        self.num_tokens = 0
        self.is_stuck = False

    def accept(self, token: int) -> None:
        """The token is part of the answer. Errors: GrammarError when the grammar does not allow it."""
        if self.is_stuck:
            raise GrammarError(
                f"structured_outputs: after {self.num_tokens} tokens the answer can neither go on nor end: no token "
                "of the vocabulary follows there. Loosen the grammar."
            )
        if self._matcher.is_terminated():
            return  # an end token came and was ignored: nothing is left to follow
        if not self._matcher.accept_token(token):
            place = f"place {self.num_tokens}, where the grammar does not allow it"
            raise GrammarError(f"structured_outputs: token {token} came at {place}.")
        self.num_tokens += 1

    def fill(self, mask: np.ndarray, min_tokens: int = 0, allowed: np.ndarray | None = None) -> None:
        """Set the bits of the tokens that may come next. Shapes: mask, allowed: [num_words] int32.

        No end before min_tokens, and none but `allowed`, as long as that leaves a token. Where the grammar leaves none
        the end's are set, so that there is something to draw, and `accept` refuses what is drawn.
        """
        self.is_stuck = False
        if self._matcher.is_terminated():
            mask[:] = self._end_mask
            return
        mask[:] = 0
        self._matcher.fill_next_token_bitmask(mask[None])
        if not mask.any():
            self.is_stuck = True
            mask[:] = self._end_mask
            return
        if self._plain_mask is not None and (mask & self._plain_mask).any():
            mask &= self._plain_mask
        if self.num_tokens < min_tokens and (mask & ~self._end_mask).any():
            mask &= ~self._end_mask
        if allowed is not None and (mask & allowed).any():
            mask &= allowed


def mask_of(tokens: Collection[int], vocab_size: int) -> np.ndarray:
    """[num_words] int32 with the bits of `tokens` set."""
    bits = np.zeros(32 * num_mask_words(vocab_size), dtype=np.uint8)
    bits[list(tokens)] = 1
    return np.packbits(bits, bitorder="little").view("<i4").astype(np.int32)


def _field_of(wanted: StructuredOutputsParams) -> str:
    """The one that is set."""
    return next(f.name for f in fields(wanted) if getattr(wanted, f.name) not in (None, False))


def _schema_text(schema: Any) -> str:
    """A text is written anew: of two values of one key the compiler gets the one whose size was looked at."""
    try:
        given = json.loads(schema) if isinstance(schema, str) else dict(schema)
    except ValueError as error:
        raise SamplingParamsError("structured_outputs.json", f"json is not a JSON text: {error}.") from error
    return json.dumps(given, ensure_ascii=False)


def _choice_grammar(choices: Collection[str]) -> str:
    """EBNF of which any of `choices` is a text; its literals escape as JSON's do."""
    return "root ::= " + " | ".join(json.dumps(choice, ensure_ascii=False) for choice in choices)
