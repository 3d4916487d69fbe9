"""Detections: the matching is the best there is, and every box without a partner costs."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.optimize import linear_sum_assignment

from fastkernels.scoring.boxes import best_partners, intersection_over_union
from fastkernels.scoring.discrepancy import AnswerError, Compared, compare

Found = list[tuple[list[float], int]]
NAMES = ("boxes", "scores", "labels")


def detections(found: Found, score: float = 0.9) -> dict[str, np.ndarray]:
    return {
        "boxes": np.array([box for box, _ in found], dtype=np.float32).reshape(-1, 4),
        "scores": np.full(len(found), score, dtype=np.float32),
        "labels": np.array([label for _, label in found], dtype=np.int64),
    }


def compared(reference: Found, candidate: Found) -> Compared:
    return compare("detection", NAMES, [detections(reference)], [detections(candidate, 0.8)])


tables = st.tuples(st.integers(0, 6), st.integers(0, 6)).flatmap(
    lambda shape: arrays(np.float64, shape, elements=st.integers(0, 8).map(lambda n: n / 8))
)


@settings(max_examples=60, deadline=None)
@given(tables)
def test_partners_have_the_largest_sum_there_is(gains: np.ndarray) -> None:
    partners = best_partners(gains)
    chosen = [(row, column) for row, column in enumerate(partners) if column >= 0]
    assert len({column for _, column in chosen}) == len(chosen) == min(gains.shape)
    rows, columns = linear_sum_assignment(gains, maximize=True)
    assert sum(gains[place] for place in chosen) == pytest.approx(gains[rows, columns].sum())


def test_partners_of_many_boxes_have_the_largest_sum_there_is() -> None:
    gains = np.random.default_rng(0).random((120, 90))
    rows, columns = linear_sum_assignment(gains, maximize=True)
    found = sum(gains[row, column] for row, column in enumerate(best_partners(gains)) if column >= 0)
    assert found == pytest.approx(gains[rows, columns].sum())


def test_intersection_over_union_of_known_boxes() -> None:
    first = np.array([[0, 0, 2, 2], [5, 5, 5, 9.0]])
    second = np.array([[1, 1, 3, 3], [0, 0, 2, 2], [5, 5, 5, 9.0]])
    assert intersection_over_union(first, second) == pytest.approx(np.array([[1 / 7, 1, 0], [0, 0, 1]]))


A, B, FAR = [0, 0, 2, 2], [1, 0, 3, 2], [50, 50, 60, 60]


def test_the_order_of_boxes_does_not_matter() -> None:
    assert compared([(A, 1), (FAR, 2)], [(FAR, 2), (A, 1)]).values == (0.0,)


def test_a_box_moved_by_half_overlaps_by_a_third() -> None:
    found = compared([(A, 1)], [(B, 1)])
    assert found.values == (pytest.approx(1 - 1 / 3),)
    assert (found.figures["precision"], found.figures["recall"]) == (0.0, 0.0)
    assert found.figures["score_difference"] == pytest.approx(0.1)


def test_a_box_too_many_and_a_box_too_few_cost_alike() -> None:
    more, fewer = compared([(A, 1)], [(A, 1), (FAR, 1)]), compared([(A, 1), (FAR, 1)], [(A, 1)])
    assert more.values == fewer.values == (0.5,)
    assert (more.figures["precision"], more.figures["recall"]) == (0.5, 1.0)
    assert (fewer.figures["precision"], fewer.figures["recall"]) == (1.0, 0.5)


def test_a_box_of_another_label_is_no_partner() -> None:
    assert compared([(A, 1)], [(A, 2)]).values == (1.0,)


def test_a_partner_that_is_not_met_is_none() -> None:
    """One box astray on each side: two without a partner, beside one that fits."""
    assert compared([(A, 1), (FAR, 1)], [(A, 1), ([9, 9, 10, 10], 1)]).values == (pytest.approx(2 / 3),)


def test_no_box_on_both_sides_is_agreement() -> None:
    found = compared([], [])
    assert found.values == (0.0,)
    assert (found.figures["precision"], found.figures["recall"]) == (1.0, 1.0)
    assert compared([], [(A, 1)]).values == compared([(A, 1)], []).values == (1.0,)


def test_fewer_scores_than_boxes_are_another_shape() -> None:
    answer = detections([(A, 1), (B, 1)])
    with pytest.raises(AnswerError, match=r"\[2, 4\], \[1\], \[2\]") as caught:
        compare("detection", NAMES, [answer], [{**answer, "scores": answer["scores"][:1]}])
    assert caught.value.reason == "WRONG_SHAPE"
