"""Discrepancies of what is written: a language model's tokens, a transcript."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence

import numpy as np

from fastkernels.scoring.answers import Answer, AnswerError, Compared, both, mean

_LANGUAGE = ("token_ids", "reference_token_ids", "logprobs", "reference_logprobs")


def compare_languages(names: Sequence[str], reference: Sequence[Answer], candidate: Sequence[Answer]) -> Compared:
    """D: the share of places where the candidate's own greedy token is not what the reference would say after the
    same tokens.

    Teacher forcing with the roles exchanged: no candidate ever holds an expected token. All four arrays are in the
    candidate's answers; the reference's own are only counted.
    Figures: regret (nats a token that the reference gives away by saying the candidate's token), perplexity (of the
    candidate's tokens under the reference).
    """
    values, regrets, logprobs = [], [], []
    for number, answer in enumerate(candidate):
        ids, expected, logprob, best = _judged(number, answer)
        values.append(float(np.mean(ids != expected)))
        regrets.append(best - logprob)
        logprobs.append(logprob)
    figures = {
        "regret": mean(np.concatenate(regrets)),
        "perplexity": math.exp(min(-mean(np.concatenate(logprobs)), 700.0)),
    }
    return Compared(tuple(values), figures)


def _judged(number: int, answer: Answer) -> tuple[np.ndarray, ...]:
    missing = [name for name in _LANGUAGE if name not in answer]
    if missing or not np.size(answer["token_ids"]):
        what = f"has no {', '.join(missing)}" if missing else "has no token; at least one is asked for"
        raise AnswerError("MISSING_ANSWER", f"Answer {number} {what}.")
    arrays = tuple(np.asarray(answer[name]) for name in _LANGUAGE)
    for name, array, kind in zip(_LANGUAGE, arrays, ("iu", "iu", "f", "f"), strict=True):
        if array.shape != arrays[0].shape or array.ndim != 1:
            shapes = f"{list(array.shape)}; token_ids is {list(arrays[0].shape)}, of one axis"
            raise AnswerError("WRONG_SHAPE", f"{name} of answer {number} is {shapes}.")
        if array.dtype.kind not in kind:
            wanted = "integers" if kind == "iu" else "floats"
            raise AnswerError("WRONG_DTYPE", f"{name} of answer {number} is {array.dtype}; these are {wanted}.")
        if kind == "f" and not np.isfinite(array).all():
            raise AnswerError("NOT_FINITE", f"{name} of answer {number} holds NaN or infinity; these are finite.")
    return arrays


def compare_transcripts(names: Sequence[str], reference: Sequence[Answer], candidate: Sequence[Answer]) -> Compared:
    """D: word error rate where both sides have a text, else edits a token of the reference's.

    Words are what stands between spaces, as it is written: both sides come of one model. A rate can be over 1.
    Figures: token_edit_rate and, with texts, cer (edits a character); means over requests.
    """
    values, token_rates, character_rates = [], [], []
    for number, (expected, given) in enumerate(zip(reference, candidate, strict=True)):
        tokens = [array.tolist() for array in both("token_ids", number, expected, given, is_list=True)]
        token_rates.append(edit_rate(*tokens))
        if "text" not in expected:
            values.append(token_rates[-1])
            continue
        texts = [str(text[0]) for text in both("text", number, expected, given)]
        character_rates.append(edit_rate(*texts))
        values.append(edit_rate(*(text.split() for text in texts)))
    figures = {"token_edit_rate": mean(token_rates)}
    if character_rates:
        figures["cer"] = mean(character_rates)
    return Compared(tuple(values), figures)


def edit_rate(reference: Sequence[Hashable], candidate: Sequence[Hashable]) -> float:
    """Insertions, deletions and substitutions an element of the reference; of an empty one, their number."""
    return edit_distance(reference, candidate) / max(1, len(reference))


def edit_distance(reference: Sequence[Hashable], candidate: Sequence[Hashable]) -> int:
    """Levenshtein's, a row of the table at once: an insertion's cost runs along the row as a running minimum."""
    numbers: dict[Hashable, int] = {}
    first, second = (
        np.array([numbers.setdefault(x, len(numbers)) for x in side], dtype=np.int64) for side in (reference, candidate)
    )
    places = np.arange(len(second) + 1)
    row = places.copy()
    for element in first:
        reached = np.append(row[0] + 1, np.minimum(row[1:] + 1, row[:-1] + (second != element)))
        row = np.minimum.accumulate(reached - places) + places
    return int(row[-1])
