"""How far a figure hangs on what is counted: the published policies for blocked targets, and scales of tolerances.

Pure: from the ops or items of a run, or of a leaderboard's entry.
Source: appendix C, tables 4 and 5, of the FastKernels paper.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fastkernels.harness.verdict import Verdict
from fastkernels.registry import ops as registered_ops
from fastkernels.report.eval_view import ItemView
from fastkernels.report.scopes import level_scopes
from fastkernels.scoring.items import Outcome
from fastkernels.scoring.policies import PUNITIVE_SPEEDUP, Headline, Policy, Target, headline, tolerance_sweep
from fastkernels.scoring.statistics import geometric_mean

Json = dict[str, Any]

POLICIES: Mapping[Policy, str] = {
    Policy.DROP_BLOCKED: "blocked left out",
    Policy.DEFAULT: "default",
    Policy.PUNITIVE: f"{PUNITIVE_SPEEDUP:g} where not right",
}
"""In the order of the published table, in words."""

_NOT_DECIDED = (Verdict.UNTESTABLE, Verdict.JUDGE_ERROR)


@dataclass(frozen=True)
class PolicyRow:
    """One set over the levels of a scope. headlines: by policy, in the order of POLICIES."""

    name: str
    scope: str
    num_blocked: int
    headlines: Mapping[Policy, Headline]


def policy_rows(name: str, targets: Mapping[str, int], ops: Sequence[Json]) -> list[PolicyRow]:
    """By scope. targets: how many there are, by level. ops: what was judged of them, as an entry or a run has it."""
    rows = []
    for scope, levels in level_scopes(op["level"] for op in ops).items():
        counts = [targets[str(level)] for level in levels if str(level) in targets]
        if len(counts) == len(levels):
            rows.append(_row(name, scope, _targets(sum(counts), [op for op in ops if op["level"] in levels])))
    return rows


def run_policies(results: Json) -> list[PolicyRow]:
    """Of every set of a run of kernels. Targets are all registered ops, or those of the level that the command named;
    where it named ops, those of them that were judged."""
    names = dict.fromkeys(record["implementation"] for record in results["ops"])
    sets = {name: [r for r in results["ops"] if r["implementation"] == name] for name in names}
    return [row for name, ops in sets.items() for row in policy_rows(name, _run_targets(results, ops), ops)]


def _run_targets(results: Json, ops: Sequence[Json]) -> dict[str, int]:
    request = results["request"]
    if request.get("target") or request.get("architecture"):
        return Counter(str(op["level"]) for op in ops)
    registered = Counter(str(entry.level) for entry in registered_ops().values())
    level = str(request.get("level") or "")
    return {level: registered[level]} if level else registered


def _targets(num: int, ops: Sequence[Json]) -> list[Target]:
    """What was judged, and what nothing is known of."""
    unknown = [Target(f"not judged {number}", is_blocked=True) for number in range(num - len(ops))]
    return [*map(_target_of_op, ops), *unknown]


def _target_of_op(op: Json) -> Target:
    if op["verdict"] != Verdict.PASSED:
        return Target(op["op"], is_blocked=op["verdict"] in _NOT_DECIDED)
    ratios = [timing["ratio"] for timing in op["timings"] if 0 < timing["ratio"] < math.inf]
    return Target(op["op"], speedup=geometric_mean(ratios) if ratios else None, is_untimed=not ratios)


def _row(name: str, scope: str, targets: Sequence[Target]) -> PolicyRow:
    num_blocked = sum(target.is_blocked for target in targets)
    return PolicyRow(name, scope, num_blocked, {policy: headline(targets, policy) for policy in POLICIES})


def entry_tolerances(items: Iterable[Json]) -> dict[str, Headline]:
    """By scale, of the items of a leaderboard's entry."""
    return _sweep(
        _target_of_item(
            item["item"],
            item["verdict"],
            item["worst_discrepancy"],
            item["thresholds"].get("good"),
            item["speedup"]["ratio"] if item["speedup"] else None,
        )
        for item in items
    )


def view_tolerances(views: Iterable[ItemView]) -> dict[str, Headline]:
    """By scale, of the items of a run with one set."""
    return _sweep(
        _target_of_item(
            view.record["item"],
            view.verdict,
            view.worst,
            view.item.thresholds.good,
            view.speedup.ratio if view.speedup else None,
        )
        for view in views
    )


def _sweep(targets: Iterable[Target]) -> dict[str, Headline]:
    return {str(scale): found for scale, found in tolerance_sweep(list(targets)).items()}


def _target_of_item(name: str, verdict: str, worst: float | None, good: float | None, speedup: float | None) -> Target:
    """worst: the largest discrepancy of any request, None of what was not compared and is right at no scale."""
    if worst is None or good is None:
        return Target(name, is_blocked=verdict == Outcome.BLOCKED)
    ratio = worst / good if good else math.inf if worst else 0.0
    return Target(name, speedup=speedup, error_ratio=ratio, is_untimed=speedup is None)
