"""Tokens and transcripts, against definitions of their own."""

from __future__ import annotations

import math
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastkernels.scoring.discrepancy import Answer, AnswerError, compare
from fastkernels.scoring.text import edit_distance, edit_rate


def by_recursion(first: str, second: str) -> int:
    """Levenshtein's definition."""

    @cache
    def distance(i: int, j: int) -> int:
        if not i or not j:
            return i + j
        changed = distance(i - 1, j - 1) + (first[i - 1] != second[j - 1])
        return min(distance(i - 1, j) + 1, distance(i, j - 1) + 1, changed)

    return distance(len(first), len(second))


words = st.text("abc", max_size=12)


@settings(max_examples=60, deadline=None)
@given(words, words)
def test_edit_distance_is_levenshteins(first: str, second: str) -> None:
    assert edit_distance(first, second) == by_recursion(first, second)


@settings(max_examples=60, deadline=None)
@given(words, words, words)
def test_edit_distance_is_a_metric(a: str, b: str, c: str) -> None:
    assert edit_distance(a, b) == edit_distance(b, a)
    assert (edit_distance(a, b) == 0) == (a == b)
    assert edit_distance(a, c) <= edit_distance(a, b) + edit_distance(b, c)


def test_edit_rate_is_of_the_reference_and_may_exceed_one() -> None:
    assert edit_rate("kitten", "sitting") == 3 / 6
    assert edit_rate("ab", "xyzxyz") == 3.0
    assert (edit_rate("", "abc"), edit_rate("", "")) == (3.0, 0.0)


def transcript(ids: list[int], text: str | None = None) -> Answer:
    answer = {"token_ids": np.array(ids, dtype=np.int64)}
    return answer if text is None else {**answer, "text": np.array(text)}


def test_speech_is_compared_by_words_where_there_is_a_text() -> None:
    reference = transcript([1, 2, 3, 4], "the cat sat down")
    found = compare("speech", [], [reference], [transcript([1, 9, 3], "the  cap sat")])
    assert found.values == (2 / 4,)  # one word other, one gone; two spaces are one
    assert found.figures["token_edit_rate"] == 2 / 4
    assert found.figures["cer"] == edit_rate("the cat sat down", "the  cap sat")


def test_speech_without_a_text_is_compared_by_tokens() -> None:
    found = compare("speech", [], [transcript([1, 2, 3, 4])], [transcript([1, 2, 3])])
    assert found.values == (0.25,)
    assert set(found.figures) == {"token_edit_rate"}


def test_speech_that_keeps_its_text_back_is_missing() -> None:
    with pytest.raises(AnswerError, match="has no 'text'") as caught:
        compare("speech", [], [transcript([1], "one")], [transcript([1])])
    assert caught.value.reason == "MISSING_ANSWER"


def judged(ids: list[int], best: list[int], logprobs: list[float], best_logprobs: list[float]) -> Answer:
    return {
        "token_ids": np.array(ids),
        "reference_token_ids": np.array(best),
        "logprobs": np.array(logprobs),
        "reference_logprobs": np.array(best_logprobs),
    }


def test_language_counts_places_where_the_reference_would_speak_otherwise() -> None:
    answers = [
        judged([5, 6, 7, 8], [5, 6, 9, 8], [-0.1, -0.2, -1.5, -0.4], [-0.1, -0.2, -0.5, -0.4]),
        judged([1, 2], [1, 2], [-0.3, -0.3], [-0.3, -0.3]),
    ]
    found = compare("language", [], answers, answers)
    assert found.values == (0.25, 0.0)
    assert found.figures["regret"] == pytest.approx(1.0 / 6)
    assert found.figures["perplexity"] == pytest.approx(math.exp(2.8 / 6))


def test_language_that_says_nothing_is_missing() -> None:
    with pytest.raises(AnswerError, match="no token") as caught:
        compare("language", [], [{}], [judged([], [], [], [])])
    assert caught.value.reason == "MISSING_ANSWER"


def test_language_whose_judgement_is_of_another_length_is_refused() -> None:
    with pytest.raises(AnswerError, match=r"logprobs of answer 0 is \[1\]; token_ids is \[2\]") as caught:
        compare("language", [], [{}], [judged([1, 2], [1, 2], [-1.0], [-1.0, -1.0])])
    assert caught.value.reason == "WRONG_SHAPE"


def test_perplexity_of_impossible_tokens_is_large_and_finite() -> None:
    answer = judged([1], [2], [-1e5], [-0.1])
    found = compare("language", [], [answer], [answer])
    assert 1e300 < found.figures["perplexity"] < math.inf
