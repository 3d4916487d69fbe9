"""Texts that an answer must not hold: the last token of each is barred where the answer ends with its other tokens."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence

import numpy as np
from tokenizers import Tokenizer

from fastkernels.engine.sampling_params import SamplingParamsError
from fastkernels.engine.text import check_text

MAX_BAD_WORDS = 1000
"""Ways to write them, of one request: each is looked at before each of its tokens."""


def bad_word_tokens(words: Iterable[str], tokenizer: Tokenizer) -> list[tuple[int, ...]]:
    """Token ids of each word at the start of a text and behind a blank. A way that ends with another one is left out,
    for that is barred already.

    Errors: SamplingParamsError for a word of no tokens, and for more than MAX_BAD_WORDS ways to write them.
    """
    ways: dict[tuple[int, ...], None] = {}
    for word in words:
        bare, behind_blank = (_tokens(blank + word.lstrip(" "), tokenizer) for blank in ("", " "))
        if not bare:
            raise SamplingParamsError("bad_words", f"bad_words holds {word!r}, which has no tokens; leave it out.")
        ways[bare] = None
        if behind_blank[-len(bare) :] != bare:
            ways[behind_blank] = None
    if len(ways) > MAX_BAD_WORDS:
        message = f"bad_words can be written in {len(ways)} ways, with and without a blank; at most {MAX_BAD_WORDS}."
        raise SamplingParamsError("bad_words", message)
    return list(ways)


def _tokens(text: str, tokenizer: Tokenizer) -> tuple[int, ...]:
    check_text(text, "bad_words")
    return tuple(tokenizer.encode(text, add_special_tokens=False).ids)


class BadWords:
    """Where one answer is in the words that it must not hold."""

    def __init__(self, ways: Sequence[tuple[int, ...]], vocab_size: int) -> None:
        self._ways = [way for way in ways if max(way) < vocab_size]
        self._tail: deque[int] = deque(maxlen=max((len(way) - 1 for way in self._ways), default=0))

    def accept(self, token: int) -> None:
        """The token is part of the answer."""
        self._tail.append(token)

    def bar(self, mask: np.ndarray) -> None:
        """Clear the bits of the tokens that would complete a word, as long as that leaves a token.

        Shapes:  mask: [num_words] int32, one bit a token.
        """
        tail, left = tuple(self._tail), mask.copy()
        bits = left.view(np.uint32)
        for way in self._ways:
            num = len(way) - 1
            if num <= len(tail) and tail[len(tail) - num :] == way[:-1]:
                bits[way[-1] // 32] &= np.uint32(~(1 << way[-1] % 32) & 0xFFFFFFFF)
        if left.any():
            mask[:] = left
