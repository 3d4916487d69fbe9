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


_Restarts = Sequence[Sequence[float]]
"""log(baseline time / candidate time) of each pair, one list a process restart."""


def ratio_interval(restarts: _Restarts, seed: int = 42) -> Interval:
    """The mean of the restarts' median log ratios with Student's t interval over restarts.

    A restart is a cluster: its pairs share a place in memory, clocks and caches, so that only its median counts as an
    observation, and with few restarts the factor is large (12.7 for two, 4.30 for three, 2.78 for five). The interval
    is never narrower than the pairs' own noise makes it. One restart alone has a bootstrap over its pairs, which
    knows nothing of what another restart would give.

    Errors: ValueError when there is no pair.
    """
    return blended_interval([(1.0, restarts)], seed)


def blended_interval(parts: Sequence[tuple[float, _Restarts]], seed: int = 42) -> Interval:
    """As ratio_interval, of the product of several ratios, each to the power of its weight.

    parts: (weight, restarts), all of the same restarts in the same order; one of weight 0 is not read, and a restart
    in which another has no pair is left out.
    Errors: ValueError when no restart has a pair of every part.
    """
    weights, groups = _together(parts)
    if not groups:
        raise ValueError("There is no pair of timings to compare.")
    num_pairs = sum(len(pairs) for group in groups for pairs in group)
    centre = mean(_centre(weights, group) for group in groups)
    if len(groups) == 1:
        low, high = _bootstrap(weights, groups[0], random.Random(seed))
        return Interval(math.exp(centre), math.exp(low), math.exp(high), num_pairs)
    between = _t_factor(len(groups) - 1) * stdev(_centre(weights, g) for g in groups) / math.sqrt(len(groups))
    within = _NORMAL * math.sqrt(sum(_variance(weights, group) for group in groups)) / len(groups)
    half = max(between, within)
    return Interval(math.exp(centre), math.exp(centre - half), math.exp(centre + half), num_pairs)


def blended_log_ratio(parts: Sequence[tuple[float, _Restarts]]) -> float | None:
    """The centre of blended_interval, a logarithm; None when no restart has a pair of every part."""
    weights, groups = _together(parts)
    return mean(_centre(weights, group) for group in groups) if groups else None


def _together(parts: Sequence[tuple[float, _Restarts]]) -> tuple[list[float], list[tuple[Sequence[float], ...]]]:
    used = [(weight, restarts) for weight, restarts in parts if weight]
    groups = zip(*(restarts for _, restarts in used), strict=False)
    return [weight for weight, _ in used], [group for group in groups if all(group)]


def _centre(weights: Sequence[float], group: Sequence[Sequence[float]]) -> float:
    return sum(weight * median(pairs) for weight, pairs in zip(weights, group, strict=True))


def _variance(weights: Sequence[float], group: Sequence[Sequence[float]]) -> float:
    return sum(weight**2 * _median_variance(pairs) for weight, pairs in zip(weights, group, strict=True))


def _bootstrap(
    weights: Sequence[float], group: Sequence[Sequence[float]], generator: random.Random
) -> tuple[float, float]:
    centres = sorted(
        _centre(weights, [generator.choices(pairs, k=len(pairs)) for pairs in group]) for _ in range(NUM_RESAMPLES)
    )
    tail = (1 - CONFIDENCE) / 2
    return centres[int(tail * NUM_RESAMPLES)], centres[math.ceil((1 - tail) * NUM_RESAMPLES) - 1]


def _median_variance(pairs: Sequence[float]) -> float:
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


def wilson_interval(num_successes: int, num_trials: int) -> tuple[float, float]:
    """The 95 % score interval of a share. Errors: ValueError when there is no trial, or are more successes.

    Source: Wilson 1927, https://doi.org/10.1080/01621459.1927.10502953
    """
    if not 0 <= num_successes <= num_trials or not num_trials:
        raise ValueError(f"{num_successes} successes of {num_trials} trials have no share.")
    share, squared = num_successes / num_trials, _NORMAL**2
    centre = share + squared / (2 * num_trials)
    half = _NORMAL * math.sqrt(share * (1 - share) / num_trials + squared / (4 * num_trials**2))
    scale = 1 + squared / num_trials
    low, high = (centre - half) / scale, (centre + half) / scale
    return max(0.0, min(low, share)), min(1.0, max(high, share))  # of none and of all, rounding alone parts them
