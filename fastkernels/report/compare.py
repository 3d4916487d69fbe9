"""Two runs beside each other: which verdicts changed, and which speedups moved beyond their intervals."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from fastkernels.harness.verdict import Verdict
from fastkernels.report.cases import case_name, paired
from fastkernels.report.view import headline

Json = dict[str, Any]


@dataclass(frozen=True)
class Change:
    """One (op, set), and one timed case of it when both runs timed the same one.

    change: "new", "gone", "now passes", "no longer passes", "another verdict", "faster", "slower", "same" or
    "not comparable" (passed in both, timed on other shapes or not at all). ratio: the second run's speedup over
    the first's, with its interval; None when not comparable.
    """

    op: str
    level: int
    implementation: str
    case: str
    change: str
    verdict_before: str | None
    verdict_after: str | None
    message: str
    is_source_changed: bool
    speedup_before: float | None = None
    speedup_after: float | None = None
    ratio: float | None = None
    low: float | None = None
    high: float | None = None

    @property
    def is_changed(self) -> bool:
        return self.change not in ("same", "not comparable")


@dataclass(frozen=True)
class Comparison:
    """warnings: what makes the two hard to compare."""

    before: Json
    after: Json
    changes: list[Change]
    warnings: list[str]

    def to_json(self) -> Json:
        return {
            "before": self.before["run_id"],
            "after": self.after["run_id"],
            "warnings": self.warnings,
            "changes": [asdict(change) for change in self.changes],
        }


def hardware(results: Json) -> str:
    """What a time depends on: the GPU, or the processor and its number of cores."""
    environment = results["environment"]
    gpu = environment.get("gpu")
    if gpu:
        return str(gpu["name"])
    return f"{environment.get('cpu') or 'unknown processor'} with {environment.get('num_cores')} cores"


def differences(before: Json, after: Json) -> list[str]:
    """Versions and cases that differ, each in a sentence; hardware is not among them."""
    found = []
    old, new = before["environment"], after["environment"]
    for name in sorted({*old["packages"], *new["packages"]}):
        versions = [e["packages"].get(name, "absent") for e in (old, new)]
        if versions[0] != versions[1]:
            found.append(f"{name} was {versions[0]} and is {versions[1]}.")
    if old.get("commit") != new.get("commit"):
        found.append(f"FastKernels was at {old.get('commit')} and is at {new.get('commit')}: the baseline may differ.")
    if differing := _other_cases(before.get("case_hashes") or {}, after.get("case_hashes") or {}):
        found.append(f"The captured cases differ: {', '.join(differing)}.")
    return found


def _other_cases(before: Json, after: Json) -> list[str]:
    """Ops that both runs judged on cases, and not on the same; all when one run had none."""
    if not before or not after:
        return sorted({*before, *after})
    return sorted(op for op in before.keys() & after.keys() if before[op] != after[op])


def hardware_warning(before: Json, after: Json) -> list[str]:
    if hardware(before) == hardware(after):
        return []
    return [
        f"Different hardware: {hardware(before)}, then {hardware(after)}. Speedups are against another "
        "baseline on each; what moved may be the machine."
    ]


def compare_runs(before: Json, after: Json) -> Comparison:
    warnings = [*hardware_warning(before, after), *differences(before, after)]
    old = {(r["op"], r["implementation"]): r for r in before["ops"]}
    new = {(r["op"], r["implementation"]): r for r in after["ops"]}
    changes = []
    for key in sorted({*old, *new}, key=lambda k: ((new.get(k) or old[k])["level"], k)):
        changes += _changes(old.get(key), new.get(key))
    return Comparison(before, after, changes, warnings)


def _changes(old: Json | None, new: Json | None) -> list[Change]:
    if old is None or new is None:
        return [_verdict_change(old, new, "new" if old is None else "gone")]
    is_old, is_new = old["verdict"] == Verdict.PASSED, new["verdict"] == Verdict.PASSED
    if is_old != is_new:
        return [_verdict_change(old, new, "now passes" if is_new else "no longer passes")]
    if not is_new:
        return [_verdict_change(old, new, "same" if old["verdict"] == new["verdict"] else "another verdict")]
    shared = paired(old["timings"], new["timings"])
    if not shared:
        is_timed = bool(old["timings"] or new["timings"])
        return [_verdict_change(old, new, "not comparable" if is_timed else "same")]
    return [_speed_change(old, new, a, b) for a, b in shared]


def _verdict_change(old: Json | None, new: Json | None, change: str, **figures: Any) -> Change:
    record = new or old
    assert record is not None
    return Change(
        op=record["op"],
        level=record["level"],
        implementation=record["implementation"],
        case=figures.pop("case", ""),
        change=change,
        verdict_before=old["verdict"] if old else None,
        verdict_after=new["verdict"] if new else None,
        message=headline(new["message"]) if new else "",
        is_source_changed=bool(old and new and old["source_sha256"] != new["source_sha256"]),
        **figures,
    )


def _speed_change(old: Json, new: Json, before: Json, after: Json) -> Change:
    figures, change = change_of_speed(before, after)
    return _verdict_change(old, new, change, case=case_name(after), **figures)


def change_of_speed(before: Json, after: Json) -> tuple[dict[str, float], str]:
    """Faster or slower when the whole interval lies beyond both runs' noise floors.

    before, after: ratio, low, high and noise_floor of each.
    """
    ratio, low, high = ratio_of_speedups(before, after)
    floor = max(before["noise_floor"], after["noise_floor"])
    change = "faster" if low > 1 + floor else "slower" if high < 1 / (1 + floor) else "same"
    figures = {"speedup_before": before["ratio"], "speedup_after": after["ratio"]}
    return {**figures, "ratio": ratio, "low": low, "high": high}, change


def ratio_of_speedups(before: Json, after: Json) -> tuple[float, float, float]:
    """after / before with a 95 % interval from the two independent ones (MOVER on logarithms).

    https://doi.org/10.1002/sim.3095
    """
    ratio = math.log(after["ratio"] / before["ratio"])
    down = math.hypot(math.log(after["ratio"] / after["low"]), math.log(before["high"] / before["ratio"]))
    up = math.hypot(math.log(after["high"] / after["ratio"]), math.log(before["ratio"] / before["low"]))
    return math.exp(ratio), math.exp(ratio - down), math.exp(ratio + up)
