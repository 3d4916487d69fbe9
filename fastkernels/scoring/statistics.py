"""Statistics of paired timings: median ratio, hierarchical bootstrap, noise floor, verdict. Pure functions."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

NUM_RESAMPLES = 2000
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Interval:
    """A ratio baseline / candidate (over 1: the candidate is faster) with its bootstrap interval."""

    ratio: float
    low: float
    high: float
    num_pairs: int


def ratio_interval(restarts: Sequence[Sequence[float]], seed: int = 42) -> Interval:
    """Median of the pairs' log ratios, resampled over restarts and, within each, over pairs.

    restarts: log(baseline time / candidate time) of each pair, one list a process restart.
    Errors: ValueError when there is no pair.
    """
    groups = [list(group) for group in restarts if group]
    if not groups:
        raise ValueError("There is no pair of timings to compare.")
    everything = [value for group in groups for value in group]
    generator = random.Random(seed)
    medians = sorted(_resampled_median(groups, generator) for _ in range(NUM_RESAMPLES))
    tail = (1 - CONFIDENCE) / 2
    low = medians[int(tail * NUM_RESAMPLES)]
    high = medians[min(NUM_RESAMPLES - 1, math.ceil((1 - tail) * NUM_RESAMPLES) - 1)]
    return Interval(math.exp(median(everything)), math.exp(low), math.exp(high), len(everything))


def _resampled_median(groups: list[list[float]], generator: random.Random) -> float:
    values: list[float] = []
    for _ in groups:
        group = generator.choice(groups)
        values.extend(generator.choices(group, k=len(group)))
    return median(values)


def noise_floor(identical: Interval, smallest: float) -> float:
    """How far a ratio of one implementation with itself strays from 1, at least `smallest`."""
    return max(smallest, abs(identical.low - 1), abs(identical.high - 1))


def speed_verdict(interval: Interval, floor: float) -> str:
    """ "WIN" or "LOSS" when the whole interval lies beyond the noise floor, else "TIE"."""
    if interval.low > 1 + floor:
        return "WIN"
    if interval.high < 1 / (1 + floor):
        return "LOSS"
    return "TIE"


def percentile(values: Sequence[float], share: float) -> float:
    """Linear interpolation between closest ranks. Errors: ValueError when empty."""
    if not values:
        raise ValueError("No values.")
    ordered = sorted(values)
    place = share * (len(ordered) - 1)
    below = math.floor(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (place - below)


def geometric_mean(values: Sequence[float]) -> float:
    """Errors: ValueError when empty or not positive."""
    if not values or min(values) <= 0:
        raise ValueError("A geometric mean needs positive values.")
    return math.exp(sum(math.log(v) for v in values) / len(values))
