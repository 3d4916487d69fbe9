"""MacroEval's equations by hand, and what must hold of them whatever the items are."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastkernels.scoring.deployable import deployable, deployable_speedup, item_verdict
from fastkernels.scoring.items import Family, Item, Outcome, Thresholds
from fastkernels.scoring.macroeval import (
    TOLERANCE_SCALES,
    calibrated,
    is_valid,
    item_correctness,
    item_interval,
    item_speedup,
    macroeval,
    with_thresholds_scaled,
)

THRESHOLDS = Thresholds(good=0.1, bad=0.5)


def item(
    throughput: float = 1.0,
    latency: float = 1.0,
    family: str = "language",
    discrepancies: Sequence[float] = (0.0,),
    outcome: Outcome = Outcome.MEASURED,
    thresholds: Thresholds = THRESHOLDS,
    noise_floor: float = 0.01,
) -> Item:
    """Three restarts of five pairs, the middle one of which is the ratio."""
    restarts = [
        tuple(tuple(math.log(ratio) + 0.002 * place for place in (-2, -1, 0, 1, 2)) for _ in range(3))
        for ratio in (throughput, latency)
    ]
    pairs = restarts if outcome == Outcome.MEASURED else [(), ()]
    return Item("item", family, outcome, thresholds, tuple(discrepancies), *pairs, noise_floor)


ratios = st.floats(0.2, 5.0)
items = st.builds(
    item,
    throughput=ratios,
    latency=ratios,
    family=st.sampled_from(["language", "image", "ranking"]),
    discrepancies=st.lists(st.floats(0, 0.7), min_size=1, max_size=4),
    outcome=st.sampled_from([Outcome.MEASURED] * 4 + list(Outcome)),
    thresholds=st.sampled_from([THRESHOLDS, Thresholds(0.0, 0.3, tau=0.5)]),
)
sets = st.lists(items, min_size=1, max_size=8)
blends = st.sampled_from([0.0, 0.25, 0.5, 1.0])


def test_calibrated_correctness_is_equation_two() -> None:
    found = [calibrated(d, THRESHOLDS) for d in (0.0, 0.1, 0.2, 0.3, 0.5, 9.0, math.inf, math.nan)]
    assert found == pytest.approx([1, 1, 0.75, 0.5, 0, 0, 0, 0])


@settings(max_examples=60, deadline=None)
@given(st.floats(0, 1), st.floats(0, 1))
def test_correctness_never_rises_with_the_discrepancy(first: float, second: float) -> None:
    low, high = sorted((first, second))
    assert 0 <= calibrated(high, THRESHOLDS) <= calibrated(low, THRESHOLDS) <= 1


def test_published_aggregates_by_hand() -> None:
    """Two items of language, one of them at half correctness; one image; one ranking that crashed."""
    found = macroeval(
        [
            item(2.0, 1.0),
            item(8.0, 1.0, discrepancies=(0.0, 0.5)),
            item(0.5, 0.5, "image"),
            item(family="ranking", outcome=Outcome.INVALID),
        ]
    )
    assert found.correctness == pytest.approx((0.75 + 1 + 0) / 3)
    assert found.coverage == 2 / 4
    assert found.coverage_macro == pytest.approx((0.5 + 1 + 0) / 3)
    assert found.speedup == pytest.approx(math.sqrt(math.sqrt(2) * 0.5))
    assert found.score == pytest.approx(found.speedup * found.correctness * found.coverage_macro)
    assert {name: f.speedup for name, f in found.families.items()} == {
        "language": pytest.approx(math.sqrt(2)),
        "image": pytest.approx(0.5),
        "ranking": None,
    }


def test_a_family_of_many_items_weighs_as_much_as_one_of_one() -> None:
    many = [item(4.0, 4.0, "language") for _ in range(20)]
    assert macroeval([*many, item(1.0, 1.0, "image")]).speedup == pytest.approx(2.0)


@pytest.mark.parametrize(("blend", "speedup"), [(0.0, 3.0), (0.5, math.sqrt(6)), (1.0, 2.0)])
def test_blend_is_from_latency_to_throughput(blend: float, speedup: float) -> None:
    assert item_speedup(item(2.0, 3.0), blend) == pytest.approx(speedup)


def test_a_kind_of_workload_that_was_not_run_leaves_the_blends_that_need_it_without_a_speedup() -> None:
    alone = replace(item(2.0), latency=())
    assert item_speedup(alone, 1.0) == pytest.approx(2.0)
    assert item_speedup(alone, 0.5) is None
    assert item_interval(alone) is None
    found = macroeval([alone])
    assert (found.coverage, found.speedup, found.score) == (1.0, None, 0.0)
    assert item_verdict(alone) == "TIE"
    assert deployable([alone]).speedup == 1.0


@settings(max_examples=60, deadline=None)
@given(ratios, ratios, blends)
def test_swapping_throughput_and_latency_swaps_the_blend(throughput: float, latency: float, blend: float) -> None:
    first, second = item_speedup(item(throughput, latency), blend), item_speedup(item(latency, throughput), 1 - blend)
    assert first == pytest.approx(second)


@settings(max_examples=60, deadline=None)
@given(ratios, ratios, st.floats(0.5, 2), blends)
def test_speedups_multiply(throughput: float, latency: float, factor: float, blend: float) -> None:
    once, both = item(throughput, latency), item(throughput * factor, latency * factor)
    assert item_speedup(both, blend) == pytest.approx(factor * item_speedup(once, blend))
    assert macroeval([both, both], blend).speedup == pytest.approx(factor * macroeval([once], blend).speedup)


@settings(max_examples=60, deadline=None)
@given(sets, blends)
def test_shares_and_speedups_stay_within_their_bounds(found: list[Item], blend: float) -> None:
    score = macroeval(found, blend)
    assert 0 <= score.coverage_macro <= 1
    assert 0 <= score.coverage <= 1
    assert 0 <= score.correctness <= 1
    assert score.score == 0 or score.speedup is not None
    speeds = [s for i in found if is_valid(i) and (s := item_speedup(i, blend)) is not None]
    if speeds:
        assert min(speeds) * (1 - 1e-9) <= score.speedup <= max(speeds) * (1 + 1e-9)
    else:
        assert score.speedup is None


@settings(max_examples=60, deadline=None)
@given(sets, st.randoms(use_true_random=False))
def test_the_order_of_items_does_not_matter(found: list[Item], generator: random.Random) -> None:
    shuffled = generator.sample(found, len(found))
    first, second = macroeval(found), macroeval(shuffled)
    assert first.score == pytest.approx(second.score)
    assert first.coverage == second.coverage
    assert deployable_speedup(found) == pytest.approx(deployable_speedup(shuffled))


@settings(max_examples=60, deadline=None)
@given(sets, st.integers(2, 4))
def test_items_that_come_twice_do_not_outvote_other_families(found: list[Item], times: int) -> None:
    family = found[0].family
    more = [i for i in found if i.family != family] + [i for i in found if i.family == family] * times
    first, second = macroeval(found), macroeval(more)
    assert second.score == pytest.approx(first.score)
    assert second.correctness == pytest.approx(first.correctness)
    assert second.coverage_macro == pytest.approx(first.coverage_macro)


@settings(max_examples=60, deadline=None)
@given(sets, st.sampled_from([o for o in Outcome if o != Outcome.MEASURED]), st.sampled_from(list(Family)))
def test_an_item_more_that_is_invalid_never_raises_a_score(found: list[Item], outcome: Outcome, family: str) -> None:
    before, after = macroeval(found), macroeval([*found, item(family=family, outcome=outcome)])
    assert after.speedup == before.speedup
    assert after.score <= before.score * (1 + 1e-12)
    gain = deployable_speedup(found)
    assert deployable_speedup([*found, item(family=family, outcome=outcome)]) == pytest.approx(
        gain ** (len(found) / (len(found) + 1))
    )


@settings(max_examples=60, deadline=None)
@given(sets)
def test_looser_thresholds_never_make_an_item_invalid(found: list[Item]) -> None:
    for tighter, looser in pairwise(with_thresholds_scaled(found, scale) for scale in TOLERANCE_SCALES):
        for one, other in zip(tighter, looser, strict=True):
            assert item_correctness(one) <= item_correctness(other) + 1e-12
            assert is_valid(other) or not is_valid(one)
    assert with_thresholds_scaled(found, 1.0) == found


@pytest.mark.parametrize("outcome", [Outcome.INVALID, Outcome.NEVER_CALLED, Outcome.BLOCKED])
def test_what_was_not_measured_has_no_credit_and_costs_nothing_to_deploy(outcome: Outcome) -> None:
    lost = item(9.0, 9.0, outcome=outcome)
    assert (item_correctness(lost), is_valid(lost), item_speedup(lost), item_verdict(lost)) == (0.0, False, None, None)
    found = deployable([lost, lost, lost])
    assert (found.speedup, found.low, found.high, found.validity) == (1.0, 1.0, 1.0, 0.0)
    assert macroeval([lost]).score == 0.0


def test_measured_without_an_answer_compared_is_not_valid() -> None:
    assert not is_valid(item(discrepancies=()))


def test_deployable_counts_wins_and_losses_as_measured_and_ties_as_one() -> None:
    found = [
        item(1.5, 1.5),  # a win
        item(0.8, 0.8),  # a loss
        item(1.04, 1.04, noise_floor=0.05),  # beyond 1, within its noise floor
        item(4.0, 4.0, discrepancies=(0.3,)),  # fast and wrong
    ]
    score = deployable(found)
    assert score.speedup == pytest.approx((1.5 * 0.8) ** (1 / 4))
    assert (score.num_wins, score.num_losses, score.num_ties, score.num_valid, score.num_items) == (1, 1, 1, 3, 4)
    assert score.validity == 0.75
    assert score.low <= score.speedup <= score.high


def test_a_tie_is_an_interval_that_reaches_into_the_noise_floor() -> None:
    """Three restarts at 1.0, 1.1 and 1.2: the ratio is 1.1, and nobody knows."""
    restarts = tuple((math.log(ratio),) * 5 for ratio in (1.0, 1.1, 1.2))
    unsure = replace(item(), throughput=restarts, latency=restarts)
    assert item_verdict(unsure) == "TIE"
    assert item_verdict(item(1.1, 1.1)) == "WIN"
    assert item_verdict(item(1 / 1.1, 1 / 1.1)) == "LOSS"
    assert deployable([unsure]).speedup == 1.0


def test_blend_of_an_interval_holds_both_kinds_noise() -> None:
    """Restarts that err to the same side add up; what throughput gains and latency loses cancels."""
    up = tuple((math.log(ratio),) * 3 for ratio in (1.0, 1.1, 1.21))
    down = tuple((-math.log(ratio),) * 3 for ratio in (1.0, 1.1, 1.21))
    together, apart = (replace(item(), throughput=up, latency=latency) for latency in (up, down))
    alone = item_interval(together, 1.0)
    assert item_interval(together, 0.5).low == pytest.approx(alone.low)
    assert item_interval(apart, 0.5).ratio == pytest.approx(1.0)
    assert item_interval(apart, 0.5).low == pytest.approx(1.0)


def test_blended_noise_of_pairs_adds_up_as_independent_noise_does() -> None:
    """Restarts that agree, pairs that do not: half of two independent noises is narrower by the root of 2."""
    noisy = ((-0.1, -0.05, 0.0, 0.05, 0.1),) * 3
    both = replace(item(), throughput=noisy, latency=noisy)
    alone, blended = (math.log(item_interval(both, blend).high) for blend in (1.0, 0.5))
    assert blended == pytest.approx(alone / math.sqrt(2))


def test_what_cannot_be_scored_is_refused() -> None:
    with pytest.raises(ValueError, match="no item"):
        macroeval([])
    with pytest.raises(ValueError, match="no item"):
        deployable([])
    with pytest.raises(ValueError, match=r"blend \(lambda\) is 1.5"):
        macroeval([item()], 1.5)
    with pytest.raises(ValueError, match="scale of thresholds is 0"):
        with_thresholds_scaled([item()], 0)
