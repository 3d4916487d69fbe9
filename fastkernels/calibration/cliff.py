"""Where a family's answers become unusable: models damaged by degrees, and the knee of what their quality keeps."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from fastkernels.calibration.bounds import random_answers
from fastkernels.calibration.curve import Knee, find_knee
from fastkernels.calibration.damage import damaged
from fastkernels.calibration.noise import rounded, threads
from fastkernels.calibration.plan import DamagedModel, Trouble
from fastkernels.calibration.quality import QUALITIES
from fastkernels.calibration.subject import Subject
from fastkernels.scoring.discrepancy import AnswerError

DTYPE = "float32"
"""Damage is of weights, not of arithmetic."""


@dataclass(frozen=True)
class Point:
    """severity: of a damage. discrepancy, least, largest: D over requests, the first its mean. retained: the share of
    the quality that is left, 1 of the undamaged model and 0 of answers at random."""

    severity: float
    discrepancy: float
    least: float
    largest: float
    quality: float
    retained: float


@dataclass(frozen=True)
class Curve:
    """knee: None where the quality does not collapse or falls in a straight line. quality, chance: of the undamaged
    model and of answers at random. num_failed: severities at which the answers were not finite, which are no points."""

    model: str
    damage: str
    measure: str
    quality: float
    chance: float
    points: tuple[Point, ...]
    num_failed: int
    knee: Knee | None

    def to_json(self) -> dict[str, Any]:
        knee = self.knee and {name: rounded(value) for name, value in vars(self.knee).items()}
        points = [{name: rounded(value) for name, value in vars(point).items()} for point in self.points]
        return {
            "model": self.model,
            "damage": self.damage,
            "measure": self.measure,
            "quality": rounded(self.quality),
            "chance": rounded(self.chance),
            "num_failed": self.num_failed,
            "knee": knee,
            "points": points,
        }


@dataclass(frozen=True)
class Chance:
    """Answers of one model at random: the least and the mean D over requests."""

    model: str
    least: float
    mean: float

    def to_json(self) -> dict[str, Any]:
        return {"model": self.model, "least": rounded(self.least), "mean": rounded(self.mean)}


def measure_cliff(damaged_model: DamagedModel, seed: int, report: Callable[[str], None]) -> tuple[list[Curve], Chance]:
    """A curve for each damage. Errors: those of the model."""
    with threads(1):
        subject = Subject(damaged_model.name, DTYPE, damaged_model.num_requests, seed)
        quality = QUALITIES[subject.family]
        drawn = random_answers(subject.family, subject.own, num_choices(subject), seed)
        values = subject.compare(drawn).values
        chance = Chance(subject.name, min(values), sum(values) / len(values))
        best = quality.measure(subject, subject.own)
        even = quality.by_chance(subject) if quality.by_chance else quality.measure(subject, drawn)
        curves = []
        for trouble in damaged_model.troubles:
            report(f"{subject.name}, {trouble.damage.name}")
            found = list(_points(subject, trouble, seed, best, even))
            points = tuple(point for point in found if point is not None)
            knee = find_knee([p.discrepancy for p in points], [p.retained for p in points])
            num_failed = len(found) - len(points)
            curves.append(Curve(subject.name, trouble.damage.name, quality.name, best, even, points, num_failed, knee))
        return curves, chance


def _points(subject: Subject, trouble: Trouble, seed: int, best: float, even: float) -> Iterator[Point | None]:
    """One for each severity; None where an answer is not finite."""
    measure = QUALITIES[subject.family].measure
    for severity in trouble.severities:
        try:
            with damaged(subject.model, trouble.damage, severity, seed):
                answers = subject.answers()
                quality = measure(subject, answers)
            values = subject.compare(answers).values
        except AnswerError:
            yield None
            continue
        mean = sum(values) / len(values)
        yield Point(severity, mean, min(values), max(values), quality, (quality - even) / (best - even))


def num_choices(subject: Subject) -> int:
    """Tokens of the vocabulary, or as many labels or items as its answers name."""
    if subject.makes_tokens:
        return int(subject.engine.facts()["vocab_size"])
    arrays = [array for answer in subject.own for array in answer.values()]
    return 1 + max((int(array.max()) for array in arrays if array.dtype.kind in "iu" and array.size), default=0)
