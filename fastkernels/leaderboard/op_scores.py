"""What a set's judgements come to, over all ops that are registered and not only those it offers. Pure functions."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from statistics import fmean
from typing import Any

import numpy as np

from fastkernels.harness.verdict import Speed, Verdict
from fastkernels.report.mean_speedup import LogInterval, mean_interval, mean_speedup, timing_interval
from fastkernels.report.scopes import level_scopes
from fastkernels.scoring.fast_p import fast_p
from fastkernels.scoring.intervals import hierarchical_bounds

Json = dict[str, Any]

SEED = 42
_NUM_DRAWS = 1000


def op_deployable(verdict: str, timings: Sequence[Json]) -> LogInterval:
    """What using it would change: cases that tie count as 1.0, and an op that did not pass, as the baseline stays."""
    if verdict != Verdict.PASSED or not timings:
        return LogInterval()
    return mean_interval([LogInterval() if t["speed"] == Speed.TIE else timing_interval(t) for t in timings])


def scopes(targets: Mapping[str, int], ops: Sequence[Json]) -> dict[str, tuple[int, ...]]:
    """Levels by the name of a scope: L1 and L2 together, then each level that has a judgement."""
    return level_scopes(op["level"] for op in ops if str(op["level"]) in targets)


def op_scores(targets: Mapping[str, int], ops: Sequence[Json]) -> dict[str, Json]:
    """By scope: figures of the ops of an entry. targets: how many ops are registered, by level; no fewer than ops."""
    found = {}
    for name, levels in scopes(targets, ops).items():
        chosen = [op for op in ops if op["level"] in levels]
        found[name] = _scope(sum(targets.get(str(level), 0) for level in levels), chosen)
    return found


def _scope(num_targets: int, ops: Sequence[Json]) -> Json:
    lows = lower_bounds(ops, num_targets)
    passed = [op for op in ops if op["verdict"] == Verdict.PASSED]
    num_judged = sum(op["verdict"] != Verdict.UNTESTABLE for op in ops)  # which says nothing of the candidate
    deployable = [op_deployable(op["verdict"], op["timings"]) for op in ops]
    deployable += [LogInterval()] * (num_targets - len(ops))
    timed = [speedup for op in passed if (speedup := mean_speedup(op["timings"])) is not None]
    speeds = [op_speed(op["timings"]) for op in passed]
    return {
        "num_targets": num_targets,
        "num_judged": num_judged,
        "num_valid": len(passed),
        "num_wins": speeds.count("WIN"),
        "num_losses": speeds.count("LOSS"),
        "num_ties": speeds.count("TIE"),
        "num_mixed": speeds.count("MIXED"),
        "deployable": mean_with_interval(deployable),
        "speedup": mean_with_interval(timed) if timed else None,
        "correctness": len(passed) / num_judged if num_judged else 0.0,
        "coverage": len(passed) / num_targets,
        "fast_1": asdict(fast_p(lows, 1.0)),
        "fast_1_5": asdict(fast_p(lows, 1.5)),
    }


def lower_bounds(ops: Sequence[Json], num_targets: int) -> list[float | None]:
    """Of every target's interval, for fast_p; None of what did not pass, was not timed or was not judged."""
    found = [op["low"] if op["verdict"] == Verdict.PASSED else None for op in ops]
    return found + [None] * (num_targets - len(found))


def op_speed(timings: Sequence[Json]) -> str:
    """WIN when a case wins and none loses, LOSS when one loses and none wins, MIXED when both; else TIE, or ""."""
    found = {t["speed"] for t in timings} - {Speed.TIE}
    return "MIXED" if len(found) > 1 else str(*found) if found else "TIE" if timings else ""


def mean_with_interval(parts: Sequence[LogInterval]) -> Json:
    """Geometric mean with the 95 % interval of the hierarchical bootstrap: targets are drawn anew, and each within its
    own interval; of two targets it is the wider of their range and their own intervals', of one its own."""
    if not parts:
        return LogInterval().to_json()
    noise = np.random.default_rng(SEED).standard_normal(_NUM_DRAWS)
    pools = [p.centre + np.array([[0.0, *p.spread * noise]]) for p in parts]
    bounds = hierarchical_bounds(pools, [p.ends for p in parts])
    if bounds is None:
        return parts[0].to_json()
    return {"speedup": math.exp(fmean(p.centre for p in parts)), "low": bounds.low, "high": bounds.high}
