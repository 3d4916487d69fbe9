"""Two sides' answers to one request, and the form that a candidate's must have before it is a number."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Answer = Mapping[str, np.ndarray]
"""A result's tensors by name. Language: token_ids [n], reference_token_ids [n] integers, logprobs [n],
reference_logprobs [n]. Speech: token_ids [n] and, where there is one, text, a string."""
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Compared:
    """values: D_f of each request (one of all together where requests are ranked against each other). figures: what
    else was measured over all of them, by name."""

    values: tuple[float, ...]
    figures: dict[str, float]


class AnswerError(ValueError):
    """A candidate's answer that is not of the reference's form. reason: WRONG_SHAPE, WRONG_DTYPE, NOT_FINITE or
    MISSING_ANSWER."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


def both(
    name: str, number: int, reference: Answer, candidate: Answer, is_list: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """`name` of both sides' answer to request `number`, of one axis at least; floats as float64.

    is_list: the first axis is as long as each side found things, so that only the others must agree.
    Errors: AnswerError when the candidate's has another form or a value that is not finite; ValueError when the
    reference's own is not there or not finite.
    """
    if name not in reference:
        raise ValueError(f"The reference's answer {number} has no {name!r}; it has {_names(reference)}.")
    if name not in candidate:
        raise AnswerError("MISSING_ANSWER", f"Answer {number} has no {name!r}; it has {_names(candidate)}.")
    expected, given = np.asarray(reference[name]), np.asarray(candidate[name])
    if expected.dtype != given.dtype and not expected.dtype.kind == given.dtype.kind == "U":
        raise AnswerError(
            "WRONG_DTYPE", f"{name} of answer {number} is {given.dtype}; the reference's is {expected.dtype}."
        )
    if expected.ndim != given.ndim or expected.shape[is_list:] != given.shape[is_list:]:
        shapes = f"{list(given.shape)}; the reference's is {list(expected.shape)}"
        raise AnswerError("WRONG_SHAPE", f"{name} of answer {number} is {shapes}.")
    expected, given = np.atleast_1d(expected), np.atleast_1d(given)
    if expected.dtype.kind != "f":
        return expected, given
    if not np.isfinite(expected).all():
        raise ValueError(f"{name} of the reference's answer {number} holds NaN or infinity: nothing can be compared.")
    if not np.isfinite(given).all():
        num_bad = int((~np.isfinite(given)).sum())
        raise AnswerError(
            "NOT_FINITE", f"{name} of answer {number} holds {num_bad} NaN or infinities; the reference's holds none."
        )
    return expected.astype(np.float64), given.astype(np.float64)


def mean(values: Sequence[float] | Floats) -> float:
    """0 of nothing: two answers without a row do not differ."""
    return float(np.mean(values)) if len(values) else 0.0


def _names(answer: Answer) -> str:
    return ", ".join(sorted(answer)) or "nothing"
