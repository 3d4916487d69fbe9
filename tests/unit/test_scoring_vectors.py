"""Embeddings, points, logits, actions and rankings, against definitions of their own."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from fastkernels.scoring.discrepancy import AnswerError, compare
from fastkernels.scoring.rankings import item_gain, score_gain
from fastkernels.scoring.vectors import cosine_distance

numbers = st.floats(-100, 100, allow_subnormal=False).map(lambda x: round(x, 3))
matrices = arrays(np.float64, (4, 3), elements=numbers)


@settings(max_examples=60, deadline=None)
@given(matrices, matrices)
def test_cosine_distance_is_one_minus_the_cosine(first: np.ndarray, second: np.ndarray) -> None:
    distance = cosine_distance(first, second)
    for row, (a, b) in enumerate(zip(first, second, strict=True)):
        lengths = math.sqrt(a @ a) * math.sqrt(b @ b)
        if lengths:
            assert distance[row] == pytest.approx(1 - a @ b / lengths, abs=1e-9)
        else:
            assert distance[row] == float(bool(a.any() != b.any()))


def test_cosine_distance_is_exact_of_near_vectors_and_safe_of_huge_ones() -> None:
    first = np.array([[1.0, 0.0]])
    assert cosine_distance(first, np.array([[1.0, 1e-9]]))[0] == pytest.approx(5e-19, rel=1e-6)
    assert cosine_distance(first * 1e300, first * 1e-300)[0] == 0.0
    assert cosine_distance(first, -first)[0] == 2.0


def test_embeddings_count_the_worst_of_the_named_vectors() -> None:
    reference = [{"pooled": np.array([1.0, 0.0]), "hidden": np.array([[1.0, 0.0], [0.0, 2.0]])}]
    candidate = [{"pooled": np.array([3.0, 0.0]), "hidden": np.array([[0.0, 1.0], [0.0, 5.0]])}]
    found = compare("embedding", ["pooled", "hidden"], reference, candidate)
    assert found.values == (0.5,)
    assert found.figures == {"pooled_cosine": 1.0, "hidden_cosine": 0.5}


def sparse(ids: list[int], weights: list[float]) -> dict[str, np.ndarray]:
    return {"lexical_token_ids": np.array(ids), "lexical_weights": np.array(weights)}


def test_sparse_vectors_are_compared_by_token() -> None:
    """A weight that one side rounds to nothing is not another shape."""
    found = compare("embedding", ["lexical_weights"], [sparse([7, 3], [3.0, 4.0])], [sparse([3], [4.0])])
    assert found.values == (pytest.approx(1 - 4 / 5),)
    swapped = compare("embedding", ["lexical_weights"], [sparse([7, 3], [3.0, 4.0])], [sparse([3, 7], [4.0, 3.0])])
    assert swapped.values == (0.0,)
    with pytest.raises(AnswerError, match="1 lexical_weights for 2 lexical_token_ids"):
        compare("embedding", ["lexical_weights"], [sparse([7], [3.0])], [sparse([3, 7], [4.0])])


def test_points_are_averaged_and_the_worst_is_named() -> None:
    reference, candidate = np.eye(4), np.eye(4)
    candidate[3] = [1, 0, 0, 0]
    found = compare("points", ["features"], [{"features": reference}], [{"features": candidate}])
    assert found.values == (0.25,)
    assert found.figures == {"features_least_cosine": 0.0}


def test_classification_averages_the_overlap_at_one_and_five() -> None:
    reference = np.array([9.0, 8, 7, 6, 5, 4, 3, 2, 1, 0])
    candidate = reference.copy()
    candidate[[0, 1]] = candidate[[1, 0]]  # another first, the same five
    found = compare("classification", ["logits"], [{"logits": reference}], [{"logits": candidate}])
    assert found.values == (0.5,)
    assert (found.figures["top1"], found.figures["top5"]) == (0.0, 1.0)
    shares = [np.exp(x) / np.exp(x).sum() for x in (reference, candidate)]
    assert found.figures["total_variation"] == pytest.approx(np.abs(shares[0] - shares[1]).sum() / 2)
    candidate = reference.copy()
    candidate[[4, 5]] = candidate[[5, 4]]  # the fifth and the sixth
    found = compare("classification", ["logits"], [{"logits": reference}], [{"logits": candidate}])
    assert found.values == (pytest.approx(0.1),)


def test_classification_of_few_classes_clips_k() -> None:
    logits = [{"logits": np.array([1.0, 2.0, 3.0])}]
    other = [{"logits": np.array([3.0, 2.0, 1.0])}]
    assert compare("classification", ["logits"], logits, other).values == (0.5,)


def test_trajectory_is_the_error_over_the_references_own_square() -> None:
    reference, candidate = np.array([[3.0, 4.0]]), np.array([[3.0, 5.0]])
    found = compare("trajectory", ["actions"], [{"actions": reference}], [{"actions": candidate}])
    assert found.values == (pytest.approx(1 / 25),)
    assert found.figures["actions_cosine"] == pytest.approx(29 / (5 * math.sqrt(34)))
    still = compare("trajectory", ["actions"], [{"actions": np.zeros(4)}], [{"actions": np.full(4, 0.5)}])
    assert still.values == (0.25,)


def test_ranked_items_follow_ndcg() -> None:
    """k = 3: gains 3, 2, 1 of the reference's order, discounts log2(2), log2(3), log2(4)."""
    ideal = 3 + 2 / math.log2(3) + 1 / 2
    assert item_gain([7, 8, 9], [9, 5, 7]) == pytest.approx((1 + 0 + 3 / 2) / ideal)
    found = compare("ranking", ["items"], [{"items": np.array([7, 8, 9])}], [{"items": np.array([9, 5, 7])}])
    assert found.values == (pytest.approx(1 - 2.5 / ideal),)
    assert found.figures["items_overlap"] == pytest.approx(2 / 3)


@settings(max_examples=60, deadline=None)
@given(st.permutations(range(6)))
def test_no_order_of_items_beats_the_references(order: list[int]) -> None:
    gain = item_gain(range(6), order)
    assert gain <= 1
    assert (gain == 1) == (order == list(range(6)))


def test_an_item_said_twice_counts_once() -> None:
    assert item_gain([7, 8, 9], [7, 7, 7]) < item_gain([7, 8, 9], [7, 9, 8])


@given(st.lists(st.integers(0, 3), min_size=1, max_size=5), st.lists(st.integers(0, 3), min_size=1, max_size=5))
def test_a_list_that_repeats_an_item_equals_itself(reference: list[int], candidate: list[int]) -> None:
    assert item_gain(reference, reference) == 1
    assert 0 <= item_gain(reference, candidate) <= 1


def expected_gain(reference: np.ndarray, candidate: np.ndarray) -> float:
    """nDCG averaged over every order in which ties of the candidate could be broken."""
    gains = reference - reference.min()
    ideal = sum(g / math.log2(i + 2) for i, g in enumerate(sorted(gains, reverse=True)))
    orders = [
        o
        for o in itertools.permutations(range(len(gains)))
        if all(candidate[a] >= candidate[b] for a, b in itertools.pairwise(o))
    ]
    found = [sum(gains[j] / math.log2(i + 2) for i, j in enumerate(order)) for order in orders]
    return sum(found) / len(found) / ideal if ideal else 1.0


few = arrays(np.float64, 5, elements=st.integers(-3, 3).map(float))


@settings(max_examples=60, deadline=None)
@given(few, few)
def test_scores_of_requests_follow_ndcg_with_ties_shared(reference: np.ndarray, candidate: np.ndarray) -> None:
    assert score_gain(reference, candidate) == pytest.approx(expected_gain(reference, candidate), abs=1e-9)


def test_scores_of_all_requests_are_one_group() -> None:
    reference, candidate = ([{"p": np.array([x])} for x in side] for side in ([0.1, 0.9, 0.5], [0.2, 0.8, 0.6]))
    found = compare("ranking", ["p"], reference, candidate)
    assert found.values == (0.0,)
    assert found.figures["p_difference"] == pytest.approx(0.1)
    constant = compare("ranking", ["p"], reference, [{"p": np.array([0.5])}] * 3)
    assert constant.values[0] > 0.1  # no luck from the order of requests


@pytest.mark.parametrize("answers", [[{"p": np.array([0.5])}], [{"p": np.array([0.5, 0.1])}] * 2])
def test_scores_that_are_no_ranking_are_refused(answers: list[dict[str, np.ndarray]]) -> None:
    with pytest.raises(ValueError, match="a ranking is items"):
        compare("ranking", ["p"], answers, answers)
