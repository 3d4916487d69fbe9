"""Statistics of paired timings: ratio, interval over restarts, noise floor, verdict. Pure functions."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean, median, stdev

NUM_RESAMPLES = 2000
CONFIDENCE = 0.95

_NORMAL = 1.960
_T_FACTORS = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)
"""The 97.5 % quantiles of Student's t for 1, 2, ... degrees of freedom."""


@dataclass(frozen=True)
class Interval:
    """A ratio baseline / candidate (over 1: the candidate is faster) with its 95 % interval."""

    ratio: float
    low: float
    high: float
    num_pairs: int


def ratio_interval(restarts: Sequence[Sequence[float]], seed: int = 42) -> Interval:
    """The mean of the restarts' median log ratios with Student's t interval over restarts.

    A restart is a cluster: its pairs share a place in memory, clocks and caches, so that only its median counts as an
    observation, and with few restarts the factor is large (12.7 for two, 4.30 for three, 2.78 for five). The interval
    is never narrower than the pairs' own noise makes it. One restart alone has a bootstrap over its pairs, which
    knows nothing of what another restart would give.

    restarts: log(baseline time / candidate time) of each pair, one list a process restart.
    Errors: ValueError when there is no pair.
    """
    groups = [list(group) for group in restarts if group]
    if not groups:
        raise ValueError("There is no pair of timings to compare.")
    num_pairs = sum(map(len, groups))
    if len(groups) == 1:
        low, high = _bootstrap(groups[0], random.Random(seed))
        return Interval(math.exp(median(groups[0])), math.exp(low), math.exp(high), num_pairs)
    medians = [median(group) for group in groups]
    centre = mean(medians)
    between = _t_factor(len(medians) - 1) * stdev(medians) / math.sqrt(len(medians))
    within = _NORMAL * math.sqrt(sum(_median_variance(group) for group in groups)) / len(groups)
    half = max(between, within)
    return Interval(math.exp(centre), math.exp(centre - half), math.exp(centre + half), num_pairs)


def _bootstrap(pairs: list[float], generator: random.Random) -> tuple[float, float]:
    medians = sorted(median(generator.choices(pairs, k=len(pairs))) for _ in range(NUM_RESAMPLES))
    tail = (1 - CONFIDENCE) / 2
    return medians[int(tail * NUM_RESAMPLES)], medians[math.ceil((1 - tail) * NUM_RESAMPLES) - 1]


def _median_variance(pairs: list[float]) -> float:
    """Of a median of normal noise, whose spread is taken from the median absolute deviation: outliers do not count."""
    centre = median(pairs)
    spread = 1.4826 * median(abs(value - centre) for value in pairs)
    return math.pi / 2 * spread**2 / len(pairs)


def _t_factor(degrees: int) -> float:
    return _T_FACTORS[degrees - 1] if degrees <= len(_T_FACTORS) else _NORMAL * (1 + (_NORMAL**2 + 1) / (4 * degrees))


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
