"""From a run's results.json to its scores."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastkernels.bench.eval.records import EVAL_SCHEMA_VERSION, ItemRecord, PassRecord, SubsetRecord
from fastkernels.scoring.fast_p import fast_p, fast_p_curve
from fastkernels.scoring.items import Outcome, Thresholds
from fastkernels.scoring.macroeval import item_speedup, macroeval
from fastkernels.scoring.policies import PUNITIVE_SPEEDUP, Policy, Target, headline, tolerance_sweep
from fastkernels.scoring.scores import (
    LEAST_NOISE,
    READS_SCHEMA_VERSION,
    items_of,
    scores,
    subset_items_of,
    subset_scores,
)

THRESHOLDS = {"good": 0.1, "bad": 0.5, "tau": 1.0}

SPEED = st.floats(0.05, 20.0)
RIGHT = st.builds(lambda speed, error: Target("right", speedup=speed, error_ratio=error), SPEED, st.floats(0.0, 1.0))
WRONG = st.builds(lambda error: Target("wrong", error_ratio=error), st.none() | st.floats(1.01, 100.0))
BLOCKED = st.just(Target("blocked", is_blocked=True))
UNTIMED = st.builds(lambda error: Target("untimed", error_ratio=error, is_untimed=True), st.floats(0.0, 1.0))
TARGETS = st.lists(RIGHT | WRONG | BLOCKED | UNTIMED, max_size=20)
LOWS = st.lists(st.none() | SPEED, min_size=1, max_size=30)


def passes(ratio: float, kind: str = "throughput", workload: str = "mix", num_pairs: int = 4) -> list[PassRecord]:
    """Three restarts in which the reference takes a second, more or less."""
    seconds = [1.0 + 0.01 * place for place in range(num_pairs)]
    return [PassRecord(restart, workload, kind, seconds, [s / ratio for s in seconds]) for restart in range(3)]


def record(item: str = "llama", implementation: str = "mine", outcome: str = "MEASURED", **changed: Any) -> ItemRecord:
    fields: dict[str, Any] = {
        "model": "tiny-llama",
        "architecture": "llama",
        "family": "language",
        "dtype": "float32",
        "num_ranks": 1,
        "thresholds": dict(THRESHOLDS),
        "discrepancies": [0.0, 0.05],
        "passes": passes(1.5) + passes(1.2, "latency", "alone"),
    }
    if outcome != "MEASURED":
        fields |= {"thresholds": {}, "discrepancies": [], "passes": []}
    return ItemRecord(item=item, implementation=implementation, outcome=outcome, **(fields | changed))


def results(*records: ItemRecord, **changed: Any) -> dict[str, Any]:
    """As they come back from the file."""
    body = {"kind": "eval", "run_id": "r", "eval_schema_version": EVAL_SCHEMA_VERSION}
    return json.loads(json.dumps(body | {"items": [r.to_json() for r in records]} | changed))


def test_scoring_reads_the_version_that_runs_write() -> None:
    assert READS_SCHEMA_VERSION == EVAL_SCHEMA_VERSION


def test_items_are_those_of_each_set_in_order() -> None:
    found = items_of(
        results(record("a"), record("a", "other"), record("b", outcome="NEVER_CALLED"), record("b", "other", "BLOCKED"))
    )
    assert {name: [(i.name, i.outcome) for i in items] for name, items in found.items()} == {
        "mine": [("a", Outcome.MEASURED), ("b", Outcome.NEVER_CALLED)],
        "other": [("a", Outcome.MEASURED), ("b", Outcome.BLOCKED)],
    }
    first = found["mine"][0]
    assert first.thresholds == Thresholds(0.1, 0.5, 1.0)
    assert first.discrepancies == (0.0, 0.05)


def test_pairs_are_by_place_within_a_restart_and_kinds_stay_apart() -> None:
    measured = [
        PassRecord(1, "mix", "throughput", [2.0, 3.0], [1.0, 1.0]),
        PassRecord(0, "mix", "throughput", [4.0], [1.0]),
        PassRecord(0, "alone", "latency", [1.0, 1.0], [2.0, 4.0]),
    ]
    item = items_of(results(record(passes=measured)))["mine"][0]
    assert item.throughput == ((math.log(4),), (math.log(2), math.log(3)))
    assert item.latency == ((math.log(0.5), math.log(0.25)), ())


def test_workloads_of_one_kind_weigh_alike_whatever_their_number_of_pairs() -> None:
    """1.0 in forty pairs and 4.0 in three: the geometric mean is 2, the median of all pairs would be 1."""
    long, short = passes(1.0, workload="long", num_pairs=40), passes(4.0, workload="short", num_pairs=3)
    for measured in (long + short, short + long):
        item = items_of(results(record(passes=measured)))["mine"][0]
        assert item_speedup(item, 1.0) == pytest.approx(2.0)
        assert [len(pairs) for pairs in item.throughput] == [6, 6, 6]


def test_spread_of_a_workload_survives_being_put_together() -> None:
    """The interval of two noisy workloads is of their noise, not of the distance between them."""
    wide = [PassRecord(0, "wide", "throughput", [1.0] * 3, [1 / 1.9, 1 / 2.0, 1 / 2.1])]
    still = [PassRecord(0, "still", "throughput", [1.0] * 3, [1.0] * 3)]
    pairs = items_of(results(record(passes=wide + still)))["mine"][0].throughput[0]
    centre = math.log(2) / 2
    assert sorted(pairs)[1:5] == pytest.approx([centre] * 4, abs=0.03)
    assert max(pairs) - min(pairs) == pytest.approx(math.log(2.1 / 1.9) * 2 / 3, rel=0.1)


def test_noise_floor_is_what_the_reference_strays_from_itself() -> None:
    quiet, loud = (record(reference_noise=noise) for noise in ([0.001, -0.001] * 5, [0.08, -0.08] * 5))
    floors = [items_of(results(r))["mine"][0].noise_floor for r in (record(), quiet, loud)]
    assert floors[:2] == [LEAST_NOISE, LEAST_NOISE]
    assert floors[2] == pytest.approx(math.exp(0.08) - 1)


def test_scores_are_plain_json_and_agree_with_their_functions() -> None:
    records = [
        record("a"),
        record("b", family="image", passes=passes(0.5) + passes(0.5, "latency")),
        record("c", discrepancies=[0.3]),
        record("d", outcome="INVALID", family="ranking", reason="CRASH"),
    ]
    items = items_of(results(*records))["mine"]
    found = json.loads(json.dumps(scores(items), allow_nan=False))
    assert found["deployable"]["speedup"] == pytest.approx((math.sqrt(1.5 * 1.2) * 0.5) ** (1 / 4))
    assert (found["deployable"]["num_wins"], found["deployable"]["num_losses"]) == (1, 1)
    assert list(found["macroeval"]) == ["0.0", "0.5", "1.0"]
    assert found["macroeval"]["1.0"]["speedup"] == pytest.approx(math.sqrt(1.5 * 0.5))
    assert found["macroeval"]["0.5"]["score"] == pytest.approx(macroeval(items).score)
    assert found["macroeval"]["0.5"]["families"]["language"]["num_valid"] == 1
    assert [row["verdict"] for row in found["intervals"]["items"]] == ["WIN", "LOSS", None, None]
    assert found["intervals"]["macro"]["targets"]["kind"] == "empirical range"
    assert found["intervals"]["families"]["ranking"] == {"targets": None, "hierarchical": None}


def test_sensitivity_follows_the_scale_of_the_thresholds() -> None:
    """Discrepancies of 0.05, 0.15 and 0.3 against a `good` of 0.1."""
    records = [record(str(d), discrepancies=[d]) for d in (0.05, 0.15, 0.3)]
    found = scores(items_of(results(*records))["mine"])["sensitivity"]
    assert [round(3 * found[scale]["coverage"]) for scale in ("0.25", "0.5", "1.0", "2.0", "5.0")] == [0, 1, 1, 2, 3]
    assert found["0.25"]["deployable"] == 1.0
    assert found["1.0"]["deployable"] == pytest.approx(math.sqrt(1.5 * 1.2) ** (1 / 3))


def test_the_largest_part_that_can_be_deployed_is_scored_beside_the_set() -> None:
    part = record("a", passes=passes(1.1) + passes(1.1, "latency"))
    broken = record("a", outcome="INVALID", subset=SubsetRecord({"linear": "CRASH"}, ["rms_norm"], part))
    hopeless = record("b", outcome="INVALID", subset=SubsetRecord({"linear": "CRASH"}, []))
    run = results(broken, hopeless, record("c"), record("a", "whole"))
    assert [item.outcome for item in items_of(run)["mine"]] == ["INVALID", "INVALID", "MEASURED"]
    found = subset_items_of(run)
    assert list(found) == ["mine"]
    assert [item.outcome for item in found["mine"]] == ["MEASURED", "INVALID", "MEASURED"]
    assert item_speedup(found["mine"][0]) == pytest.approx(1.1)
    of_part = subset_scores(run)
    assert of_part == {"mine": scores(found["mine"])}
    assert of_part["mine"]["deployable"]["num_valid"] == scores(items_of(run)["mine"])["deployable"]["num_valid"] + 1
    assert subset_scores(results(record("c"))) == {}


@pytest.mark.parametrize(
    ("changed", "message"),
    [({"kind": "kernels"}, "of kind 'kernels'"), ({"eval_schema_version": 99}, "eval schema version 99")],
)
def test_a_run_of_another_kind_or_version_is_refused(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        items_of(results(record(), **changed))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"thresholds": {}}, "MEASURED and has no thresholds"),
        ({"passes": [PassRecord(0, "mix", "latency", [1.0, 1.0], [1.0])]}, "2 times of the reference and 1 of the"),
        ({"passes": [PassRecord(0, "mix", "latency", [], [])]}, "0 times of the reference"),
        ({"passes": [PassRecord(0, "mix", "latency", [1.0], [0.0])]}, "restart 0, has a time of 0.0 s"),
        ({"passes": [PassRecord(0, "mix", "speed", [1.0], [1.0])]}, "of kind 'speed': throughput or latency"),
    ],
)
def test_a_record_that_contradicts_itself_is_refused(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        items_of(results(record(**changed)))


@given(TARGETS)
def test_a_stricter_policy_says_no_more(targets: list[Target]) -> None:
    """Blocked targets leave the coverage, or stay in it, or cost a speedup too; the mean lies within its range."""
    lenient, default, punitive = (headline(targets, p) for p in (Policy.DROP_BLOCKED, Policy.DEFAULT, Policy.PUNITIVE))
    assert lenient.num_correct == default.num_correct == punitive.num_correct == sum(t.is_right for t in targets)
    assert lenient.num_correct <= lenient.num_targets <= default.num_targets == punitive.num_targets == len(targets)
    assert lenient.speedup == default.speedup
    speedups = [t.speedup for t in targets if t.speedup is not None]
    assert (default.speedup is None) == (not speedups)
    if default.speedup is not None:
        assert punitive.speedup is not None
        assert min(speedups) * (1 - 1e-9) <= default.speedup <= max(speedups) * (1 + 1e-9)
        assert PUNITIVE_SPEEDUP <= punitive.speedup <= default.speedup * (1 + 1e-9)


@given(TARGETS, SPEED, st.sampled_from(list(Policy)))
def test_a_target_that_becomes_faster_or_right_lowers_nothing(
    targets: list[Target], speed: float, policy: Policy
) -> None:
    slow, fast = (headline([*targets, Target("more", speedup=s)], policy) for s in (speed, 2 * speed))
    wrong = headline([*targets, Target("more")], policy)
    assert slow.speedup is not None
    assert fast.speedup is not None
    assert fast.speedup > slow.speedup
    assert slow.num_correct == fast.num_correct == wrong.num_correct + 1
    assert slow.num_targets == fast.num_targets == wrong.num_targets
    if policy is Policy.PUNITIVE:
        assert wrong.speedup is not None
        assert wrong.speedup < slow.speedup


@given(TARGETS)
def test_a_wider_tolerance_has_no_fewer_right_targets(targets: list[Target]) -> None:
    found = list(tolerance_sweep(targets).values())
    counts = [one.num_correct for one in found]
    assert counts == sorted(counts)
    assert {one.num_targets for one in found} == {len(targets)}
    assert counts[-1] == sum(t.is_right for t in targets), "What was wrong was not timed."


@given(LOWS, SPEED, SPEED)
def test_fast_p_falls_with_p_and_lies_in_its_interval(lows: list[float | None], first: float, second: float) -> None:
    low, high = (fast_p(lows, p) for p in sorted((first, second)))
    assert high.num_faster <= low.num_faster
    for found in (low, high):
        assert 0.0 <= found.low <= found.share <= found.high <= 1.0
        assert found.share == found.num_faster / found.num_targets
    assert [one.share for one in fast_p_curve(lows)] == sorted((o.share for o in fast_p_curve(lows)), reverse=True)


@given(LOWS, SPEED)
def test_a_target_that_is_not_right_counts_as_one_that_is_not_faster(lows: list[float | None], p: float) -> None:
    assert fast_p([*lows, None], p) == fast_p([*lows, p], p)
    assert fast_p([*lows, None], p).share <= fast_p(lows, p).share <= fast_p([*lows, 2 * p], p).share
