"""From tokens to text as they come: whole characters only, and nothing that may still become a stop text."""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterable, Sequence
from functools import cache
from itertools import islice
from typing import Protocol

from tokenizers import Tokenizer

_BYTE_TOKEN = re.compile("<0x([0-9A-F]{2})>")
_REPLACEMENT = "\ufffd"
_MOST_HELD = 4
"""A character of UTF-8 has four bytes at most: more tokens than that are no incomplete character."""
_NUM_CONTEXT = 2 * _MOST_HELD
"""Tokens of a prompt's end that decide how the answer's first ones read: two characters of single bytes at least."""


class Detokenizer(Protocol):
    def add(self, token_ids: Iterable[int]) -> str:
        """The text that is now certain beside what was told before."""

    def finish(self) -> str:
        """What was held back; nothing comes after it."""


class Vocabulary:
    """A tokenizer's tokens as bytes, looked up once each."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.special_ids = frozenset(i for i, t in tokenizer.get_added_tokens_decoder().items() if t.special)
        self.is_byte_level = _decoder_type(tokenizer) == "ByteLevel"
        self._bytes: dict[int, bytes] = {}

    def token_bytes(self, token: int) -> bytes:
        found = self._bytes.get(token)
        if found is None:
            found = self._bytes[token] = self._look_up(token)
        return found

    def token_text(self, token: int) -> str:
        """One token alone; a part of a character shows as U+FFFD."""
        return self.token_bytes(token).decode("utf-8", errors="replace")

    def detokenizer(self, skip_special_tokens: bool = True, prompt_token_ids: Sequence[int] = ()) -> Detokenizer:
        """Of the text that follows a prompt's: decode() strips the blank before the first token of all, not of an
        answer. A character that the prompt's last tokens begin belongs to the answer."""
        if self.is_byte_level:
            return _ByteDetokenizer(self, skip_special_tokens)
        return _WindowDetokenizer(self, skip_special_tokens, prompt_token_ids)

    def _look_up(self, token: int) -> bytes:
        text = self.tokenizer.id_to_token(token) or ""
        if not self.is_byte_level:  # SentencePiece's marks; decode() would lose a leading blank
            byte = _BYTE_TOKEN.fullmatch(text)
            return bytes.fromhex(byte[1]) if byte else text.replace("\u2581", " ").encode()
        byte_of = _byte_of_character()
        return bytes(byte_of[c] for c in text) if all(c in byte_of for c in text) else text.encode()


class NoText:
    """A detokenizer of answers whose text nobody wants."""

    def add(self, token_ids: Iterable[int]) -> str:
        return ""

    def finish(self) -> str:
        return ""


class _ByteDetokenizer:
    """A byte-level tokenizer's text is its tokens' bytes in a row: an incremental UTF-8 decoder is all it takes."""

    def __init__(self, vocabulary: Vocabulary, skip_special_tokens: bool) -> None:
        self._token_bytes = vocabulary.token_bytes
        self._skipped = vocabulary.special_ids if skip_special_tokens else frozenset()
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def add(self, token_ids: Iterable[int]) -> str:
        return self._decoder.decode(b"".join(self._token_bytes(t) for t in token_ids if t not in self._skipped))

    def finish(self) -> str:
        return self._decoder.decode(b"", final=True)


class _WindowDetokenizer:
    """Any other tokenizer: decode the last few tokens with and without the new one; the difference is new."""

    def __init__(self, vocabulary: Vocabulary, skip_special_tokens: bool, prompt_token_ids: Sequence[int]) -> None:
        self._decode = vocabulary.tokenizer.decode
        self._skipped = vocabulary.special_ids if skip_special_tokens else frozenset()
        self._window: list[int] = []
        self._num_told = 0  # of the window's tokens
        self._told = ""  # their text
        shown = (token for token in reversed(prompt_token_ids) if token not in self._skipped)
        context = list(islice(shown, _NUM_CONTEXT))[::-1]
        while len(context) > _MOST_HELD and _continues(vocabulary.token_bytes(context[0])):
            del context[0]  # the rest of a character: a run of bytes that begins with it decodes to no character
        self.add(context)

    def add(self, token_ids: Iterable[int]) -> str:
        return "".join(self._add(token) for token in token_ids if token not in self._skipped)

    def finish(self) -> str:
        return self._decode(self._window, skip_special_tokens=False)[len(self._told) :]

    def _add(self, token: int) -> str:
        self._window.append(token)
        text = self._decode(self._window, skip_special_tokens=False)
        if text.endswith(_REPLACEMENT) and len(self._window) - self._num_told < _MOST_HELD:
            return ""
        new = text[len(self._told) :]
        self._window = self._window[self._num_told :]
        self._num_told = len(self._window)
        self._told = self._decode(self._window, skip_special_tokens=False)
        return new


class StopMatcher:
    """Finds the stop text that is complete first, wherever the text was cut (Knuth, Morris, Pratt 1977)."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = [(stop, _failures(stop)) for stop in stops]
        self._matched = [0] * len(stops)

    @property
    def num_held(self) -> int:
        """Characters at the end that may still become a stop text."""
        return max(self._matched, default=0)

    def feed(self, text: str) -> tuple[int, str] | None:
        """The end in `text` of the first complete stop text, and which; of several the longest."""
        for end, character in enumerate(text, start=1):
            found = ""
            for index, (stop, failures) in enumerate(self._stops):
                matched = self._matched[index]
                while matched and stop[matched] != character:
                    matched = failures[matched - 1]
                matched += stop[matched] == character
                if matched == len(stop):
                    found = max(found, stop, key=len)
                    matched = failures[-1]
                self._matched[index] = matched
            if found:
                return end, found
        return None


class TextStream:
    """An answer's text: what may be told, cut at a stop text."""

    def __init__(self, detokenizer: Detokenizer, stops: Sequence[str] = (), include_stop: bool = False) -> None:
        self._detokenizer = detokenizer
        self._matcher = StopMatcher(stops) if stops else None
        self._include_stop = include_stop
        self._held = ""
        self._pieces: list[str] = []
        self._num_taken = 0

    @property
    def text(self) -> str:
        return "".join(self._pieces)

    def take(self) -> str:
        """The text since the last call."""
        start, self._num_taken = self._num_taken, len(self._pieces)
        return "".join(self._pieces[start:])

    def add(self, token_ids: Iterable[int], may_stop: bool = True) -> str | None:
        """The stop text, when one is complete; the answer ends there."""
        return self._push(self._detokenizer.add(token_ids), may_stop)

    def finish(self) -> str | None:
        """Tell what was held back; the end may yet complete a stop text."""
        stop = self._push(self._detokenizer.finish(), may_stop=True)
        self._pieces.append(self._held)
        self._held = ""
        return stop

    def _push(self, new: str, may_stop: bool) -> str | None:
        if self._matcher is None:
            self._pieces.append(new)
            return None
        found = self._matcher.feed(new)
        while found is not None and not may_stop:  # too early for it
            self._pieces.append(self._held + new[: found[0]])
            self._held, new = "", new[found[0] :]
            found = self._matcher.feed(new)
        if found is None:
            text = self._held + new
            border = max(0, len(text) - self._matcher.num_held)
            self._pieces.append(text[:border])
            self._held = text[border:]
            return None
        end, stop = found
        text = self._held + new[:end]
        self._pieces.append(text if self._include_stop else text[: max(0, len(text) - len(stop))])
        self._held = ""
        return stop


def _failures(stop: str) -> list[int]:
    """For every prefix of `stop`, the longest proper prefix of it that is its suffix too."""
    failures = [0] * len(stop)
    matched = 0
    for index in range(1, len(stop)):
        while matched and stop[matched] != stop[index]:
            matched = failures[matched - 1]
        matched += stop[matched] == stop[index]
        failures[index] = matched
    return failures


def _continues(token_bytes: bytes) -> bool:
    """Whether these are the inner bytes of a character."""
    return bool(token_bytes) and token_bytes[0] & 0xC0 == 0x80


def _decoder_type(tokenizer: Tokenizer) -> str | None:
    decoder = tokenizer.decoder
    return json.loads(decoder.__getstate__())["type"] if decoder is not None else None


@cache
def _byte_of_character() -> dict[str, int]:
    """GPT-2's table: printable bytes are themselves, the others 256 and up in order.

    https://github.com/openai/gpt-2/blob/master/src/encoder.py
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(b): b for b in printable} | {chr(256 + i): b for i, b in enumerate(others)}
