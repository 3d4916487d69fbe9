"""Small implementation sets, each with one trait, and what tests of `fastkernels eval` share."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import psutil

import fastkernels.demo
from fastkernels.bench.eval.evaluation import Evaluation
from fastkernels.bench.eval.implementations import read_sets
from fastkernels.bench.eval.plan import Plan
from fastkernels.bench.eval.processes import Nursery
from fastkernels.bench.eval.scenarios import EvalScenario, WorkloadPart
from fastkernels.scoring.items import Family, Thresholds
from fastkernels.scoring.manifest import MANIFEST_VERSION

SETS = Path(__file__).parent
FASTER = Path(fastkernels.demo.__file__).parent / "faster"
"""Of the demonstration: a rms_norm that is right and quick."""

THRESHOLDS = Thresholds(good=0.01, bad=0.5)

DLRM = EvalScenario("tiny-dlrmv2", "float32", 1, (WorkloadPart("examples", 16),), (WorkloadPart("examples", 4),))
LLAMA = EvalScenario(
    "tiny-llama", "float32", 1, (WorkloadPart("balanced", 4, 0.05),), (WorkloadPart("single", 2, 0.05),)
)
QWEN2_VL = EvalScenario(
    "tiny-qwen2_vl", "float32", 1, (WorkloadPart("balanced", 4, 0.05),), (WorkloadPart("single", 3, 0.05),)
)

_NUMBER = 10**7 + os.getpid()
"""Seconds that a hanging set's own process sleeps: no other test's does for as long."""


def hanging_set(folder: Path) -> Path:
    """The set "hangs" in a folder of its own; see `hanging`."""
    file = folder / "hanging" / "L1" / "relu.py"
    file.parent.mkdir(parents=True)
    file.write_text((SETS / "hangs" / "L1" / "relu.py").read_text().replace("3141592", str(_NUMBER)))
    return folder / "hanging"


def hanging() -> list[psutil.Process]:
    """What a hanging set of this test's process has started beside itself and still runs."""
    return [p for p in psutil.process_iter(["cmdline"]) if p.info["cmdline"] == ["sleep", str(_NUMBER)]]


def plan_for(scenario: EvalScenario, *sets: str | Path, **changes: Any) -> Plan:
    """Sets by the name of their folder here, or by path."""
    found = read_sets([str(SETS / name if (SETS / name).is_dir() else name) for name in sets])
    fields: dict[str, Any] = {
        "thresholds": THRESHOLDS, "device": "cpu", "seed": 7, "num_restarts": 3, "num_passes": 2,
        "num_checked": 64, "pass_seconds": 20.0,
    }  # fmt: skip
    return Plan(scenario, tuple(s.record for s in found), **{**fields, **changes})


def items_of(nursery: Nursery, plan: Plan) -> dict[str, dict[str, Any]]:
    """By the set's name, what comes of a plan."""
    events: list[dict[str, Any]] = []
    Evaluation(plan, nursery, events.append).run()
    return {e["record"]["implementation"]: e["record"] for e in events if e["event"] == "item"}


def write_manifest(path: Path, good: float = 0.01, version: str = MANIFEST_VERSION) -> Path:
    entry = {
        "discrepancy": "for tests", "good": {"float32": good}, "bad": 0.5, "margin": 4, "provenance": {"command": "-"}
    }  # fmt: skip
    body = {"version": version, "tau": 1.0, "published": {}, "families": {str(name): entry for name in Family}}
    path.write_text(json.dumps(body))
    return path
