"""95 % intervals of geometric means over items: the published bootstrap, and one that also knows of restarts and pairs.

Resampling takes three items at least. Of two the published interval is the range between them, which nothing within an
item widens; the other is as wide as what the items' own intervals leave open. Of one there is none.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

import numpy as np
from numpy.typing import NDArray

from fastkernels.scoring.items import Item
from fastkernels.scoring.macroeval import DEFAULT_BLEND, is_valid, item_interval, log_speedup, parts
from fastkernels.scoring.statistics import CONFIDENCE

NUM_REPLICATES = 10_000
SEED = 42
BOOTSTRAP, HIERARCHICAL, RANGE = "bootstrap", "hierarchical bootstrap", "empirical range"
OF_TWO = "range of two, or their own intervals"

_NUM_MEDIANS = 1000
"""Resamples of a restart's pairs that the hierarchical bootstrap draws from."""

Floats = NDArray[np.float64]
Pool = Floats
"""[restarts, resamples]: the logarithm of what each restart measured, then of what it could have measured."""
Ends = tuple[float, float]
"""The two ends of one item's own 95 % interval, as ratios."""


@dataclass(frozen=True)
class Bounds:
    """kind: BOOTSTRAP, HIERARCHICAL, RANGE or OF_TWO."""

    low: float
    high: float
    kind: str
    num_items: int


def target_bounds(speedups: Sequence[float], families: Sequence[str] | None = None) -> Bounds | None:
    """The published interval: percentiles of 10,000 resamples of the speedups with replacement (Mersenne Twister, seed
    42), each aggregated anew; it knows nothing of the noise within a speedup.

    families: of each speedup; geometric means of families are averaged then, and a family of which nothing is drawn
    leaves a resample, as it leaves S_macro.
    Errors: ValueError when a speedup is not positive.
    """
    if any(not speedup > 0 for speedup in speedups):
        raise ValueError(f"Speedups are over 0, got {min(speedups)}.")
    logs = np.log(np.asarray(speedups, dtype=np.float64))
    if len(logs) < 2:
        return None
    if len(logs) == 2:
        return Bounds(float(np.exp(logs.min())), float(np.exp(logs.max())), RANGE, 2)
    drawn = _drawn_targets(len(logs))
    return _bounds(_aggregated(logs[drawn], drawn, families), BOOTSTRAP, len(logs))


def hierarchical_bounds(
    pools: Sequence[Pool], own: Sequence[Ends], families: Sequence[str] | None = None
) -> Bounds | None:
    """As target_bounds, but of each item that is drawn, restarts are drawn with replacement, and of each restart one of
    its resamples. pools: of each item (restart_pool). own: of each item; read where there are two."""
    if len(pools) < 2:
        return None
    if len(pools) == 2:
        return _of_two([float(pool[:, 0].mean()) for pool in pools], own)
    generator = np.random.Generator(np.random.MT19937(SEED))
    drawn = generator.integers(len(pools), size=(NUM_REPLICATES, len(pools)))
    values = np.empty(drawn.shape)
    for number, pool in enumerate(pools):
        places = drawn == number
        shape = (int(places.sum()), len(pool))
        restarts, resamples = generator.integers(len(pool), size=shape), generator.integers(pool.shape[1], size=shape)
        values[places] = pool[restarts, resamples].mean(axis=1)
    return _bounds(_aggregated(values, drawn, families), HIERARCHICAL, len(pools))


def restart_pool(item: Item, blend: float = DEFAULT_BLEND) -> Pool:
    """Of each restart, the median of its pairs and medians of their resamples, blended.

    Errors: ValueError when the item has no pair.
    """
    generator = np.random.Generator(np.random.MT19937(SEED))
    weighted = parts(item, blend)
    rows = [
        sum(weight * _medians(pairs, generator) for (weight, _), pairs in zip(weighted, group, strict=True))
        for group in zip(*(restarts for _, restarts in weighted), strict=False)
        if all(group)
    ]
    if not rows:
        raise ValueError(f"Item {item.name!r} has no pair of timings.")
    return np.array(rows)


@dataclass(frozen=True)
class Intervals:
    """Of one aggregate: over targets, as published, and hierarchical. None of one item or none."""

    targets: Bounds | None
    hierarchical: Bounds | None


def macro_intervals(items: Sequence[Item], blend: float = DEFAULT_BLEND) -> tuple[Intervals, dict[str, Intervals]]:
    """Of S_macro, and of S_f of every family, from the items that are valid and timed."""
    timed = [(item, log) for item in items if is_valid(item) and (log := log_speedup(item, blend)) is not None]
    pools = [restart_pool(item, blend) for item, _ in timed]
    own = [(found.low, found.high) for item, _ in timed if (found := item_interval(item, blend)) is not None]
    speedups = [math.exp(log) for _, log in timed]
    families = [str(item.family) for item, _ in timed]
    of_family = {}
    for name in sorted({str(item.family) for item in items}):
        places = [place for place, family in enumerate(families) if family == name]
        of_family[name] = Intervals(
            target_bounds([speedups[place] for place in places]),
            hierarchical_bounds([pools[place] for place in places], [own[place] for place in places]),
        )
    return Intervals(target_bounds(speedups, families), hierarchical_bounds(pools, own, families)), of_family


def _of_two(centres: Sequence[float], own: Sequence[Ends]) -> Bounds:
    """The range of two items, and at least what their own intervals, independent ones, say of their geometric mean: two
    uncertain items that happen to agree are not certain (MOVER: https://doi.org/10.1002/sim.3095)."""
    middle = fmean(centres)
    down = math.hypot(*(centre - math.log(low) for centre, (low, _) in zip(centres, own, strict=True))) / 2
    up = math.hypot(*(math.log(high) - centre for centre, (_, high) in zip(centres, own, strict=True))) / 2
    low, high = min(*centres, middle - down), max(*centres, middle + up)
    return Bounds(math.exp(low), math.exp(high), OF_TWO, 2)


def _drawn_targets(num: int) -> NDArray[np.int64]:
    """[replicates, num] places, by Python's own generator, which is a Mersenne Twister."""
    places = random.Random(SEED).choices(range(num), k=NUM_REPLICATES * num)
    return np.array(places, dtype=np.int64).reshape(NUM_REPLICATES, num)


def _aggregated(logs: Floats, drawn: NDArray[np.int64], families: Sequence[str] | None) -> Floats:
    """[replicates]: the mean over families present of the means of their items; logs [replicates, num]."""
    if families is None or len(set(families)) == 1:
        return logs.mean(axis=1)
    names = sorted(set(families))
    numbers = np.array([names.index(family) for family in families])[drawn]
    sums, num_present = np.zeros(len(logs)), np.zeros(len(logs))
    for number in range(len(names)):
        is_here = numbers == number
        counts = is_here.sum(axis=1)
        sums += np.where(is_here, logs, 0.0).sum(axis=1) / np.maximum(counts, 1)
        num_present += counts > 0
    return sums / num_present


def _bounds(replicates: Floats, kind: str, num_items: int) -> Bounds:
    tail = (1 - CONFIDENCE) / 2
    low, high = np.exp(np.quantile(replicates, (tail, 1 - tail)))
    return Bounds(float(low), float(high), kind, num_items)


def _medians(pairs: Sequence[float], generator: np.random.Generator) -> Floats:
    values = np.asarray(pairs, dtype=np.float64)
    resamples = generator.integers(len(values), size=(_NUM_MEDIANS, len(values)))
    return np.append(np.median(values), np.median(values[resamples], axis=1))
