"""How /v1/completions names tokens, and where it says that they begin."""

from __future__ import annotations

import codecs
from collections.abc import Sequence

from fastkernels.engine.detokenizer import Vocabulary


def token_name(vocabulary: Vocabulary, token: int) -> str:
    r"""Its text, or OpenAI's `bytes:\xe2\x82` for a token that is no whole text."""
    raw = vocabulary.token_bytes(token)
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)


class TextOffsets:
    """Where each token of one choice begins in the choice's text, as the tokens come; a part of a character begins
    where the character does."""

    def __init__(self, vocabulary: Vocabulary, skip_special_tokens: bool) -> None:
        self._vocabulary = vocabulary
        self._skipped = vocabulary.special_ids if skip_special_tokens else frozenset()
        self._restart(0)

    def of_prompt(self, tokens: Sequence[int], text: str) -> list[int]:
        """The answer's follow behind `text`, which lacks the tokens and the blank that a tokenizer puts first."""
        offsets = []
        for token in tokens:
            raw = self._vocabulary.token_bytes(token)
            if token in self._vocabulary.special_ids and not text.startswith(raw.decode(), self._length):
                raw = b""
            if self._length == 0 and raw.startswith(b" ") and not text.startswith(" "):
                raw = raw[1:]
            offsets.append(self._add(raw))
        self._restart(len(text))
        return offsets

    def of_answer(self, tokens: Sequence[int]) -> list[int]:
        return [self._add(b"" if t in self._skipped else self._vocabulary.token_bytes(t)) for t in tokens]

    def _restart(self, length: int) -> None:
        self._length = length
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def _add(self, raw: bytes) -> int:
        incomplete = self._decoder.getstate()[0]
        is_cut = bool(incomplete and raw) and raw[0] & 0xC0 != 0x80  # shows as one U+FFFD before the token
        offset = self._length + is_cut
        self._length += len(self._decoder.decode(raw))
        return offset
