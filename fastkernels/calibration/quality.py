"""What a family's answers are worth, as its users measure it: the more the better.

Trained models are held against the truth (text and digits that they have not seen); of the others the undamaged model's
own answers are the truth.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from fastkernels.calibration.subject import Answers, Subject
from fastkernels.scoring.discrepancy import Answer, compare
from fastkernels.scoring.items import Family
from fastkernels.scoring.rankings import compare_rankings
from fastkernels.scoring.text import edit_rate
from fastkernels.training.corpus import held_out_texts
from fastkernels.training.digits import digits
from fastkernels.training.quality import digits_accuracy, held_out_perplexity
from fastkernels.workloads import byte_tokenizer

MOST_DB = 20 * math.log10(255 * math.sqrt(12))
"""The ratio of a picture to itself rounded to 8 bits, 58.9 dB: nearer pictures are shown alike."""

_NUM_TEXTS, _TEXT_BYTES = 12, 384
_TOP_SHARE = 4
"""One request in so many is at the top of a ranking by scores."""


@dataclass(frozen=True)
class Quality:
    """name: in words. measure: of a subject, damaged or not, and its answers; where answers alone decide, the subject's
    `own` are the truth. by_chance: of answers at random, when it does not follow from such answers."""

    name: str
    measure: Callable[[Subject, Answers], float]
    by_chance: Callable[[Subject], float] | None = None


@cache
def _texts() -> list[str]:
    return held_out_texts(_NUM_TEXTS, _TEXT_BYTES)


def likelihood(subject: Subject, answers: Answers) -> float:
    """1 over the perplexity of held-out text: the geometric mean of the tokens' probabilities."""
    try:
        found = 1 / held_out_perplexity(subject.engine.llm, _texts())
    except OverflowError:
        return 0.0
    return found if math.isfinite(found) else 0.0


def _even_likelihood(subject: Subject) -> float:
    return 1 / float(subject.engine.facts()["vocab_size"])


def words(subject: Subject, answers: Answers) -> float:
    """1 - word error rate of the transcripts' texts, at least 0."""
    texts = [[_text(answer) for answer in side] for side in (subject.own, answers)]
    rates = [edit_rate(first.split(), second.split()) for first, second in zip(*texts, strict=True)]
    return float(np.mean([max(0.0, 1 - rate) for rate in rates]))


def _text(answer: Answer) -> str:
    tokenizer = byte_tokenizer()
    known = tokenizer.get_vocab_size()
    return tokenizer.decode([token for token in answer["token_ids"].tolist() if token < known])


def accuracy(subject: Subject, answers: Answers) -> float:
    """Share of all held-out digits that the likeliest label names."""
    return digits_accuracy(subject.engine.pipeline)


def _even_accuracy(subject: Subject) -> float:
    return 1 / len(np.unique(digits()[1].labels))


def retrieval(subject: Subject, answers: Answers) -> float:
    """Mean reciprocal rank at which an item's embedding finds the item among all, by cosine."""
    name = subject.architecture.answers[0]
    sought, found = (np.stack([_direction(a[name]) for a in side]) for side in (subject.own, answers))
    cosines = found @ sought.T
    ranks = 1 + (cosines > np.diag(cosines)[:, None]).sum(axis=1)
    return float((1 / ranks).mean())


def _direction(rows: np.ndarray) -> NDArray[np.float64]:
    """The unit vector of an answer, of several rows that of their mean."""
    vector = rows.reshape(-1, rows.shape[-1]).mean(axis=0, dtype=np.float64)
    return vector / max(float(np.linalg.norm(vector)), 1e-300)


def f1(subject: Subject, answers: Answers) -> float:
    """Of boxes at an intersection over union of 0.5."""
    figures = compare(Family.DETECTION, (), subject.own, answers).figures
    total = figures["precision"] + figures["recall"]
    return 2 * figures["precision"] * figures["recall"] / total if total else 0.0


def overlap(subject: Subject, answers: Answers) -> float:
    """Share of the items at the top that stay there: of lists the listed ones, of scores a quarter of the requests."""
    name = subject.architecture.answers[0]
    if subject.own[0][name].dtype.kind in "iu":
        return compare_rankings((name,), subject.own, answers).figures[f"{name}_overlap"]
    scores = [np.array([answer[name].item() for answer in side]) for side in (subject.own, answers)]
    count = max(1, len(answers) // _TOP_SHARE)
    tops = [set(np.argsort(-side, kind="stable")[:count].tolist()) for side in scores]
    return len(tops[0] & tops[1]) / count


def decibels(subject: Subject, answers: Answers) -> float:
    """Peak signal-to-noise ratio over MOST_DB, the mean over pictures."""
    name = subject.architecture.answers[0]
    ratios = []
    for expected, given in zip(subject.own, answers, strict=True):
        first, second = (np.clip(side[name], 0, 1).astype(np.float64) for side in (expected, given))
        error = float(((first - second) ** 2).mean())
        ratios.append(MOST_DB if error == 0 else min(MOST_DB, -10 * math.log10(error)))
    return float(np.mean(ratios)) / MOST_DB


def accordance(subject: Subject, answers: Answers) -> float:
    """1 - relative error of a trajectory, at least 0."""
    name = subject.architecture.answers[0]
    found = []
    for expected, given in zip(subject.own, answers, strict=True):
        first, second = (side[name].astype(np.float64).ravel() for side in (expected, given))
        length = max(float(np.linalg.norm(first)), 1e-300)
        found.append(max(0.0, 1 - float(np.linalg.norm(first - second)) / length))
    return float(np.mean(found))


QUALITIES: Mapping[Family, Quality] = {
    Family.LANGUAGE: Quality("1 / perplexity of held-out text", likelihood, _even_likelihood),
    Family.SPEECH: Quality("1 - word error rate", words),
    Family.EMBEDDING: Quality("mean reciprocal rank of the same item", retrieval),
    Family.CLASSIFICATION: Quality("accuracy on held-out digits", accuracy, _even_accuracy),
    Family.DETECTION: Quality("F1 at IoU 0.5", f1),
    Family.RANKING: Quality("share of the top that stays", overlap),
    Family.IMAGE: Quality("PSNR over 58.9 dB", decibels),
    Family.TRAJECTORY: Quality("1 - relative error", accordance),
    Family.RENDERING: Quality("PSNR over 58.9 dB", decibels),
}
