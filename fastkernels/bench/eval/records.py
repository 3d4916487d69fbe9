"""What an eval run leaves behind: plain data that results.json holds, and scoring and reports read.

results.json of a run of kind "eval", beside what every run has (schema_version, kind, run_id, created, request,
environment, status, seconds):

eval_schema_version  EVAL_SCHEMA_VERSION
scenario_set         its name
manifest             {"version", "sha256"} of scoring/manifest.json
sets                 SetRecord of every implementation set
items                ItemRecord of every scenario with every set
scores               by set: what scoring/scores.py makes of its items; it can be reckoned again from them
subset_scores        the same of sets that broke a model, in the largest part that can be deployed, whose items stand in
                     the place of the whole set's. {} where no set has such a part; absent in older runs
hosts                of a run over a cluster: the host of each scenario; their environment is the run's
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

EVAL_SCHEMA_VERSION = 1

TOO_FEW_DEVICES, BASELINE_FAILED = "TOO_FEW_DEVICES", "BASELINE_FAILED"
"""Reasons of BLOCKED items."""


@dataclass
class SetRecord:
    """ops: those that it offers, by name. sha256: over its files' places and contents."""

    name: str
    path: str
    ops: list[str]
    sha256: str


@dataclass
class PassRecord:
    """One workload on both sides in one restart: seconds of each pass (throughput) or of each request (latency), in
    order, by the evaluating process's clock. kind: "throughput" or "latency"."""

    restart: int
    workload: str
    kind: str
    reference_s: list[float]
    candidate_s: list[float]


@dataclass
class SubsetRecord:
    """Of a set that breaks a model: the ops at fault, each with its reason, and the largest part that can be deployed,
    measured in its place; `item` is None when nothing of the set is left. num_runs: untimed ones that found them."""

    at_fault: dict[str, str]
    kept: list[str]
    item: ItemRecord | None = None
    num_runs: int = 0


@dataclass
class ItemRecord:
    """One scenario with one set.

    outcome: scoring.items.Outcome. reason: CRASH, TIMEOUT, IMPORT_ERROR, SIGNATURE_ERROR, WRONG_SHAPE, WRONG_DTYPE,
    NOT_FINITE, MISSING_ANSWER, TOO_FEW_DEVICES, BASELINE_FAILED; "" otherwise. thresholds: {"good", "bad", "tau"} as
    they held.
    replacements: what became of each op on each rank (overlay.Overlay.report). discrepancies: D_f of each request.
    figures: what else was compared, by name. reference_noise: log ratios of the baseline's passes to those of the
    baseline again, a second process of every restart. orders: the sides of each restart as they ran one after another.
    engine: by side, what each restart's process told of itself: seconds to start, the engine's counters. confinement:
    what held for the candidate's process. is_complete: false of what an interruption or a failing baseline left.
    """

    item: str
    model: str
    architecture: str
    family: str
    dtype: str
    num_ranks: int
    implementation: str
    outcome: str
    reason: str = ""
    message: str = ""
    thresholds: dict[str, float] = field(default_factory=dict)
    replacements: list[dict[str, Any]] = field(default_factory=list)
    discrepancies: list[float] = field(default_factory=list)
    figures: dict[str, float] = field(default_factory=dict)
    passes: list[PassRecord] = field(default_factory=list)
    reference_noise: list[float] = field(default_factory=list)
    subset: SubsetRecord | None = None
    seconds: float = 0.0
    set_sha256: str = ""
    orders: list[list[str]] = field(default_factory=list)
    engine: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    confinement: dict[str, Any] = field(default_factory=dict)
    is_complete: bool = True

    def to_json(self) -> dict[str, Any]:
        return asdict(self)
