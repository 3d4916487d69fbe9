"""The two ends of a family's scale: the least difference that can be one, and answers at random."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from fastkernels.calibration.subject import NUM_PLACES, Answers
from fastkernels.scoring.discrepancy import compare
from fastkernels.scoring.items import Family
from fastkernels.scoring.published import published_constants

ONE_OF_FIVE = 1 - (1 + 4 / 5) / 2
"""D of a classification whose likeliest class is right and whose five likeliest differ in one."""

SENTENCES: Mapping[Family, str] = {
    Family.LANGUAGE: f"one token of the {NUM_PLACES} places of a request",
    Family.SPEECH: f"one token of the {NUM_PLACES} places of a request",
    Family.CLASSIFICATION: "one of the five likeliest classes exchanged",
    Family.RANKING: "the last two items of one list exchanged, or every score moved by the published tolerance",
}
"""What the least difference is; of the other families TOLERANCE."""

TOLERANCE = "every value moved by the published tolerance, atol + rtol abs(y) either way"


def floor_sentence(family: Family) -> str:
    return SENTENCES.get(family, TOLERANCE)


def least_difference(family: Family, names: Sequence[str], answers: Answers, dtype: str, seed: int = 0) -> float:
    """The least D that two unlike answers of the form of these can have; see SENTENCES. The largest over the answers.

    Of tokens it is that of NUM_PLACES of them: in a shorter answer, one that differs is more.
    """
    if family in (Family.LANGUAGE, Family.SPEECH):
        return 1 / NUM_PLACES
    if family == Family.CLASSIFICATION:
        return ONE_OF_FIVE
    random = np.random.default_rng(seed)
    limits = published_constants()["dtype_tolerances"][dtype]
    ranks = family == Family.RANKING
    moved = [{n: _moved(a, limits, random, ranks) if n in names else a for n, a in one.items()} for one in answers]
    return max(compare(family, names, answers, moved).values)


def _moved(array: np.ndarray, limits: Mapping[str, float], random: np.random.Generator, is_ranking: bool) -> np.ndarray:
    if array.dtype.kind == "f":
        signs = random.choice([-1.0, 1.0], array.shape)
        return (array + signs * (limits["atol"] + limits["rtol"] * np.abs(array))).astype(array.dtype)
    if not is_ranking or array.shape[-1] < 2:
        return array
    exchanged = array.copy()
    first = exchanged.reshape(-1, array.shape[-1])[0]
    first[[-2, -1]] = first[[-1, -2]]
    return exchanged


def random_answers(family: Family, answers: Answers, num_choices: int, seed: int = 0) -> Answers:
    """Answers of the same form that know nothing of their request.

    Floats are drawn from the values of the same name over all answers; integers are any of num_choices (tokens, labels,
    items).
    """
    random = np.random.default_rng(seed)
    values = {name: np.concatenate([a[name].ravel() for a in answers]) for name in answers[0]}
    return [{n: _drawn(n, a, values[n], family, num_choices, random) for n, a in one.items()} for one in answers]


def _drawn(
    name: str, array: np.ndarray, values: np.ndarray, family: Family, num_choices: int, random: np.random.Generator
) -> np.ndarray:
    if family == Family.DETECTION and name == "boxes":
        corners = random.choice(values, (2, len(array), 2))
        return np.concatenate([corners.min(0), corners.max(0)], axis=-1).astype(array.dtype)
    if array.dtype.kind == "f":
        return random.choice(values, array.shape).astype(array.dtype)
    if family == Family.RANKING:
        rows = [random.permutation(num_choices)[: array.shape[-1]] for _ in range(array.size // array.shape[-1])]
        return np.stack(rows).reshape(array.shape).astype(array.dtype)
    return random.integers(0, num_choices, array.shape).astype(array.dtype)
