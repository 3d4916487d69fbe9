"""A run folder read with care: what a report relies on is there, or one message says what is not."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

from fastkernels import env
from fastkernels.bench.run_folder import RunFolder
from fastkernels.errors import RunFolderError
from fastkernels.harness.records import CaseRecord, NullRecord, OpRecord, Samples, TimingRecord
from fastkernels.report.eval_view import check_eval

_TOP = {"run_id": str, "kind": str, "created": str, "status": str, "request": dict, "environment": dict, "ops": list}
_PARTS: dict[str, type] = {"cases": CaseRecord, "timings": TimingRecord, "nulls": NullRecord}
_LATER: dict[type, dict[str, Any]] = {
    OpRecord: {"set_sha256": ""},
    TimingRecord: {"init": "", "late_us": 0.0, "varied": []},
}
"""What runs of before do not have, and what it is there."""


def find_run(name: Path) -> Path:
    """A folder by path, or by name among the runs of FASTKERNELS_HOME.

    Errors: RunFolderError when there is none.
    """
    for path in (name, env.home() / name):
        if path.is_dir():
            return path
    if name.is_file():
        raise RunFolderError(f"{name} is a file; a run is a folder with run.json and results.json.")
    raise RunFolderError(f"There is no run folder {name}, nor one of that name in {env.home()}.")


def load_results(run: Path) -> dict[str, Any]:
    """results.json of a run, or what there is of an unfinished one.

    Errors: RunFolderError when a file is missing, cut off, of another version or lacks a field.
    """
    results = RunFolder(run).results()
    for name, wanted in _TOP.items():
        if not isinstance(results.get(name), wanted):
            raise RunFolderError(f"{run}: {name!r} is missing or not a {wanted.__name__}; the results are damaged.")
    if not isinstance(results["environment"].get("packages"), dict):
        raise RunFolderError(f"{run}: the environment names no packages; the results are damaged.")
    for number, record in enumerate(results["ops"]):
        _check(run, f"ops[{number}]", record, OpRecord)
        for part, kind in _PARTS.items():
            for index, value in enumerate(record[part]):
                _check(run, f"ops[{number}].{part}[{index}]", value, kind)
        for timing in record["timings"]:
            for value in timing["samples"]:
                _check(run, f"ops[{number}].timings.samples", value, Samples)
    if results["kind"] == "eval":
        check_eval(run, results)
    return results


def _check(run: Path, where: str, value: object, kind: type) -> None:
    if not isinstance(value, dict):
        raise RunFolderError(f"{run}: {where} is not an object; the results are damaged.")
    for name, absent in _LATER.get(kind, {}).items():
        value.setdefault(name, absent)
    missing = [field.name for field in fields(kind) if field.name not in value]
    if missing:
        raise RunFolderError(f"{run}: {where} lacks {', '.join(missing)}; the results are damaged.")
