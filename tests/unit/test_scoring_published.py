"""Every number that was published of kernel agents and follows from others, made again by the functions that score."""

from __future__ import annotations

import math

import pytest

from fastkernels.harness.measurements import published as judge_tolerances
from fastkernels.scoring.fast_p import fast_p, fast_p_curve
from fastkernels.scoring.intervals import NUM_REPLICATES, SEED, target_bounds
from fastkernels.scoring.items import Thresholds
from fastkernels.scoring.macroeval import DEFAULT_BLEND, TOLERANCE_SCALES
from fastkernels.scoring.policies import PUNITIVE_SPEEDUP, Policy, Target, headline, tolerance_sweep
from fastkernels.scoring.published import (
    PublishedAgent,
    PublishedLevel,
    published_agents,
    published_constants,
    published_tables,
)
from fastkernels.scoring.statistics import CONFIDENCE, geometric_mean, wilson_interval

AGENTS = {agent.name: agent for agent in published_agents()}
LEVELS = [(agent, level) for agent in AGENTS.values() for level in agent.levels.values()]


def targets(level: PublishedLevel) -> list[Target]:
    """As many as were right, wrong and blocked; the right ones all at the mean."""
    num_wrong = level.num_attempted - level.num_correct
    right = [Target(f"right {n}", speedup=level.speedup) for n in range(level.num_correct)]
    wrong = [Target(f"wrong {n}") for n in range(num_wrong)]
    return [*right, *wrong, *(Target(f"blocked {n}", is_blocked=True) for n in range(level.num_blocked))]


def test_the_agents_are_those_of_table_1() -> None:
    assert list(AGENTS) == ["Dr. Kernel", "KernelAgent", "Codex"]
    assert all(list(agent.levels) == ["L1", "L2", "all"] for agent in AGENTS.values())
    assert all(agent.provenance == "Tables 1, 3-6 of the published FastKernels paper" for agent in AGENTS.values())


@pytest.mark.parametrize("agent", AGENTS.values(), ids=lambda agent: agent.name)
def test_levels_add_up_to_all(agent: PublishedAgent) -> None:
    first, second, both = (agent.levels[name] for name in ("L1", "L2", "all"))
    for count in ("num_targets", "num_attempted", "num_blocked", "num_correct"):
        assert getattr(first, count) + getattr(second, count) == getattr(both, count)
    for p in (1.0, 1.5):
        assert first.num_faster[p] + second.num_faster.get(p, 0) == both.num_faster[p]


@pytest.mark.parametrize(("agent", "level"), LEVELS)
def test_a_row_agrees_with_itself(agent: PublishedAgent, level: PublishedLevel) -> None:
    assert level.num_attempted + level.num_blocked == level.num_targets
    assert (level.speedup is None) == (level.num_correct == 0)
    if level.speedup is not None:
        assert level.low <= level.speedup <= level.high
        assert level.printed_speedup == pytest.approx(level.speedup, abs=0.0051)
        assert level.num_faster[1.5] <= level.num_faster[1.0] <= level.num_correct


@pytest.mark.parametrize("row", published_tables()["policies"], ids=lambda row: row["policy"])
@pytest.mark.parametrize("name", AGENTS)
def test_policies_give_table_5(row: dict, name: str) -> None:
    found = headline(targets(AGENTS[name].combined), Policy(row["policy"]))
    printed = row["agents"][name]
    assert (found.num_correct, found.num_targets) == (printed["correct"], printed["denom"])
    assert round(found.speedup, 3) == printed["geomean"]


@pytest.mark.parametrize(("name", "speedup"), [("Dr. Kernel", 0.0173), ("KernelAgent", 0.2105)])
def test_imputing_blocked_targets_alone_does_not_give_table_5(name: str, speedup: float) -> None:
    """The running text says so; only the caption's rule, wrong ones too, gives the printed numbers."""
    level = AGENTS[name].combined
    blocked_alone = [level.speedup] * level.num_correct + [PUNITIVE_SPEEDUP] * level.num_blocked
    assert geometric_mean(blocked_alone) == pytest.approx(speedup, abs=5e-5)


@pytest.mark.parametrize(
    ("name", "tolerance"),
    [("Codex", 0.0005), ("KernelAgent", 0.001)],
)
def test_levels_average_to_the_combined_speedup(name: str, tolerance: float) -> None:
    agent = AGENTS[name]
    together = [t for level in ("L1", "L2") for t in targets(agent.levels[level])]
    assert headline(together).speedup == pytest.approx(agent.combined.speedup, abs=tolerance)


def test_a_level_of_none_right_has_no_speedup() -> None:
    found = headline(targets(AGENTS["Dr. Kernel"].levels["L2"]))
    assert (found.num_correct, found.num_targets, found.speedup) == (0, 40, None)
    assert headline(targets(AGENTS["Dr. Kernel"].levels["L2"]), Policy.PUNITIVE).speedup == pytest.approx(0.01)


def test_kernels_by_reference_average_to_the_level() -> None:
    """22 at 1.16 with 26 at 0.93: both rounded to two digits, as the level is in Table 1."""
    rows = published_tables()["by_reference_type"]
    speedups = [row["geomean"] for row in rows for _ in range(row["num_targets"])]
    level = AGENTS["Codex"].levels["L1"]
    assert len(speedups) == level.num_targets
    assert round(geometric_mean(speedups), 2) == level.printed_speedup


def test_two_right_kernels_have_their_range_and_its_middle() -> None:
    pair = [row["speedup"] for row in published_tables()["kernels"] if row["level"] == "L2"]
    level = AGENTS["KernelAgent"].levels["L2"]
    bounds = target_bounds(pair)
    assert (bounds.low, bounds.high) == (pytest.approx(level.low), pytest.approx(level.high))
    assert (bounds.kind, bounds.num_items) == (level.interval, level.num_correct)
    assert round(geometric_mean(pair), 3) == level.speedup


@pytest.mark.parametrize("row", published_tables()["tolerance_sensitivity"]["rows"], ids=lambda row: str(row["scale"]))
def test_tolerance_sweep_gives_table_4(row: dict) -> None:
    """Error ratios such that as many targets pass as were printed; the levels' means average to the combined one."""
    counts = {level: (row[f"{level}_correct"], row[f"{level}_geomean"]) for level in ("l1", "l2")}
    together = [
        Target(f"{level} {n}", speedup=mean, error_ratio=row["scale"] * (1.0 if n < count else 1.01))
        for level, (count, mean) in counts.items()
        for n in range({"l1": 48, "l2": 40}[level])
    ]
    found = tolerance_sweep(together)[row["scale"]]
    assert (found.num_correct, found.num_targets) == (row["combined_correct"], 88)
    assert round(found.speedup, 3) == row["combined_geomean"]


def test_sweep_of_tolerances_counts_monotonically_and_needs_error_ratios() -> None:
    some = [Target(str(n), speedup=1.0, error_ratio=n / 8) for n in range(9)]
    counts = [h.num_correct for h in tolerance_sweep([*some, Target("wrong", error_ratio=3.0)]).values()]
    assert counts == [3, 5, 9, 9, 9]  # what is wrong was not timed: looser limits do not make it right
    with pytest.raises(ValueError, match="2 targets are right and have no error ratio"):
        tolerance_sweep(targets(AGENTS["KernelAgent"].levels["L2"]))


def test_what_was_right_and_not_timed_is_covered_without_a_speedup() -> None:
    some = [Target("timed", speedup=4.0, error_ratio=0.1), Target("untimed", error_ratio=0.6, is_untimed=True)]
    assert headline([*some, Target("wrong")]) == headline([*some, Target("wrong", is_blocked=True)])
    found = headline([*some, Target("wrong")], Policy.PUNITIVE)
    assert (found.num_correct, found.num_targets, found.speedup) == (2, 3, pytest.approx(0.2))
    assert [h.num_correct for h in tolerance_sweep(some).values()] == [1, 1, 2, 2, 2]
    with pytest.raises(ValueError, match="was not timed, and is blocked or has a speedup of 2"):
        Target("x", speedup=2.0, is_untimed=True)


def test_targets_that_contradict_themselves_are_refused() -> None:
    with pytest.raises(ValueError, match="blocked and has a speedup of 2"):
        Target("x", is_blocked=True, speedup=2.0)
    with pytest.raises(ValueError, match="is 0; it is over 0"):
        Target("x", speedup=0)


def test_fast_p_counts_lower_bounds_over_all_targets() -> None:
    lows = [1.2, 0.99, 1.0, 2.5, None, None]
    found = fast_p(lows, 1.0)
    assert (found.num_faster, found.num_targets, found.share) == (2, 6, 2 / 6)
    assert found.low < found.share < found.high
    shares = [point.share for point in fast_p_curve(lows)]
    assert shares == sorted(shares, reverse=True)
    with pytest.raises(ValueError, match="no target"):
        fast_p([], 1.0)


def test_fast_p_of_the_published_counts() -> None:
    """Codex, 37 of 88 over 1: Wilson's interval is about 0.32 to 0.52."""
    level = AGENTS["Codex"].combined
    num = level.num_faster[1.0]
    found = fast_p([1.01] * num + [0.9] * (level.num_targets - num), 1.0)
    assert (found.num_faster, found.num_targets) == (37, 88)
    assert (found.low, found.high) == (pytest.approx(0.3229, abs=1e-3), pytest.approx(0.5248, abs=1e-3))


@pytest.mark.parametrize(("successes", "trials"), [(0, 8), (1, 8), (4, 8), (8, 8), (37, 88)])
def test_wilson_interval_solves_its_equation(successes: int, trials: int) -> None:
    """Its ends are where the share lies 1.96 standard errors away."""
    share = successes / trials
    low, high = wilson_interval(successes, trials)
    assert 0 <= low <= share <= high <= 1
    for end in {low, high} - {0.0, 1.0}:
        assert abs(share - end) == pytest.approx(1.96 * math.sqrt(end * (1 - end) / trials))
    with pytest.raises(ValueError, match="have no share"):
        wilson_interval(trials + 1, trials)
    with pytest.raises(ValueError, match="have no share"):
        wilson_interval(0, 0)


def test_constants_are_the_published_ones() -> None:
    constants = published_constants()
    assert constants["blend"] == DEFAULT_BLEND
    assert constants["tau"] == Thresholds(0.0, 1.0).tau
    assert tuple(constants["tolerance_scales"]) == TOLERANCE_SCALES
    assert constants["punitive_speedup"] == PUNITIVE_SPEEDUP
    assert constants["bootstrap"]["replicates"] == NUM_REPLICATES
    assert (constants["bootstrap"]["seed"], constants["bootstrap"]["confidence"]) == (SEED, CONFIDENCE)


def test_the_judge_uses_the_same_published_tolerances() -> None:
    limits = published_constants()["dtype_tolerances"]
    assert {dtype: limits[dtype] for dtype in judge_tolerances()["published"]} == judge_tolerances()["published"]
