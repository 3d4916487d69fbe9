"""Tier 1: implementations of ops judged one by one, each result kept the moment it is there."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from fastkernels.bench.environment import environment
from fastkernels.bench.resume import header_of, refuse_other_machine
from fastkernels.bench.run_folder import RunFolder
from fastkernels.capture.case import Case
from fastkernels.capture.digest import case_digest
from fastkernels.capture.store import CaseSet
from fastkernels.errors import EnvironmentProblem, UsageError
from fastkernels.harness.ceilings import Ceilings
from fastkernels.harness.judge import Judge, JudgeConfig
from fastkernels.harness.measurements import tolerances_digest
from fastkernels.harness.records import OpRecord
from fastkernels.harness.verdict import Verdict
from fastkernels.harness.workers import Limits, Nursery
from fastkernels.registry import OpEntry
from fastkernels.sets import ImplementationSet, folder_digest

Item = tuple[OpEntry, ImplementationSet]

KIND = "kernels"
_JUDGED_BY = ("device", "dtype", "cases", "quick", "check_only", "timeout", "memory_gb")
"""Words of the command that change a judgement; the others say which judgements are made."""


@dataclass(frozen=True)
class Progress:
    """What a sweep tells while it runs: each is called with what it is about; stage also with the share of the op's
    judging that is done."""

    begins: Callable[[Item, int, int], None] = lambda item, number, total: None
    stage: Callable[[str, float], None] = lambda text, share: None
    ends: Callable[[OpRecord], None] = lambda record: None


@dataclass(frozen=True)
class Sweep:
    """What is judged. items: (op, set) pairs; cases: captured ones, or None; request: the words of the command."""

    items: Sequence[Item]
    config: JudgeConfig
    cases: CaseSet | None = None
    limits: Limits = field(default_factory=Limits)
    request: dict[str, Any] = field(default_factory=dict)


def plan_items(entries: Sequence[OpEntry], sets: Sequence[ImplementationSet]) -> list[Item]:
    """Every op of `entries` that a set offers, lowest level first.

    Errors: UsageError when no set offers any, or two sets have one name.
    """
    for name in {s.name for s in sets}:
        paths = [str(s.path) for s in sets if s.name == name]
        if len(paths) > 1:
            raise UsageError(f"{len(paths)} sets are named {name!r}: {', '.join(paths)}. Rename a folder.")
    items = [(entry, s) for s in sets for entry in s.ops() if entry in entries]
    if not items:
        names = ", ".join(str(s.path) for s in sets)
        raise UsageError(
            f"No implementation of the chosen ops in {names}. Write one with `fastkernels stubs --target OP`, "
            "or name a set with --candidates (see `fastkernels list --sets`)."
        )
    return sorted(items, key=lambda item: (item[0].level, item[0].name, item[1].name))


def run_sweep(sweep: Sweep, folder: RunFolder, progress: Progress) -> dict[str, Any]:
    """Judge every item that `folder` does not hold yet; results.json is written even when this is cut short. A fault of
    the judge is that op's JUDGE_ERROR, and so is a file of the op's that changed while it was judged.

    Errors: EnvironmentProblem when the device is missing.
    """
    require_device(sweep.config.device)
    started = time.monotonic()
    done = {
        (r["implementation"], r["op"], r["source_sha256"]): r
        for r in folder.records()
        if r["verdict"] != Verdict.JUDGE_ERROR  # to be tried again
    }
    earlier, names = folder.results(), {s.name for _, s in sweep.items}
    others = [s for s in earlier.get("sets", ()) if s["name"] not in names]  # of which this sweep judges nothing
    judged: set[str] = set()
    status = "interrupted"
    ceilings: Ceilings | None = None
    try:
        with Nursery(sweep.config.device, sweep.limits, _preload(sweep.config.device)) as nursery:
            judge = Judge(sweep.config, nursery, progress.stage)
            ceilings = judge.ceilings
            for number, item in enumerate(sweep.items):
                entry, implementations = item
                progress.begins(item, number, len(sweep.items))
                source, digest = judge.source_sha256(*item), folder_digest(implementations.path)
                if kept := done.get((implementations.name, entry.name, source)):
                    if kept.get("set_sha256") != digest:  # by a file that this op does not name
                        folder.keep({**kept, "set_sha256": digest})
                    continue
                chosen = cases_of(sweep.cases, entry)
                record = judge.judge(entry, implementations, chosen)
                record.set_sha256 = digest
                _mark_changed(record, source, judge.source_sha256(*item))
                if sweep.cases is not None and not chosen:
                    _mark_never_called(record, sweep.cases)
                folder.add(record)
                judged.add(entry.name)
                progress.ends(record)
        status = "finished"
    finally:
        extra: dict[str, Any] = {
            "status": status,
            "seconds": time.monotonic() - started,
            "sets": [*others, *sets_of(sweep.items)],  # as they are now: what changed on the way shows beside it
        }
        if ceilings is not None:
            extra["ceilings"] = ceilings.to_json()
        if sweep.cases is not None:
            hashes = case_hashes(sweep.cases, {entry.name for entry, _ in sweep.items})
            of_kept = {op: one for op, one in earlier.get("case_hashes", {}).items() if op not in judged}
            extra["case_hashes"] = {**hashes, **of_kept}
        results = folder.finish(**extra)
    return results


def _mark_changed(record: OpRecord, before: str, after: str) -> None:
    """before, after: SHA-256 of the op's files. Which of them the workers read, nobody knows."""
    found = {before, record.source_sha256, after}
    if len(found) > 1 and record.verdict != Verdict.JUDGE_ERROR:
        record.verdict = Verdict.JUDGE_ERROR.value
        states = ", ".join(sorted(sha256[:12] for sha256 in found))
        record.message = (
            f"The files of {record.op} changed while it was judged (SHA-256 {states}): of which of them this is a "
            "judgement cannot be told."
        )


def _mark_never_called(record: OpRecord, cases: CaseSet) -> None:
    """Right on drawn inputs is not enough when the workload that was captured never reaches the op."""
    if record.verdict == Verdict.PASSED:
        record.verdict = Verdict.NEVER_CALLED.value
        record.message = f"Right on drawn inputs, but {cases.model} on {cases.workload} never calls {record.op}."


def sets_of(items: Sequence[Item]) -> list[dict[str, str]]:
    """Name, place and content of the sets, as an eval run has them: their runs find each other by it."""
    found = {s.name: s.path.resolve() for _, s in items}
    return [{"name": name, "path": str(path), "sha256": folder_digest(path)} for name, path in found.items()]


def cases_of(cases: CaseSet | None, entry: OpEntry) -> list[Case]:
    return [] if cases is None else [case for case in cases.records if case.op == entry.name]


def case_hashes(cases: CaseSet, names: set[str]) -> dict[str, list[str]]:
    """SHA-256 of every case of these ops, by op; of one with drawn values, over its description and moments."""
    hashes: dict[str, list[str]] = {}
    for case in cases.records:
        if case.op not in names:
            continue
        if case.moments:
            described = repr((case.op, sorted(case.init.items(), key=str), case.shapes(), sorted(case.moments.items())))
            digest = hashlib.sha256(described.encode()).hexdigest()
        else:
            digest = case_digest(case)
        hashes.setdefault(case.op, []).append(digest)
    return hashes


def cases_digest(cases: CaseSet | None) -> str | None:
    """SHA-256 over all cases of a set, wherever it lies and whoever captured it; None without one."""
    if cases is None:
        return None
    return hashlib.sha256(json.dumps(case_hashes(cases, set(cases.ops)), sort_keys=True).encode()).hexdigest()


def start_run(sweep: Sweep, out: Path | None, kind: str = KIND) -> RunFolder:
    """A new run folder; kind: the command that made it.

    Errors: EnvironmentProblem when the device is missing; UsageError when `out` holds a run.
    """
    require_device(sweep.config.device)
    here = environment(sweep.config.device)
    files = {"cases_sha256": cases_digest(sweep.cases), "tolerances_sha256": tolerances_digest()}
    return RunFolder.create(kind, sweep.request, here, out, **files)


def resumed_run(sweep: Sweep, path: Path) -> RunFolder:
    """A run folder to go on with.

    Errors: RunFolderError for another kind of run; UsageError for words, captured cases, tolerances, a machine or
    versions by which the rest would be judged otherwise; EnvironmentProblem when the device is missing.
    """
    folder = RunFolder(path)
    header = header_of(folder, KIND)
    before = header["request"]
    for name in _JUDGED_BY:
        was, now = before.get(name), sweep.request.get(name)
        if was != now and not (name == "cases" and was and now and Path(was).resolve() == Path(now).resolve()):
            raise UsageError(
                f"{path} was started with {_said(name, was)}; it cannot go on with {_said(name, now)}, which judges "
                "otherwise. Give the words that it was started with, or start a new run."
            )
    was, now = header.get("cases_sha256"), cases_digest(sweep.cases)
    if was != now:
        raise UsageError(
            f"{path} was judged on a case set of SHA-256 {str(was)[:12]}; --cases {sweep.request.get('cases')} holds "
            f"one of {str(now)[:12]} now. Give the set that it was started with, or start a new run."
        )
    was, now = header.get("tolerances_sha256"), tolerances_digest()
    if was != now:
        raise UsageError(
            f"{path} was judged by tolerances of SHA-256 {str(was)[:12]}; here they are {now[:12]}. Start a new run."
        )
    require_device(sweep.config.device)
    refuse_other_machine(path, header.get("environment"), environment(sweep.config.device))
    return folder


def _said(name: str, value: Any) -> str:
    """A word of the command as it was given."""
    option = f"--{name.replace('_', '-')}"
    if value is None or value is False:
        return f"no {option}"
    values = value if isinstance(value, list) else [value]
    return option if value is True else " ".join(f"{option} {v}" for v in values)


def require_device(device: str) -> None:
    """Errors: EnvironmentProblem when it is a GPU that is not there."""
    kind, _, number = device.partition(":")
    if kind != "cuda":
        return
    if not torch.cuda.is_available():
        raise EnvironmentProblem(f"--device {device}: no GPU is visible to torch here. Use --device cpu.")
    if number and not (number.isdecimal() and int(number) < torch.cuda.device_count()):
        seen = torch.cuda.device_count()
        raise EnvironmentProblem(f"--device {device} is not one of the {seen} that torch sees; the first is cuda:0.")


def _preload(device: str) -> tuple[str, ...]:
    return ("fastkernels.kernels.backend",) if device.startswith("cuda") else ()
