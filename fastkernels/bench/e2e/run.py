"""Tier 2: the baseline and a candidate side of one scenario, measured and kept as they go."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import zip_longest
from pathlib import Path
from typing import Any

import torch

from fastkernels.bench.e2e.metrics import (
    engine_shares,
    latencies,
    latency_ratios,
    load_summary,
    median_summary,
    offline_summary,
    pipeline_latencies,
    pipeline_summary,
    ratio,
)
from fastkernels.bench.e2e.offline import Json, Side, SideError, Watcher, run_offline
from fastkernels.bench.e2e.outputs import compare_outputs
from fastkernels.bench.e2e.scenario import Scenario
from fastkernels.bench.e2e.serving import LoadPlan, run_serving
from fastkernels.bench.e2e.tokens import Agreement, agreement
from fastkernels.bench.environment import environment
from fastkernels.bench.run_folder import RunFolder
from fastkernels.sets import Status, resolve_set

KIND = "e2e"
E2E_SCHEMA_VERSION = 1


@dataclass(frozen=True)
class E2ERun:
    """plan None: offline. candidates: sets that replace ops together; the baseline is measured beside them.

    request: the words of the command.
    """

    scenario: Scenario
    candidates: tuple[str, ...] = ()
    num_repeats: int = 3
    warmup_share: float = 0.25
    plan: LoadPlan | None = None
    request: dict[str, Any] = field(default_factory=dict)

    @property
    def device(self) -> str:
        return str(self.scenario.options.get("device") or ("cuda" if torch.cuda.is_available() else "cpu"))

    @property
    def measured(self) -> Scenario:
        """The scenario of every side. On a CPU candidates run eagerly, so the baseline beside them does too: compiled,
        it would be told apart from them by the compiler."""
        if not self.candidates or not self.device.startswith("cpu"):
            return self.scenario
        return replace(self.scenario, options={**self.scenario.options, "enforce_eager": True})

    def sides(self) -> list[Side]:
        """Errors: UnknownNameError, UsageError for a set that is not there."""
        if self.plan is not None and self.plan.endpoint is not None:
            return [Side(self.plan.endpoint.url)]
        sets = [resolve_set(name) for name in self.candidates]
        found = [Side("baseline")]
        if sets:
            found.append(Side("+".join(s.name for s in sets), tuple(str(s.path) for s in sets)))
        return found

    def start(self, out: Any = None) -> RunFolder:
        """A new run folder, once all words are known to be right. Errors: those of the scenario and the sets."""
        self.scenario.check()
        self.sides()
        return RunFolder.create(KIND, self.request, environment(self.device), out)


def run_e2e(run: E2ERun, folder: RunFolder, watcher: Watcher) -> Json:
    """The results, also on disk after every repeat and when this is cut short.

    A candidate side that cannot start or ends is part of the results. Errors: SideError when the baseline does.
    """
    started = time.monotonic()
    sides = run.sides()
    workload = run.scenario.describe(run.scenario.requests() if run.scenario.makes_tokens else ())
    status = "interrupted"

    def keep() -> Json:
        return folder.finish(
            status=status,
            seconds=time.monotonic() - started,
            e2e_schema_version=E2E_SCHEMA_VERSION,
            mode="offline" if run.plan is None else "serving",
            workload=workload,
            sides=[side_json(side, run.plan) for side in sides],
            comparisons=comparisons(sides),
        )

    try:
        with tempfile.TemporaryDirectory(prefix="fastkernels-e2e-") as outputs:
            for number, side in enumerate(sides):
                try:
                    _measure(run, sides, number, watcher, keep, Path(outputs))
                except SideError as error:
                    if not number:
                        raise
                    side.engine["error"] = {"message": str(error), "exit_code": error.exit_code}
        status = "finished"
    finally:
        for number, side in enumerate(sides):
            if 0 in side.tokens:
                (folder.path / f"tokens-{number}.json").write_text(json.dumps(side.tokens[0]))
        results = keep()
    return results


def _measure(
    run: E2ERun, sides: Sequence[Side], number: int, watcher: Watcher, keep: Callable[[], Json], outputs: Path
) -> None:
    """One side of those. outputs: results that are no tokens, a folder a side, are kept there until compared."""
    side = sides[number]

    def kept() -> None:
        keep()

    if run.plan is not None:
        run_serving(run.measured, side, run.plan, run.num_repeats, watcher, kept)
        return
    folder = None
    if len(sides) > 1 and not run.scenario.makes_tokens:
        folder = outputs / str(number)
        folder.mkdir()
    try:
        run_offline(run.measured, side, run.num_repeats, run.warmup_share, watcher, kept, folder)
    finally:
        if folder is not None and number:
            side.outputs = compare_outputs(outputs / "0", folder, range(len(side.repeats)))


def side_json(side: Side, plan: LoadPlan | None) -> Json:
    """One side's entry in results.json: every repeat with its requests, and the median repeat's figures."""
    repeats = []
    for repeat in side.repeats:
        records = repeat.get("_records")
        if records is not None:
            summary = load_summary(records, plan.goodput_ms if plan else None)
        else:
            summary = (pipeline_summary if _is_pipeline(repeat) else offline_summary)(repeat)
        engine = {
            **engine_shares(repeat["counters"]),
            "peak_memory_bytes": repeat["peak_memory_bytes"],
            "gpu_busy_share": repeat["gpu_busy_share"],
        }
        kept = {key: value for key, value in repeat.items() if not key.startswith("_")}
        repeats.append({**kept, "summary": summary, "engine": engine})
    found: Json = {
        "name": side.name,
        "candidates": list(side.candidates),
        "startup_seconds": side.startup_seconds,
        "engine": {key: value for key, value in side.engine.items() if key != "error"},
        "error": side.engine.get("error"),
        "is_complete": side.is_complete,
        "replacements": side.replacements,
        "repeats": repeats,
    }
    if repeats:
        found["summary"] = median_summary([r["summary"] for r in repeats])
        middle = next(r for r in repeats if r["summary"]["duration_s"] == found["summary"]["duration_s"])
        found["engine_summary"] = middle["engine"]
    return found


def comparisons(sides: Sequence[Side]) -> list[Json]:
    """Each other side with the baseline: speed and latencies, none as long as one has no whole repeat, nor of a side of
    which no replacement was called: it was the baseline; and the tokens or outputs of every repeat that both have. A
    side of which nothing came back is compared with none.

    The speed has no interval: sides run one after the other, so that spread within each says nothing of drift between.
    """
    if len(sides) < 2:
        return []
    baseline, found = sides[0], []
    for side in sides[1:]:
        if not all(any(r["seconds"] for r in s.repeats) for s in (baseline, side)):
            continue
        seconds = [[r["seconds"] for r in _whole(s) if r["seconds"]] for s in (baseline, side)]
        differs = not _has_replaced_nothing(side)
        found.append(
            {
                "side": side.name,
                "has_replaced": differs,
                "latency": latency_ratios(*(_all_latencies(s) for s in (baseline, side))) if differs else {},
                "speed": {"ratio": ratio(*seconds)["ratio"]} if all(seconds) and differs else None,
                "outputs": side.outputs,
                "tokens": [a.to_json() for a in _agreements(baseline, side)],
                "has_equal_digests": [
                    a["digest"] == b["digest"] for a, b in zip(baseline.repeats, side.repeats, strict=False)
                ],
            }
        )
    return found


def _has_replaced_nothing(side: Side) -> bool:
    """Known when the side has ended."""
    return side.is_complete and bool(side.candidates) and all(r["status"] != Status.REPLACED for r in side.replacements)


def _whole(side: Side) -> list[Json]:
    """Repeats that were not cut short and of which every request was answered: less work ends sooner."""
    return [r for r in side.repeats if r.get("is_whole", True) and all(q.is_complete for q in r.get("_records", ()))]


def _agreements(baseline: Side, side: Side) -> list[Agreement]:
    """Of the repeats in which both answered a request."""
    found = []
    for number in sorted(set(baseline.tokens) & set(side.tokens)):
        both = list(zip_longest(baseline.tokens[number], side.tokens[number]))
        found.append(agreement([expected for expected, _ in both], [given for _, given in both]))
    return [one for one in found if one.num_answers]


def _is_pipeline(repeat: Json) -> bool:
    return "work_times" in repeat


def _all_latencies(side: Side) -> dict[str, list[float]]:
    if any(_is_pipeline(repeat) for repeat in side.repeats):
        return pipeline_latencies(side.repeats)
    return latencies([record for repeat in _whole(side) for record in repeat.get("_records", ())])
