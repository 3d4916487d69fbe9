"""What the site relies on in an entry, as types; entry.py says what the parts mean."""

from __future__ import annotations

from collections import Counter
from typing import Any, Literal, NotRequired, TypedDict

from fastkernels.harness.verdict import Speed
from fastkernels.report.load import Environment, environment_fault
from fastkernels.report.shapes import Finite, Measured, NotNegative, fault

Json = dict[str, Any]

_WITH_BOUNDS = ("scores", "subset_scores", "ops", "items")
_MOST_TARGETS = 10_000
"""Of one level: every one is drawn again and again by the bootstrap."""


class _Mean(TypedDict):
    speedup: Measured
    low: Measured
    high: Measured


class _Interval(TypedDict):
    ratio: Measured
    low: Measured
    high: Measured


class _Bounds(TypedDict):
    low: Measured
    high: Measured


class _Fast(TypedDict):
    num_faster: int
    num_targets: int
    share: Finite
    low: Finite
    high: Finite


class _Run(TypedDict):
    run_id: str
    created: str
    request: dict[str, Any]
    seconds: Finite
    results_sha256: str


class _Named(TypedDict):
    name: str
    sha256: str


class _Manifest(TypedDict):
    version: str
    sha256: str


class _Entry(TypedDict):
    agent: str
    kind: Literal["kernels", "eval"]
    scenario_set: str
    added: str
    run: _Run
    environment: Environment
    hardware: str
    marks: list[str]
    implementation: _Named


class _Timing(_Interval):
    phase: str
    dtype: str
    shapes: str
    init: NotRequired[str]
    speed: Speed
    num_pairs: int
    noise_floor: NotNegative
    baseline_us: NotNegative | None
    candidate_us: NotNegative | None
    warm_baseline_us: NotNegative | None
    warm_candidate_us: NotNegative | None
    graph_baseline_us: NotNegative | None
    graph_candidate_us: NotNegative | None
    baseline_roofline_share: NotNegative
    candidate_roofline_share: NotNegative
    is_launch_bound: bool


class _Error(TypedDict):
    family: str
    dtype: str
    verdict: str
    num_calls: int
    row_share: NotNegative | None
    bias_share: NotNegative | None
    max_abs: NotNegative | None


class _Op(TypedDict):
    op: str
    level: int
    verdict: str
    message: str
    file: str
    source: str
    baseline_source: str
    launched: NotRequired[list[str]]
    kernels: list[str]
    timings: list[_Timing]
    speed: Literal["WIN", "LOSS", "TIE", "MIXED", ""]
    speedup: Measured | None
    low: Measured | None
    high: Measured | None
    errors: list[_Error]


class _OpScore(TypedDict):
    num_targets: int
    num_judged: int
    num_valid: int
    num_wins: int
    num_losses: int
    num_ties: int
    deployable: _Mean
    speedup: _Mean | None
    correctness: Finite
    coverage: Finite
    fast_1: _Fast
    fast_1_5: _Fast


class _JudgedBy(TypedDict):
    cases_sha256: str | None
    tolerances_sha256: str | None
    dtype: list[str] | None
    device: str
    quick: bool | None
    check_only: bool | None
    timeout: Finite | None
    memory_gb: Finite | None


class _KernelsEntry(_Entry):
    manifest: _Manifest | None
    judged_by: NotRequired[_JudgedBy]
    targets: dict[str, int]
    scores: dict[str, _OpScore]
    ops: list[_Op]
    sources: dict[str, str]
    cut_sources: NotRequired[dict[str, int]]


class _Deployable(_Mean):
    num_items: int
    num_valid: int
    validity: Finite
    num_wins: int
    num_ties: int
    num_losses: int


class _Family(TypedDict):
    correctness: Finite
    num_items: int
    num_valid: int
    speedup: Measured | None


class _Blend(TypedDict):
    score: Finite
    speedup: Measured | None
    correctness: Finite
    coverage: Finite
    coverage_macro: Finite
    families: dict[str, _Family]


_Blends = TypedDict("_Blends", {"0.0": _Blend, "0.5": _Blend, "1.0": _Blend})


class _Macro(TypedDict):
    hierarchical: _Bounds | None


class _Intervals(TypedDict):
    macro: _Macro


class _PartScores(TypedDict):
    deployable: _Deployable
    macroeval: _Blends
    intervals: _Intervals


class _EvalScores(_PartScores):
    fast_1: _Fast


class _Replaced(TypedDict):
    op: str
    statuses: list[str]


class _Part(TypedDict):
    verdict: str
    speedup: _Interval | None


class _Item(_Part):
    item: str
    family: str
    dtype: str
    message: str
    reason: str
    speed: Literal["WIN", "LOSS", "TIE", ""]
    correctness: Finite
    worst_discrepancy: Finite | None
    thresholds: dict[str, Finite]
    throughput: _Interval | None
    latency: _Interval | None
    replaced: list[_Replaced]
    at_fault: dict[str, str]
    kept: list[str]
    subset: _Part | None


class _EvalEntry(_Entry):
    manifest: _Manifest
    scenarios_sha256: NotRequired[str]
    scenarios_note: NotRequired[str]
    scores: _EvalScores
    subset_scores: NotRequired[_PartScores | None]
    items: list[_Item]


def entry_fault(entry: Json) -> str:
    """What the site could not show, by its place in the entry; "" of a whole one."""
    return (
        fault(entry, _Entry, "")
        or environment_fault(entry["environment"])
        or (_kernels_fault(entry) if entry["kind"] == "kernels" else _eval_fault(entry))
        or _bounds_fault(entry)
    )


def _bounds_fault(entry: Json) -> str:
    """Bounds rise, about the ratio where one was measured; a mean may lie outside of its bootstrap's percentiles."""
    waiting: list[tuple[str, Any]] = [(name, entry[name]) for name in _WITH_BOUNDS if name in entry]
    while waiting:
        where, value = waiting.pop()
        if isinstance(value, list):
            waiting += [(f"{where}[{number}]", item) for number, item in enumerate(value)]
        if not isinstance(value, dict):
            continue
        waiting += [(f"{where}.{name}", item) for name, item in value.items()]
        rising = [value.get(name) for name in ("low", "ratio", "high")]
        found = [number for number in rising if isinstance(number, int | float)]
        if len(found) > 1 and found != sorted(found):
            return f"{where} is {' to '.join(map(str, found))}, which does not rise"
    return ""


def _kernels_fault(entry: Json) -> str:
    if found := fault(entry, _KernelsEntry, ""):
        return found
    if large := [level for level, count in entry["targets"].items() if not 0 <= count <= _MOST_TARGETS]:
        return f"targets[{large[0]!r}] is {entry['targets'][large[0]]}, not from 0 to {_MOST_TARGETS}"
    names, levels = (Counter(op[key] for op in entry["ops"]) for key in ("op", "level"))
    if several := [name for name, count in names.items() if count > 1]:
        return f"ops holds {several[0]} more than once"
    for level, count in levels.items():
        if count > entry["targets"].get(str(level), 0):
            return f"ops holds {count} of level {level}, more than targets says there are"
    for number, op in enumerate(entry["ops"]):
        for name in (op["source"], op["baseline_source"]):
            if name and name not in entry["sources"]:
                return f"sources lacks {name}, which ops[{number}] names"
        if len({op[name] is None for name in ("speedup", "low", "high")}) > 1:
            return f"ops[{number}] has a part of speedup, low and high"
    return ""


def _eval_fault(entry: Json) -> str:
    if found := fault(entry, _EvalEntry, ""):
        return found
    for number, item in enumerate(entry["items"]):
        if item["worst_discrepancy"] is not None and not {"good", "bad"} <= item["thresholds"].keys():
            return f"items[{number}].thresholds lacks good or bad"
    return ""
