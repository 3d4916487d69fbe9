"""Intervals of aggregates: the published bootstrap draw for draw, and what the hierarchical one adds."""

from __future__ import annotations

import math
import random
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastkernels.scoring.intervals import (
    BOOTSTRAP,
    HIERARCHICAL,
    OF_TWO,
    RANGE,
    Bounds,
    hierarchical_bounds,
    macro_intervals,
    restart_pool,
    target_bounds,
)
from fastkernels.scoring.items import Item, Outcome, Thresholds
from fastkernels.scoring.macroeval import item_interval, item_speedup, macroeval

RATIOS = st.lists(st.floats(0.1, 10.0), min_size=2, max_size=12)
FEW = settings(max_examples=25, deadline=None)
"""A bootstrap of 10,000 resamples each."""

SPEEDUPS = [0.6, 0.8, 0.9, 1.0, 1.1, 1.3, 2.0]


def item(ratios: list[float], noise: float = 0.0, family: str = "language", seed: int = 0, num_pairs: int = 15) -> Item:
    """A restart for each ratio."""
    generator = random.Random(seed)
    restarts = tuple(tuple(math.log(r) + generator.gauss(0, noise) for _ in range(num_pairs)) for r in ratios)
    return Item("item", family, Outcome.MEASURED, Thresholds(0.0, 1.0), (0.0,), restarts, restarts)


def hierarchical(items: list[Item]) -> Bounds | None:
    own = [item_interval(i) for i in items]
    return hierarchical_bounds([restart_pool(i) for i in items], [(o.low, o.high) for o in own if o is not None])


def test_targets_are_drawn_as_published() -> None:
    """10,000 resamples by random.Random(42), the geometric mean of each, the 2.5th and 97.5th percentile."""
    generator = random.Random(42)
    draws = [generator.choices(SPEEDUPS, k=len(SPEEDUPS)) for _ in range(10_000)]
    means = sorted(math.exp(sum(map(math.log, draw)) / len(draw)) for draw in draws)
    found = target_bounds(SPEEDUPS)
    assert found is not None
    assert (found.low, found.high) == pytest.approx((means[250], means[9750]), rel=1e-3)
    assert (found.kind, found.num_items) == (BOOTSTRAP, 7)


def test_of_two_targets_there_is_the_range_and_of_one_nothing() -> None:
    two = target_bounds([1.044, 0.379])
    assert two is not None
    assert (two.low, two.high, two.kind) == (pytest.approx(0.379), pytest.approx(1.044), RANGE)
    assert target_bounds([1.2]) is None
    assert target_bounds([]) is None


def test_two_items_far_apart_have_their_range_whatever_the_noise_of_each() -> None:
    items = [item([ratio] * 3, noise=0.1) for ratio in (0.5, 2.0)]
    few = hierarchical(items)
    assert few is not None
    assert (few.low, few.high) == (pytest.approx(item_speedup(items[0])), pytest.approx(item_speedup(items[1])))
    assert (few.kind, few.num_items) == (OF_TWO, 2)
    assert hierarchical(items[:1]) is None
    assert hierarchical([]) is None


def test_two_uncertain_items_that_agree_are_not_certain() -> None:
    """Two alike, each [x / y, x * y], give y to the power of 1 / root of 2; not the range, which is nothing."""
    uncertain = item([0.6, 1.0, 1.7])
    own, found = item_interval(uncertain), hierarchical([uncertain, uncertain])
    assert own is not None
    assert found is not None
    assert math.log(found.high / found.low) == pytest.approx(math.log(own.high / own.low) / math.sqrt(2))
    assert math.sqrt(found.low * found.high) == pytest.approx(own.ratio)
    certain = item([1.02] * 3)
    beside = hierarchical([uncertain, certain])
    assert beside is not None
    assert math.log(beside.high / beside.low) == pytest.approx(math.log(own.high / own.low) / 2)


def test_a_family_weighs_as_one_in_each_resample() -> None:
    """Nine items at 0.5 and one at 4: the families average the root of 2, and 0.5 where the other is not drawn."""
    speedups, families = [0.5] * 9 + [4.0], ["a"] * 9 + ["b"]
    alone, together = target_bounds(speedups), target_bounds(speedups, families)
    assert alone is not None
    assert together is not None
    assert alone.high < 1.2
    assert (together.low, together.high) == (pytest.approx(0.5), pytest.approx(math.sqrt(2)))


def test_hierarchical_interval_of_items_without_noise_is_the_published_one() -> None:
    published = target_bounds(SPEEDUPS)
    found = hierarchical([item([ratio] * 3) for ratio in SPEEDUPS])
    assert published is not None
    assert found is not None
    assert (found.low, found.high) == pytest.approx((published.low, published.high), rel=0.02)
    assert found.kind == HIERARCHICAL


def test_hierarchical_interval_knows_of_restarts_and_pairs() -> None:
    """Five items with one and the same ratio: to the published interval they are certain."""
    of_items = [item([1.0] * 3) for _ in range(5)]
    of_pairs = [item([1.0] * 3, noise=0.2, seed=seed) for seed in range(5)]
    of_restarts = [item([0.8, 1.0, 1.25]) for _ in range(5)]
    widths = []
    for items in (of_items, of_pairs, of_restarts):
        bounds = hierarchical(items)
        assert bounds is not None
        widths.append(math.log(bounds.high / bounds.low))
    assert widths[0] == 0
    assert 0.02 < widths[1] < widths[2] < 0.5


def test_hierarchical_interval_covers_the_truth_of_items_restarts_and_pairs() -> None:
    """Thirty sets of twelve items about 1.2, with restart effects and pairs' noise."""
    covered = 0
    for seed in range(30):
        generator = random.Random(seed)
        centres = [math.log(1.2) + generator.gauss(0, 0.2) for _ in range(12)]
        items = [
            item([math.exp(c + generator.gauss(0, 0.05)) for _ in range(3)], 0.05, seed=100 * seed + n, num_pairs=7)
            for n, c in enumerate(centres)
        ]
        bounds = hierarchical(items)
        assert bounds is not None
        covered += bounds.low <= 1.2 <= bounds.high
    assert covered >= 25


def test_intervals_of_families_and_of_all_hold_their_scores() -> None:
    items = [
        item([ratio, ratio * 1.02, ratio * 0.98], 0.01, family, seed)
        for seed, (ratio, family) in enumerate([(r, "language") for r in SPEEDUPS] + [(1.4, "image"), (1.5, "image")])
    ]
    invalid = Item("lost", "ranking", Outcome.INVALID, Thresholds(0.0, 1.0))
    macro, families = macro_intervals([*items, invalid])
    score = macroeval([*items, invalid])
    for bounds in (macro.targets, macro.hierarchical):
        assert bounds is not None
        assert bounds.low < score.speedup < bounds.high
        assert bounds.num_items == 9
    assert families["language"].targets.kind == BOOTSTRAP
    assert (families["image"].targets.kind, families["image"].hierarchical.kind) == (RANGE, OF_TWO)
    assert (families["ranking"].targets, families["ranking"].hierarchical) == (None, None)
    assert macro_intervals([*items, invalid]) == (macro, families)  # the same again


def test_pool_begins_with_what_each_restart_measured() -> None:
    pool = restart_pool(item([1.0, 1.1, 1.3], noise=0.05))
    assert pool.shape == (3, 1001)
    assert math.exp(np.mean(pool[:, 0])) == pytest.approx(item_speedup(item([1.0, 1.1, 1.3], noise=0.05)))


def test_what_has_no_interval_is_refused() -> None:
    with pytest.raises(ValueError, match="Speedups are over 0, got -1"):
        target_bounds([1.0, -1.0, 2.0])
    with pytest.raises(ValueError, match="'item' has no pair"):
        restart_pool(Item("item", "language", Outcome.MEASURED, Thresholds(0.0, 1.0)))


@FEW
@given(RATIOS, st.floats(0.01, 100.0))
def test_bounds_hold_the_mean_lie_between_the_extremes_and_scale_with_what_is_bounded(
    speedups: list[float], factor: float
) -> None:
    found, scaled = target_bounds(speedups), target_bounds([factor * s for s in speedups])
    assert found is not None
    assert scaled is not None
    assert min(speedups) * (1 - 1e-9) <= found.low <= found.high <= max(speedups) * (1 + 1e-9)
    mean = math.exp(sum(map(math.log, speedups)) / len(speedups))
    assert found.low * (1 - 1e-9) <= mean <= found.high * (1 + 1e-9)
    assert (scaled.low, scaled.high) == (pytest.approx(factor * found.low), pytest.approx(factor * found.high))


@FEW
@given(RATIOS)
def test_bounds_of_the_inverse_ratios_are_the_inverse_bounds(speedups: list[float]) -> None:
    """Which side is called the reference decides nothing."""
    found, inverse = target_bounds(speedups), target_bounds([1 / s for s in speedups])
    assert found is not None
    assert inverse is not None
    assert (1 / inverse.high, 1 / inverse.low) == (pytest.approx(found.low), pytest.approx(found.high))


@FEW
@given(RATIOS, st.floats(0.2, 0.99), st.floats(0.2, 0.99))
def test_a_higher_level_has_no_narrower_bounds(speedups: list[float], first: float, second: float) -> None:
    found = []
    for level in sorted((first, second)):
        with mock.patch("fastkernels.scoring.intervals.CONFIDENCE", level):
            found.append(target_bounds([*speedups, 1.0]))
    narrow, wide = found
    assert narrow is not None
    assert wide is not None
    assert wide.low <= narrow.low <= narrow.high <= wide.high


@FEW
@given(st.lists(st.floats(0.5, 2.0), min_size=2, max_size=5), st.floats(0.5, 2.0), st.integers(0, 100))
def test_the_hierarchical_bounds_hold_the_mean_and_scale_too(ratios: list[float], factor: float, seed: int) -> None:
    given_items, scaled_items = (
        [item([scale * r, scale * r * 1.02, scale * r * 0.98], 0.01, seed=seed + n) for n, r in enumerate(ratios)]
        for scale in (1.0, factor)
    )
    found, scaled = hierarchical(given_items), hierarchical(scaled_items)
    assert found is not None
    assert scaled is not None
    logs = [math.log(speedup) for i in given_items if (speedup := item_speedup(i)) is not None]
    assert found.low <= math.exp(sum(logs) / len(logs)) * (1 + 1e-9)
    assert math.exp(sum(logs) / len(logs)) <= found.high * (1 + 1e-9)
    assert (scaled.low, scaled.high) == (pytest.approx(factor * found.low), pytest.approx(factor * found.high))
