"""Where agents stand by figures of few targets: what is uncertain in each op, or in each model, decides too."""

from __future__ import annotations

import math
from typing import Any

import pytest

from fastkernels.leaderboard.metrics import KERNELS_METRICS, speedup_cell
from fastkernels.leaderboard.op_scores import op_scores
from fastkernels.leaderboard.places import places

SPEEDUP = next(metric for metric in KERNELS_METRICS if metric.key == "speedup")


def op(ratio: float, factor: float) -> dict[str, Any]:
    """Timed once; the interval's ends are `factor` away."""
    timing = {"ratio": ratio, "low": ratio / factor, "high": ratio * factor, "speed": "TIE"}
    return {"level": 1, "verdict": "PASSED", "low": timing["low"], "timings": [timing]}


def speedup_of(ratio: float, factor: float) -> dict[str, float]:
    found: dict[str, float] = op_scores({"1": 2}, [op(ratio, factor), op(1.001 * ratio, factor)])["L1"]["speedup"]
    return found


def test_agents_whose_two_ops_are_uncertain_are_not_told_apart() -> None:
    cells = [speedup_cell(speedup_of(ratio, 3.0)) for ratio in (1.5, 1.45)]
    first, second = places(["A", "B"], cells, SPEEDUP)
    assert (first.text, second.text, second.is_close) == ("1\u20132", "1\u20132", True)
    assert first.why == "Not told apart from B: the intervals overlap."


def test_agents_whose_two_ops_are_certain_are_told_apart() -> None:
    cells = [speedup_cell(speedup_of(ratio, 1.002)) for ratio in (1.5, 1.45)]
    first, second = places(["A", "B"], cells, SPEEDUP)
    assert (first.text, second.text, second.is_close) == ("1", "2", False)


def test_two_ops_have_the_interval_of_their_mean() -> None:
    found = speedup_of(1.5, 3.0)
    assert math.log(found["high"] / found["low"]) == pytest.approx(2 * math.log(3) / math.sqrt(2))
    assert math.sqrt(found["low"] * found["high"]) == pytest.approx(found["speedup"])
