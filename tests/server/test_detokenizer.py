"""Text made token by token is the text of all tokens, and a stop text is found wherever tokens border."""

from __future__ import annotations

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models

from fastkernels.engine.detokenizer import StopMatcher, TextStream, Vocabulary
from fastkernels.workloads import byte_tokenizer

VOCABULARY = Vocabulary(byte_tokenizer())
TOKENS = st.lists(st.integers(0, 511), max_size=60)


def sentencepiece() -> Tokenizer:
    """Words with a mark for the blank before them, and bytes to fall back on."""
    words = ["<unk>", "▁the", "▁cat", "s", "▁", "é", *(f"<0x{byte:02X}>" for byte in range(256))]
    tokenizer = Tokenizer(models.BPE(vocab={w: i for i, w in enumerate(words)}, merges=[], byte_fallback=True))
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens([AddedToken("<s>", special=True)])
    return tokenizer


SENTENCEPIECE = Vocabulary(sentencepiece())


def told(vocabulary: Vocabulary, tokens: list[int], skip: bool = True) -> list[str]:
    detokenizer = vocabulary.detokenizer(skip)
    return [*(detokenizer.add([token]) for token in tokens), detokenizer.finish()]


@given(TOKENS, st.booleans())
def test_bytes_told_one_by_one_are_the_decoded_text(tokens: list[int], skip: bool) -> None:
    assert "".join(told(VOCABULARY, tokens, skip)) == VOCABULARY.tokenizer.decode(tokens, skip_special_tokens=skip)


@given(st.text(max_size=30))
def test_a_text_comes_back_and_no_piece_has_half_a_character(text: str) -> None:
    pieces = told(VOCABULARY, VOCABULARY.tokenizer.encode(text).ids, skip=False)  # the text may spell a special token
    assert "".join(pieces) == text
    assert "\ufffd" in text or not any("\ufffd" in piece for piece in pieces)


@given(st.lists(st.sampled_from(["▁the", "▁cat", "s", "é", "你", "🙂", "<s>"]), max_size=12))
def test_other_tokenizers_give_whole_characters_too(words: list[str]) -> None:
    ids = sentencepiece_ids(words)
    pieces = told(SENTENCEPIECE, ids)
    assert "".join(pieces) == SENTENCEPIECE.tokenizer.decode(ids, skip_special_tokens=True)
    assert not any("\ufffd" in piece for piece in pieces)


def sentencepiece_ids(words: list[str]) -> list[int]:
    """The words' own tokens, or their bytes."""
    token_to_id = SENTENCEPIECE.tokenizer.token_to_id
    parts = [[w] if token_to_id(w) is not None else [f"<0x{byte:02X}>" for byte in w.encode()] for w in words]
    return [token_to_id(part) for word in parts for part in word]


WORDS = st.sampled_from(["▁the", "▁cat", "s", "▁", "é", "你", "🙂", "<s>"])


@given(st.lists(WORDS, max_size=12), st.lists(WORDS, max_size=12), st.booleans())
def test_an_answer_is_what_the_prompt_lacks_of_the_whole_text(prompt: list[str], answer: list[str], skip: bool) -> None:
    """SentencePiece's decoders strip the blank before a text: that of an answer stands within one."""
    before, tokens = sentencepiece_ids(prompt), sentencepiece_ids(answer)
    detokenizer = SENTENCEPIECE.detokenizer(skip, before)
    pieces = [*(detokenizer.add([token]) for token in tokens), detokenizer.finish()]
    whole, known = (SENTENCEPIECE.tokenizer.decode(ids, skip_special_tokens=skip) for ids in (before + tokens, before))
    assert "".join(pieces) == whole[len(known) :]
    assert "".join(pieces) == SENTENCEPIECE.detokenizer(skip, before).add(tokens)


def test_a_character_that_a_prompt_begins_belongs_to_the_answer() -> None:
    *begun, last = sentencepiece_ids(["▁the", "🙂"])
    assert SENTENCEPIECE.detokenizer(True, begun).add([last]) == "🙂"
    assert SENTENCEPIECE.detokenizer(True, sentencepiece_ids(["🙂"] * 3)[1:-1]).add([last]) == "🙂"


def test_broken_bytes_of_another_tokenizer_are_not_held_for_ever() -> None:
    byte = SENTENCEPIECE.tokenizer.token_to_id("<0xF0>")
    detokenizer = SENTENCEPIECE.detokenizer()
    pieces = [detokenizer.add([byte]) for _ in range(100)]
    assert sum(map(len, pieces)) > 90


def test_a_tokens_bytes_are_those_of_its_part_of_a_character() -> None:
    ids = VOCABULARY.tokenizer.encode("你").ids
    assert b"".join(VOCABULARY.token_bytes(i) for i in ids) == "你".encode()
    assert SENTENCEPIECE.token_bytes(SENTENCEPIECE.tokenizer.token_to_id("▁the")) == b" the"
    assert SENTENCEPIECE.token_bytes(SENTENCEPIECE.tokenizer.token_to_id("<0xE4>")) == b"\xe4"


@pytest.mark.parametrize("vocabulary", [VOCABULARY, SENTENCEPIECE], ids=["bytes", "window"])
def test_a_token_costs_the_same_late_as_early(vocabulary: Vocabulary) -> None:
    def seconds(count: int) -> float:
        detokenizer, start = vocabulary.detokenizer(), time.process_time()
        for i in range(count):
            detokenizer.add([i % 256 + 6])
        return time.process_time() - start

    seconds(2_000)
    assert min(seconds(40_000) for _ in range(2)) < 20 * max(min(seconds(4_000) for _ in range(3)), 1e-3)


TEXTS = st.text(alphabet="ab", max_size=24)
STOPS = st.lists(st.text(alphabet="ab", min_size=1, max_size=5), min_size=1, max_size=3)


def first_stop(text: str, stops: list[str]) -> tuple[int, str] | None:
    """The end of the stop text that is complete first; of several the longest."""
    for end in range(1, len(text) + 1):
        found = [stop for stop in stops if text[:end].endswith(stop)]
        if found:
            return end, max(found, key=len)
    return None


def cut(text: str, data: st.DataObject) -> list[str]:
    borders = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=6)))
    return [text[a:b] for a, b in zip([0, *borders], [*borders, len(text)], strict=True)]


class Pieces:
    """Stands for a detokenizer: the token i is the i-th piece."""

    def __init__(self, pieces: list[str]) -> None:
        self.pieces = pieces

    def add(self, token_ids: list[int]) -> str:
        return "".join(self.pieces[i] for i in token_ids)

    def finish(self) -> str:
        return ""


@settings(max_examples=400)
@given(TEXTS, STOPS, st.booleans(), st.data())
def test_a_stop_text_is_found_however_the_text_is_cut(
    text: str, stops: list[str], include: bool, data: st.DataObject
) -> None:
    pieces = cut(text, data)
    stream = TextStream(Pieces(pieces), stops, include)
    found, taken = None, ""
    for i in range(len(pieces)):
        found = stream.add([i])
        taken += stream.take()
        if found is not None:
            break
        so_far = "".join(pieces[: i + 1])
        held = so_far[len(taken) :]
        # What is held may become a stop text; what is told cannot.
        assert so_far.startswith(taken)
        assert not held or any(stop.startswith(held) and stop != held for stop in stops)
    expected = first_stop(text, stops)
    if expected is None:
        assert found is None
        assert stream.finish() is None
        assert stream.text == text
    else:
        end, stop = expected
        assert found == stop
        assert stream.text == (text[:end] if include else text[: end - len(stop)]) == taken


def test_the_matcher_forgets_nothing_after_a_mismatch() -> None:
    matcher = StopMatcher(["aab"])
    assert matcher.feed("aa") is None
    assert matcher.num_held == 2
    assert matcher.feed("ab") == (2, "aab")
