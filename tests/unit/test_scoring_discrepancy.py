"""What every family has in common: equal answers do not differ, and an answer of another form is never a number."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fastkernels.scoring.discrepancy import Answer, AnswerError, compare
from fastkernels.scoring.items import Family

RANDOM = np.random.default_rng(3)


def floats(*shape: int) -> np.ndarray:
    return RANDOM.random(shape).astype(np.float32)


def language(ids: list[int], expected: list[int] | None = None) -> Answer:
    logprobs = -np.ones(len(ids), dtype=np.float32)
    expected_ids = np.array(ids if expected is None else expected)
    return {
        "token_ids": np.array(ids),
        "reference_token_ids": expected_ids,
        "logprobs": logprobs,
        "reference_logprobs": logprobs,
    }


ANSWERS: dict[str, tuple[tuple[str, ...], list[Answer]]] = {
    Family.LANGUAGE: ((), [language([1, 2, 3]), language([4])]),
    Family.SPEECH: ((), [{"token_ids": np.array([5, 6]), "text": np.array("two words")}]),
    Family.EMBEDDING: (("pooled", "hidden"), [{"pooled": floats(8), "hidden": floats(5, 8)}]),
    Family.CLASSIFICATION: (("logits",), [{"logits": floats(10)}, {"logits": floats(10)}]),
    Family.DETECTION: (
        ("boxes", "scores", "labels"),
        [{"boxes": np.array([[0, 0, 4, 4], [2, 2, 9, 9.0]]), "scores": floats(2), "labels": np.array([1, 1])}],
    ),
    Family.RANKING: (("items",), [{"items": np.array([[3, 1, 2], [9, 8, 7]])}]),
    Family.IMAGE: (("image", "latents"), [{"image": floats(3, 16, 16), "latents": floats(4, 2, 2)}]),
    Family.TRAJECTORY: (("actions",), [{"actions": floats(6, 4)}]),
    Family.RENDERING: (("image", "alphas"), [{"image": floats(8, 9, 3), "alphas": floats(8, 9, 1)}]),
    Family.POINTS: (("features",), [{"features": floats(20, 6)}]),
}
FLOATS = {
    Family.LANGUAGE: "logprobs",
    Family.EMBEDDING: "hidden",
    Family.CLASSIFICATION: "logits",
    Family.DETECTION: "boxes",
    Family.IMAGE: "latents",
    Family.TRAJECTORY: "actions",
    Family.RENDERING: "alphas",
    Family.POINTS: "features",
}


def altered(answers: list[Answer], **changed: Any) -> list[Answer]:
    """The last answer with other arrays."""
    return [*answers[:-1], {**answers[-1], **changed}]


def test_every_family_has_a_discrepancy() -> None:
    assert set(ANSWERS) == set(Family)


@pytest.mark.parametrize("family", Family)
def test_equal_answers_do_not_differ_at_all(family: str) -> None:
    names, answers = ANSWERS[family]
    again = [{name: array.copy() for name, array in answer.items()} for answer in answers]
    found = compare(family, names, answers, again)
    assert found.values == (0.0,) * len(answers)
    assert all(np.isfinite(value) for value in found.figures.values())


@pytest.mark.parametrize("family", FLOATS)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_value_that_is_not_finite_is_an_error(family: str, value: float) -> None:
    names, answers = ANSWERS[family]
    array = answers[-1][FLOATS[family]].copy()
    array.flat[-1] = value
    with pytest.raises(AnswerError, match=FLOATS[family]) as caught:
        compare(family, names, answers, altered(answers, **{FLOATS[family]: array}))
    assert caught.value.reason == "NOT_FINITE"


@pytest.mark.parametrize("family", FLOATS)
def test_another_dtype_is_an_error(family: str) -> None:
    names, answers = ANSWERS[family]
    array = answers[-1][FLOATS[family]].astype(np.int64)
    with pytest.raises(AnswerError, match="int64") as caught:
        compare(family, names, answers, altered(answers, **{FLOATS[family]: array}))
    assert caught.value.reason == "WRONG_DTYPE"


@pytest.mark.parametrize("family", [*FLOATS, Family.RANKING])
def test_another_shape_is_an_error_that_names_both(family: str) -> None:
    names, answers = ANSWERS[family]
    name = FLOATS.get(Family(family), "items")
    array = answers[-1][name][..., :-1] if answers[-1][name].shape != (1,) else np.zeros(3, dtype=np.float32)
    with pytest.raises(AnswerError, match=r"\[.*\].*\[.*\]") as caught:
        compare(family, names, answers, altered(answers, **{name: array}))
    assert caught.value.reason == "WRONG_SHAPE"


def test_an_answer_that_broadcasts_is_of_another_shape() -> None:
    reference = [{"actions": np.ones((6, 4))}]
    with pytest.raises(AnswerError, match=r"\[1, 4\]; the reference's is \[6, 4\]"):
        compare("trajectory", ["actions"], reference, [{"actions": np.ones((1, 4))}])


@pytest.mark.parametrize("family", Family)
def test_a_missing_answer_or_tensor_is_an_error(family: str) -> None:
    names, answers = ANSWERS[family]
    with pytest.raises(AnswerError, match="the reference gave") as caught:
        compare(family, names, answers, answers[:-1])
    assert caught.value.reason == "MISSING_ANSWER"
    name = next(iter(answers[-1]))
    short = [*answers[:-1], {key: array for key, array in answers[-1].items() if key != name}]
    with pytest.raises(AnswerError, match=f"no '?{name}") as caught:
        compare(family, names, answers, short)
    assert caught.value.reason == "MISSING_ANSWER"


def test_a_reference_that_is_not_finite_is_nobodys_answer() -> None:
    names, answers = ANSWERS[Family.TRAJECTORY]
    broken = [{"actions": np.full((6, 4), np.nan, dtype=np.float32)}]
    with pytest.raises(ValueError, match="reference's answer 0 holds NaN") as caught:
        compare("trajectory", names, broken, answers)
    assert not isinstance(caught.value, AnswerError)


def test_what_cannot_be_compared_is_refused() -> None:
    names, answers = ANSWERS[Family.TRAJECTORY]
    with pytest.raises(ValueError, match="no family 'odour'"):
        compare("odour", names, answers, answers)
    with pytest.raises(ValueError, match="no answer of the reference"):
        compare("trajectory", names, [], [])
    with pytest.raises(ValueError, match="no name is given"):
        compare("trajectory", [], answers, answers)
