"""From samples to thresholds: g, within which an answer is the reference's own, and f, from which it is unusable."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fastkernels.calibration.cliff import Chance, Curve
from fastkernels.calibration.noise import NoiseSample, rounded
from fastkernels.errors import UnsupportedError
from fastkernels.scoring.items import Family

MARGIN = 2.0
"""`good` is so many times the largest discrepancy of a model from itself, and `bad` at least so many times `good`."""

NOTICED = 0.9
"""Share of its quality: with less left, a model was damaged for its users too."""

EXACT = "float32"
BY_FLOOR, BY_HALF, BY_GOOD = "the floor", "half of bad", "twice good in float32"


@dataclass(frozen=True)
class Good:
    """Of one dtype. largest: discrepancy of a model from itself. floor: the family's least difference. left_out: models
    whose own noise, times MARGIN, reaches what is unusable, with that noise: they tell no right answer from a wrong
    one. decided_by: model and variant, BY_FLOOR or BY_HALF."""

    value: float
    largest: float
    floor: float
    decided_by: str
    left_out: Mapping[str, float] = field(default_factory=dict)

    def accepted(self, curves: Sequence[Curve]) -> tuple[int, int]:
        """Of the damaged models that kept less than NOTICED of their quality: how many have every request within
        `value`, so that an eval run would take them for right; and their number."""
        points = [point for curve in curves for point in curve.points if point.retained < NOTICED]
        return sum(point.largest <= self.value for point in points), len(points)

    def to_json(self) -> dict[str, Any]:
        left_out = {model: rounded(noise) for model, noise in self.left_out.items()}
        figures = {"value": self.value, "largest": rounded(self.largest), "floor": rounded(self.floor)}
        return {**figures, "decided_by": self.decided_by, "left_out": left_out}


@dataclass(frozen=True)
class Bad:
    """decided_by: model and damage of the strictest knee, or BY_GOOD. random: D of answers at random, the mean over
    requests of the model where it is least."""

    value: float
    decided_by: str
    random: float

    def to_json(self) -> dict[str, Any]:
        return {**vars(self), "random": rounded(self.random)}


@dataclass(frozen=True)
class Thresholds:
    """good: by dtype."""

    good: Mapping[str, Good]
    bad: Bad


def find_thresholds(
    family: Family, samples: Sequence[NoiseSample], curves: Sequence[Curve], chances: Sequence[Chance]
) -> Thresholds:
    """`bad` is the strictest knee of the family; `good` is MARGIN times a model's own noise, and at least the floor.

    Between the two lies a factor MARGIN: in float32 `bad` gives way, in other dtypes `good` does.

    Errors: UnsupportedError when no damage of the family has a knee.
    """
    exact = [sample for sample in samples if sample.dtype == EXACT]
    bad = find_bad(family, curves, chances, MARGIN * _good_of(exact).value)
    dtypes = dict.fromkeys(sample.dtype for sample in samples)
    return Thresholds({d: find_good([s for s in samples if s.dtype == d], bad.value) for d in dtypes}, bad)


def find_bad(family: Family, curves: Sequence[Curve], chances: Sequence[Chance], least: float) -> Bad:
    """least: what it is not under. Errors: UnsupportedError without a knee, or when answers at random are as near."""
    knees = [(curve.knee.discrepancy, f"{curve.model}, {curve.damage}") for curve in curves if curve.knee is not None]
    if not knees:
        raise UnsupportedError(f"No damage of family {family} has a knee: its quality never collapses.")
    strictest, decided_by = min(knees)
    random = min(chance.mean for chance in chances)
    if max(strictest, least) >= random:
        raise UnsupportedError(
            f"Answers at random of family {family} lie at {random:.3g}, and unusable ones begin at "
            f"{max(strictest, least):.3g}: no threshold tells them from right ones."
        )
    if strictest < least:
        return Bad(rounded(least), BY_GOOD, random)
    return Bad(rounded(strictest), decided_by, random)


def find_good(samples: Sequence[NoiseSample], bad: float) -> Good:
    """Of the samples of one dtype."""
    by_model: dict[str, list[NoiseSample]] = {}
    for sample in samples:
        by_model.setdefault(sample.model, []).append(sample)
    noise = {model: max(sample.largest for sample in of_model) for model, of_model in by_model.items()}
    left_out = {model: value for model, value in noise.items() if MARGIN * value >= bad}
    kept = [sample for sample in samples if sample.model not in left_out]
    floor = max(sample.floor for sample in samples)
    if not kept:
        return Good(rounded(bad / MARGIN), max(noise.values()), floor, BY_HALF, left_out)
    found = _good_of(kept, floor)
    value, decided_by = (bad / MARGIN, BY_HALF) if MARGIN * found.value > bad else (found.value, found.decided_by)
    return Good(rounded(value), found.largest, floor, decided_by, left_out)


def _good_of(samples: Sequence[NoiseSample], floor: float | None = None) -> Good:
    worst = max(samples, key=lambda sample: sample.largest)
    floor = max(sample.floor for sample in samples) if floor is None else floor
    by_noise = MARGIN * worst.largest > floor
    decided_by = f"{worst.model}, {worst.variant}" if by_noise else BY_FLOOR
    return Good(rounded(max(MARGIN * worst.largest, floor)), worst.largest, floor, decided_by)
