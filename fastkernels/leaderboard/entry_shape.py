"""What the site relies on in an entry, as types; entry.py says what the parts mean."""

from __future__ import annotations

from typing import Any, Literal, NotRequired, TypedDict

from fastkernels.harness.verdict import Speed
from fastkernels.report.load import Environment, environment_fault
from fastkernels.report.shapes import Finite, Measured, fault

Json = dict[str, Any]


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
    noise_floor: Finite
    baseline_us: Finite | None
    candidate_us: Finite | None
    warm_baseline_us: Finite | None
    warm_candidate_us: Finite | None
    graph_baseline_us: Finite | None
    graph_candidate_us: Finite | None
    baseline_roofline_share: Finite
    candidate_roofline_share: Finite
    is_launch_bound: bool


class _Error(TypedDict):
    family: str
    dtype: str
    verdict: str
    num_calls: int
    row_share: Finite | None
    bias_share: Finite | None
    max_abs: Finite | None


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


class _KernelsEntry(_Entry):
    manifest: _Manifest | None
    targets: dict[str, int]
    scores: dict[str, _OpScore]
    ops: list[_Op]
    sources: dict[str, str]


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


class _EvalScores(TypedDict):
    deployable: _Deployable
    macroeval: _Blends
    intervals: _Intervals
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
    scores: _EvalScores
    items: list[_Item]


def entry_fault(entry: Json) -> str:
    """What the site could not show, by its place in the entry; "" of a whole one."""
    return (
        fault(entry, _Entry, "")
        or environment_fault(entry["environment"])
        or (_kernels_fault(entry) if entry["kind"] == "kernels" else _eval_fault(entry))
    )


def _kernels_fault(entry: Json) -> str:
    if found := fault(entry, _KernelsEntry, ""):
        return found
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
