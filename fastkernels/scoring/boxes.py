"""Discrepancy of detections: boxes with labels, matched one to one."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fastkernels.scoring.answers import Answer, AnswerError, Compared, Floats, both, mean

_HIT = 0.5
"""Intersection over union from which a pair counts for precision and recall."""


def compare_detections(names: Sequence[str], reference: Sequence[Answer], candidate: Sequence[Answer]) -> Compared:
    """Of boxes [n, 4] (left, top, right, bottom), scores [n] and labels [n], D: 1 - the mean intersection over union of
    pairs of one label, in the one-to-one matching in which their sum is largest.

    A box on either side without a partner that it meets counts as a pair of 0; of no box at all D is 0.
    Figures: precision and recall at 0.5 over all requests (1 of no box), score_difference (mean of the pairs').
    """
    values, hits, num_given, num_expected = [], 0, 0, 0
    differences: list[float] = []
    for number, pair in enumerate(zip(reference, candidate, strict=True)):
        first, second = (_found(number, side, *pair) for side in range(2))
        overlaps = _matched(first, second, differences)
        num_pairs = len(first[0]) + len(second[0]) - len(overlaps)
        values.append(1 - sum(overlaps) / num_pairs if num_pairs else 0.0)
        hits += sum(overlap >= _HIT for overlap in overlaps)
        num_expected += len(first[0])
        num_given += len(second[0])
    figures = {
        "precision": hits / num_given if num_given else 1.0,
        "recall": hits / num_expected if num_expected else 1.0,
        "score_difference": mean(differences),
    }
    return Compared(tuple(max(0.0, value) for value in values), figures)


Found = tuple[Floats, Floats, np.ndarray]


def _found(number: int, side: int, reference: Answer, candidate: Answer) -> Found:
    """Boxes, scores, labels of one side."""
    boxes, scores, labels = (
        both(name, number, reference, candidate, is_list=True)[side] for name in ("boxes", "scores", "labels")
    )
    if boxes.shape != (len(boxes), 4) or not len(boxes) == len(scores) == len(labels):
        shapes = ", ".join(str(list(array.shape)) for array in (boxes, scores, labels))
        message = f"boxes, scores and labels of answer {number} are {shapes}; they are [n, 4], [n] and [n]."
        raise AnswerError("WRONG_SHAPE", message) if side else ValueError(f"The reference's {message}")
    return boxes, scores, labels


def _matched(first: Found, second: Found, differences: list[float]) -> list[float]:
    """The overlap of each pair that meets; what their scores differ by is added to `differences`."""
    found = pairs(first[0], first[2], second[0], second[2])
    differences += [float(abs(first[1][mine] - second[1][theirs])) for mine, theirs, _ in found]
    return [overlap for _, _, overlap in found]


def pairs(
    first: Floats, first_labels: np.ndarray, second: Floats, second_labels: np.ndarray
) -> list[tuple[int, int, float]]:
    """Rows of boxes [n, 4] and [m, 4] that are partners, and their intersection over union, above 0: of one label, in
    the one-to-one matching in which the sum is largest."""
    found = []
    for label in np.intersect1d(first_labels, second_labels):
        mine, theirs = np.flatnonzero(first_labels == label), np.flatnonzero(second_labels == label)
        table = intersection_over_union(first[mine], second[theirs])
        for row, column in enumerate(best_partners(table)):
            if column >= 0 and table[row, column] > 0:
                found.append((int(mine[row]), int(theirs[column]), float(table[row, column])))
    return found


def intersection_over_union(first: Floats, second: Floats) -> Floats:
    """[n, m] of boxes [n, 4] and [m, 4]. Of two boxes without an area: 1 when they are equal, else 0."""
    low = np.maximum(first[:, None, :2], second[None, :, :2])
    high = np.minimum(first[:, None, 2:], second[None, :, 2:])
    shared = np.clip(high - low, 0, None).prod(axis=-1)
    areas = [np.clip(boxes[:, 2:] - boxes[:, :2], 0, None).prod(axis=-1) for boxes in (first, second)]
    union = areas[0][:, None] + areas[1][None] - shared
    is_equal = (first[:, None] == second[None]).all(axis=-1)
    return np.where(union > 0, shared / np.where(union > 0, union, 1.0), is_equal)


def best_partners(gains: Floats) -> list[int]:
    """The column of each row (-1: none) in the one-to-one assignment of the largest sum; gains [n, m].

    Shortest augmenting paths with potentials, O(n^2 m). Source: Jonker & Volgenant 1987,
    https://doi.org/10.1007/BF02278710
    """
    if gains.shape[0] > gains.shape[1]:
        rows = best_partners(gains.T)
        partners = [-1] * gains.shape[0]
        for column, row in enumerate(rows):
            partners[row] = column
        return partners
    num_rows, num_columns = gains.shape
    costs = -gains
    row_price, column_price = np.zeros(num_rows), np.zeros(num_columns)
    owner = np.full(num_columns, -1)
    for row in range(num_rows):
        _augment(row, costs, row_price, column_price, owner)
    partners = [-1] * num_rows
    for column in np.flatnonzero(owner >= 0):
        partners[owner[column]] = int(column)
    return partners


def _augment(start: int, costs: Floats, row_price: Floats, column_price: Floats, owner: np.ndarray) -> None:
    """Give row `start` a column; others move along the cheapest path. Prices and `owner` are written to."""
    num_columns = costs.shape[1]
    distance, before = np.full(num_columns, np.inf), np.full(num_columns, -1)
    is_done = np.zeros(num_columns, dtype=bool)
    row, reached, column = start, 0.0, -1
    while row >= 0:
        through = reached + costs[row] - row_price[row] - column_price
        is_shorter = ~is_done & (through < distance)
        distance[is_shorter], before[is_shorter] = through[is_shorter], column
        column = int(np.where(is_done, np.inf, distance).argmin())
        reached, is_done[column] = float(distance[column]), True
        row = int(owner[column])
    row_price[start] += reached
    passed = np.flatnonzero(is_done & (owner >= 0))
    row_price[owner[passed]] += reached - distance[passed]
    column_price[passed] -= reached - distance[passed]
    while column >= 0:
        previous = int(before[column])
        owner[column] = start if previous < 0 else owner[previous]
        column = previous
