"""Intervals hold the true ratio as often as they say; verdicts follow from them."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastkernels.scoring.statistics import (
    Interval,
    _t_factor,
    geometric_mean,
    noise_floor,
    percentile,
    ratio_interval,
    speed_verdict,
)


def draw_pairs(
    ratio: float, noise: float, seed: int, num_restarts: int = 3, num_pairs: int = 40, restart_noise: float = 0.0
) -> list[list[float]]:
    """log ratios about log(ratio): heavy-tailed noise of a pair, and of a whole restart."""
    generator = random.Random(seed)
    restarts = []
    for _ in range(num_restarts):
        centre = math.log(ratio) + generator.gauss(0, restart_noise)
        tail = [5.0 if generator.random() < 0.05 else 1.0 for _ in range(num_pairs)]
        restarts.append([centre + generator.gauss(0, noise) * t for t in tail])
    return restarts


@pytest.mark.parametrize("num_restarts", [2, 3, 5])
@pytest.mark.parametrize("restart_noise", [0.0, 0.01, 0.02, 0.03])
def test_interval_covers_the_true_ratio_at_its_rate(restart_noise: float, num_restarts: int) -> None:
    """Restart effects of 1 to 3 % included: with three restarts a bootstrap over them covered 72 to 83 %."""
    draws = (
        draw_pairs(1.07, 0.02, seed, num_restarts, num_pairs=12, restart_noise=restart_noise) for seed in range(1000)
    )
    covered = sum(interval.low <= 1.07 <= interval.high for interval in map(ratio_interval, draws))
    assert 930 <= covered <= 1000


@pytest.mark.parametrize(("num_restarts", "factor"), [(2, 12.706), (3, 4.303), (5, 2.776), (9, 2.306)])
def test_interval_is_as_wide_as_students_t_over_restarts(num_restarts: int, factor: float) -> None:
    """Over many draws: t * s / sqrt(n), with the mean of s that n normal values have."""
    widths = []
    for seed in range(400):
        interval = ratio_interval(draw_pairs(1.0, 0.001, seed, num_restarts, num_pairs=5, restart_noise=0.02))
        widths.append(math.log(interval.high / interval.low) / 2)
    n = num_restarts
    mean_deviation = 0.02 * math.sqrt(2 / (n - 1)) * math.gamma(n / 2) / math.gamma((n - 1) / 2)
    assert sum(widths) / len(widths) == pytest.approx(factor * mean_deviation / math.sqrt(n), rel=0.1)


def test_interval_is_no_narrower_than_the_noise_of_its_pairs() -> None:
    """Restarts whose medians agree by chance: the standard error of a median of n is 1.25 * noise / sqrt(n)."""
    centred = [[value - sorted(pairs)[20] for value in pairs] for pairs in draw_pairs(1.0, 0.03, 1, num_pairs=41)]
    interval = ratio_interval(centred)
    honest = 1.96 * 1.25 * 0.03 / math.sqrt(123)
    assert 0.6 * honest < math.log(interval.high / interval.low) / 2 < 1.6 * honest


def test_factor_of_many_restarts_nears_the_normal_one() -> None:
    assert [round(_t_factor(degrees), 2) for degrees in (10, 11, 20, 60)] == [2.23, 2.18, 2.08, 2.0]


def test_interval_is_the_same_again() -> None:
    pairs = draw_pairs(1.1, 0.05, 3)
    assert ratio_interval(pairs) == ratio_interval(pairs)
    assert ratio_interval(pairs).num_pairs == 120


def test_restart_effect_widens_the_interval() -> None:
    """Pairs of one restart are not independent: their number must not hide that restarts differ."""
    widths = {0.0: 0.0, 0.05: 0.0}
    for restart_noise in widths:
        for seed in range(6):
            interval = ratio_interval(draw_pairs(1.0, 0.005, seed, restart_noise=restart_noise))
            widths[restart_noise] += math.log(interval.high / interval.low) / 6
    assert widths[0.05] > 10 * widths[0.0]


@pytest.mark.parametrize(("shift", "verdict"), [(1.0, "TIE"), (1.1, "WIN"), (1 / 1.1, "LOSS"), (1.005, "TIE")])
def test_verdict_finds_ten_per_cent_over_small_noise(shift: float, verdict: str) -> None:
    for seed in range(8):
        interval = ratio_interval(draw_pairs(shift, 0.02, seed))
        identical = ratio_interval(draw_pairs(1.0, 0.02, seed + 1000))
        assert speed_verdict(interval, noise_floor(identical, 0.01)) == verdict, seed


def test_ten_per_cent_inside_a_noisy_machine_is_a_tie() -> None:
    """What the baseline against itself strays is not a win."""
    interval = ratio_interval(draw_pairs(1.1, 0.02, 1))
    identical = ratio_interval(draw_pairs(1.0, 0.02, 2, restart_noise=0.2))
    assert speed_verdict(interval, noise_floor(identical, 0.01)) == "TIE"


def test_exchanged_sides_give_the_exchanged_verdict() -> None:
    pairs = draw_pairs(1.1, 0.02, 5)
    mirrored = [[-value for value in restart] for restart in pairs]
    there, back = ratio_interval(pairs), ratio_interval(mirrored)
    assert back.ratio == pytest.approx(1 / there.ratio)
    assert (speed_verdict(there, 0.03), speed_verdict(back, 0.03)) == ("WIN", "LOSS")


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [
        (1.031, 1.2, "WIN"),
        (1.029, 1.2, "TIE"),
        (0.8, 0.97, "LOSS"),
        (0.8, 0.972, "TIE"),
        (0.5, 2.0, "TIE"),
    ],
)
def test_verdict_needs_the_whole_interval_beyond_the_floor(low: float, high: float, verdict: str) -> None:
    assert speed_verdict(Interval(1.0, low, high, 9), 0.03) == verdict


def test_noise_floor_is_the_farther_end_and_never_under_the_least() -> None:
    assert noise_floor(Interval(1.0, 0.9, 1.05, 9), 0.01) == pytest.approx(0.1)
    assert noise_floor(Interval(1.0, 0.99, 1.2, 9), 0.01) == pytest.approx(0.2)
    assert noise_floor(Interval(1.0, 0.999, 1.001, 9), 0.01) == 0.01


@pytest.mark.parametrize("restarts", [[], [[]], [[], []]])
def test_no_pairs_are_an_error(restarts: list[list[float]]) -> None:
    with pytest.raises(ValueError, match="no pair"):
        ratio_interval(restarts)


def test_one_pair_is_its_own_interval() -> None:
    interval = ratio_interval([[math.log(2)], []])
    assert (interval.ratio, interval.low, interval.high) == pytest.approx((2, 2, 2))
    assert interval.num_pairs == 1


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=30), st.floats(0, 1))
def test_percentile_lies_between_neighbours(values: list[float], share: float) -> None:
    found, ordered = percentile(values, share), sorted(values)
    place = share * (len(values) - 1)
    assert ordered[math.floor(place)] - 1e-6 <= found <= ordered[min(len(values) - 1, math.floor(place) + 1)] + 1e-6


def test_percentile_interpolates() -> None:
    assert [percentile([4, 1, 3, 2], share) for share in (0, 0.5, 1)] == [1, 2.5, 4]
    assert percentile([7.0], 0.99) == 7.0
    assert percentile([0, 10], 0.25) == 2.5
    with pytest.raises(ValueError, match="No values"):
        percentile([], 0.5)


def test_geometric_mean_of_a_ratio_and_its_inverse_is_one() -> None:
    assert geometric_mean([4, 0.25]) == pytest.approx(1)
    assert geometric_mean([2, 8]) == pytest.approx(4)
    assert geometric_mean([3.5]) == pytest.approx(3.5)


@pytest.mark.parametrize("values", [[], [1.0, 0.0], [1.0, -2.0]])
def test_geometric_mean_refuses_what_has_none(values: list[float]) -> None:
    with pytest.raises(ValueError, match="positive"):
        geometric_mean(values)
