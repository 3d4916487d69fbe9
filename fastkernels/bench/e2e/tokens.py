"""What two runs said, compared: a digest of all tokens, and where they begin to differ."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

import numpy as np

Tokens = Sequence[Sequence[int]]
Answers = Sequence[Sequence[int] | None]
"""By the request's index; None: it was not answered."""


def digest(answers: Tokens) -> str:
    """SHA-256 over each answer's length and token ids, as little-endian 32-bit numbers, in the order of requests."""
    state = hashlib.sha256()
    for tokens in answers:
        state.update(np.asarray((len(tokens), *tokens), dtype="<u4").tobytes())
    return state.hexdigest()


@dataclass(frozen=True)
class Agreement:
    """Of the requests that both sides answered; num_unanswered: the others.

    share_equal: of the expected tokens, those that are there at the same place.
    first_difference: (request, place) of the first answer in order that differs; None when all are equal.
    median_first_difference: over the answers that differ, the place of their first difference.
    """

    num_answers: int
    num_equal_answers: int
    num_tokens: int
    num_equal_tokens: int
    first_difference: tuple[int, int] | None
    median_first_difference: float | None
    num_unanswered: int = 0

    @property
    def share_equal(self) -> float:
        return self.num_equal_tokens / self.num_tokens if self.num_tokens else 1.0

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "share_equal": self.share_equal}


def agreement(expected: Answers, found: Answers) -> Agreement:
    """Errors: ValueError when they are not of the same requests."""
    if len(expected) != len(found):
        raise ValueError(f"{len(expected)} answers are compared with {len(found)}.")
    together = enumerate(zip(expected, found, strict=True))
    pairs = [(index, a, b) for index, (a, b) in together if a is not None and b is not None]
    places = [(index, _first_difference(a, b)) for index, a, b in pairs]
    differing = [(index, place) for index, place in places if place is not None]
    return Agreement(
        num_answers=len(pairs),
        num_equal_answers=len(pairs) - len(differing),
        num_tokens=sum(len(a) for _, a, _ in pairs),
        num_equal_tokens=sum(sum(x == y for x, y in zip(a, b, strict=False)) for _, a, b in pairs),
        first_difference=differing[0] if differing else None,
        median_first_difference=float(median(place for _, place in differing)) if differing else None,
        num_unanswered=len(expected) - len(pairs),
    )


def _first_difference(a: Sequence[int], b: Sequence[int]) -> int | None:
    for place, (x, y) in enumerate(zip(a, b, strict=False)):
        if x != y:
            return place
    return None if len(a) == len(b) else min(len(a), len(b))
