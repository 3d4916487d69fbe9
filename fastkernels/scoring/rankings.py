"""Discrepancy of rankings: what is recommended, in which order."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fastkernels.scoring.answers import Answer, Compared, Floats, both, mean


def compare_rankings(names: Sequence[str], reference: Sequence[Answer], candidate: Sequence[Answer]) -> Compared:
    """D: 1 - nDCG of the candidate's order, the largest over `names`. Two kinds of answer:

    - integers, items [.., k], the likeliest first: nDCG@k; the reference's item at place r (from 0) gains k - r, an
      item that it does not list 0, and a repeated one counts where it comes first. Figure: <name>_overlap, the share
      of the reference's items that are listed at all.
    - one score a request: all requests are one group, and there is one discrepancy. The gain of a request is the
      reference's score less its least one; requests of equal score on the candidate's side share the mean of their
      gains. Figure: <name>_difference, the mean absolute difference of scores.

    Errors: ValueError when the answers are neither, or scores of fewer than two requests.
    """
    values, figures = [], {}
    for name in names:
        sides = [both(name, number, *pair) for number, pair in enumerate(zip(reference, candidate, strict=True))]
        if all(expected.dtype.kind in "iu" for expected, _ in sides):
            rows = [_rows(*side) for side in sides]
            values.append([1 - mean([item_gain(*row) for row in of_request]) for of_request in rows])
            figures[f"{name}_overlap"] = mean([_overlap(*row) for of_request in rows for row in of_request])
        else:
            first, second = _scores(name, sides)
            values.append([1 - score_gain(first, second)])
            figures[f"{name}_difference"] = mean(np.abs(first - second))
    if len({len(of_name) for of_name in values}) > 1:
        raise ValueError(f"{', '.join(names)}: items and scores are not compared together.")
    return Compared(tuple(max(0.0, *of_request) for of_request in zip(*values, strict=True)), figures)


def item_gain(reference: Sequence[int], candidate: Sequence[int]) -> float:
    """nDCG@k of one list of k items; 1 of the reference itself, and at most, also where it repeats an item."""
    ideal = _gained(reference, reference)
    return min(1.0, _gained(reference, candidate) / ideal) if ideal else 1.0


def _gained(reference: Sequence[int], listed: Sequence[int]) -> float:
    gains: dict[int, int] = {}
    for rank, item in enumerate(reference):
        gains.setdefault(item, len(reference) - rank)
    return _discounted([gains.pop(item, 0) for item in listed])


def score_gain(reference: Floats, candidate: Floats) -> float:
    """nDCG of requests ranked by the candidate's scores; 1 where the reference tells none from another."""
    gains = reference - reference.min()
    _, group, counts = np.unique(-candidate, return_inverse=True, return_counts=True)
    shared = np.bincount(group, weights=gains) / counts
    ideal = _discounted(np.sort(gains)[::-1])
    return round(_discounted(np.repeat(shared, counts)) / ideal, 12) if ideal > 0 else 1.0


def _discounted(gains: Sequence[float] | Floats) -> float:
    return float((np.asarray(gains) / np.log2(np.arange(2, len(gains) + 2))).sum())


def _overlap(reference: Sequence[int], candidate: Sequence[int]) -> float:
    return len(set(reference) & set(candidate)) / max(1, len(set(reference)))


def _rows(reference: np.ndarray, candidate: np.ndarray) -> list[tuple[list[int], list[int]]]:
    """Both sides' lists of one request."""
    shape = (-1, max(1, reference.shape[-1]))
    return list(zip(reference.reshape(shape).tolist(), candidate.reshape(shape).tolist(), strict=True))


def _scores(name: str, sides: Sequence[tuple[np.ndarray, np.ndarray]]) -> tuple[Floats, Floats]:
    if len(sides) < 2 or any(expected.size != 1 or expected.dtype.kind != "f" for expected, _ in sides):
        shapes = sorted({f"{list(expected.shape)} {expected.dtype}" for expected, _ in sides})
        raise ValueError(
            f"{name} of {len(sides)} requests is {', '.join(shapes)}; a ranking is items [.., k] of integers, or one "
            "score each of two requests or more."
        )
    first, second = (np.array([side[i].item() for side in sides]) for i in range(2))
    return first, second
