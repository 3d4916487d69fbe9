"""Discrepancies of vectors: embeddings, logits, actions, features of points."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from fastkernels.scoring.answers import Answer, AnswerError, Compared, Floats, both, mean

_TOP = (1, 5)


def compare_embeddings(names: Sequence[str], reference: Sequence[Answer], candidate: Sequence[Answer]) -> Compared:
    """D: 1 - cosine of each vector (the last axis), the mean over an answer's rows, the largest over `names`.

    A `<stem>_weights` beside `<stem>_token_ids` is a sparse vector: a token that one side alone has weighs 0 on the
    other. Figures: the mean cosine of each name.
    """
    rows = _rows_apart(names, reference, candidate)
    figures = {f"{name}_cosine": 1 - mean([mean(distances) for distances in rows[name]]) for name in names}
    return Compared(_largest(rows), figures)


def compare_points(names: Sequence[str], reference: Sequence[Answer], candidate: Sequence[Answer]) -> Compared:
    """D: 1 - cosine of each point's features [.., points, channels], the mean over points, the largest over `names`.

    Figures: the least cosine of any point, by name.
    """
    rows = _rows_apart(names, reference, candidate)
    figures = {f"{name}_least_cosine": 1 - float(np.concatenate(rows[name]).max(initial=0.0)) for name in names}
    return Compared(_largest(rows), figures)


def compare_classifications(names: Sequence[str], reference: Sequence[Answer], candidate: Sequence[Answer]) -> Compared:
    """Of logits [.., classes], D: 1 - the mean over k = 1 and 5 of the share of the reference's k likeliest classes
    that are among the candidate's.

    Where there are fewer classes than 5, k is their number, at which any two answers agree. Of equal logits the class
    that comes first is the likelier. The largest over `names`.
    Figures: top1, top5 (those shares), total_variation between the softmax distributions; means over requests.
    """
    values: dict[str, list[list[float]]] = {name: [] for name in names}
    figures: dict[str, list[float]] = {"top1": [], "top5": [], "total_variation": []}
    for number, (expected, given) in enumerate(zip(reference, candidate, strict=True)):
        for name in names:
            first, second = (x.reshape(-1, x.shape[-1]) for x in both(name, number, expected, given))
            shares = [_overlap(first, second, k) for k in _TOP]
            values[name].append([1 - mean(shares)])
            variation = np.abs(_softmax(first) - _softmax(second)).sum(axis=-1) / 2
            for kept, value in zip(figures.values(), (*shares, mean(variation)), strict=True):
                kept.append(value)
    return Compared(_largest(values), {name: mean(kept) for name, kept in figures.items()})


def compare_trajectories(names: Sequence[str], reference: Sequence[Answer], candidate: Sequence[Answer]) -> Compared:
    """D: the mean squared error over the reference's mean square (over 1 where the reference is 0 throughout), the
    largest over `names`. Figures: the mean cosine of each name, an answer as one vector."""
    errors: dict[str, list[Floats]] = {name: [] for name in names}
    distances: dict[str, list[float]] = {name: [] for name in names}
    for number, (expected, given) in enumerate(zip(reference, candidate, strict=True)):
        for name in names:
            first, second = (x.reshape(1, -1) for x in both(name, number, expected, given))
            errors[name].append((first - second)[0] ** 2 / (mean(first[0] ** 2) or 1.0))
            distances[name].append(mean(cosine_distance(first, second)))
    return Compared(_largest(errors), {f"{name}_cosine": 1 - mean(distances[name]) for name in names})


def cosine_distance(reference: np.ndarray, candidate: np.ndarray) -> Floats:
    """1 - cosine of each row of [.., n], as [rows]: half the squared distance of the unit vectors, which is 0 of equal
    ones and exact of near ones. Two zero vectors are equal; one alone is at 1."""
    first, second = _unit(reference), _unit(candidate)
    is_one_zero = first.any(axis=-1) != second.any(axis=-1)
    return np.where(is_one_zero, 1.0, ((first - second) ** 2).sum(axis=-1) / 2)


def _unit(vectors: np.ndarray) -> Floats:
    """Divided by the largest element first: no square overflows or vanishes."""
    if not vectors.size:
        return np.zeros((0, 1))
    rows = vectors.reshape(-1, vectors.shape[-1]).astype(np.float64)
    scale = np.abs(rows).max(axis=-1, keepdims=True)
    rows = rows / np.where(scale > 0, scale, 1.0)
    length = np.sqrt((rows**2).sum(axis=-1, keepdims=True))
    return rows / np.where(length > 0, length, 1.0)


def _rows_apart(
    names: Sequence[str], reference: Sequence[Answer], candidate: Sequence[Answer]
) -> dict[str, list[Floats]]:
    """By name, of each request, the cosine distance of each row."""
    pairs = list(zip(reference, candidate, strict=True))
    return {
        name: [cosine_distance(*_vectors(name, number, *pair)) for number, pair in enumerate(pairs)] for name in names
    }


def _vectors(name: str, number: int, reference: Answer, candidate: Answer) -> tuple[np.ndarray, np.ndarray]:
    ids = f"{name.removesuffix('_weights')}_token_ids"
    if not name.endswith("_weights") or ids not in reference:
        return both(name, number, reference, candidate)
    weights = both(name, number, reference, candidate, is_list=True)
    tokens = both(ids, number, reference, candidate, is_list=True)
    if len(weights[1]) != len(tokens[1]):
        counts = f"{len(weights[1])} {name} for {len(tokens[1])} {ids}"
        raise AnswerError("WRONG_SHAPE", f"Answer {number} has {counts}; each token has one.")
    known = np.union1d(*tokens)
    dense = np.zeros((2, 1, len(known)))
    for side in range(2):
        np.add.at(dense[side, 0], np.searchsorted(known, tokens[side]), weights[side])
    return dense[0], dense[1]


def _overlap(reference: Floats, candidate: Floats, k: int) -> float:
    k = min(k, reference.shape[-1])
    best = [np.argsort(-x, axis=-1, kind="stable")[:, :k] for x in (reference, candidate)]
    return mean([len(set(a) & set(b)) / k for a, b in zip(*(x.tolist() for x in best), strict=True)])


def _softmax(rows: Floats) -> Floats:
    shifted = np.exp(rows - rows.max(axis=-1, keepdims=True))
    return shifted / shifted.sum(axis=-1, keepdims=True)


def _largest(values: Mapping[str, Sequence[Sequence[float] | Floats]]) -> tuple[float, ...]:
    """Of each request, the largest mean of any name."""
    return tuple(max(map(mean, of_request)) for of_request in zip(*values.values(), strict=True))
